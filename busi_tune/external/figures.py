"""The metrics of a model on images of another source, compared with those on its own test images."""

import numpy as np

from busi_tune.errors import ConfigError
from busi_tune.evaluation.intervals import combined
from busi_tune.evaluation.metrics import Answers, Labels, edges, numbers
from busi_tune.evaluation.selective import answered_from, halving
from busi_tune.export.calibration import calibration_of, figures_at, fit_temperature, operating_point
from busi_tune.results import (
    OperatingPointEntry,
    RiskCoveragePoint,
    TestSummary,
    ThresholdThere,
    TransferCalibration,
    TransferConfidence,
    TransferDifference,
    TransferPoint,
)


def differences(internal: TestSummary, external: TestSummary) -> dict[str, TransferDifference]:
    """The difference of each metric that both summaries define, external minus internal.

    The summaries are of different images, so square-and-add combines their intervals without correlation (Newcombe,
    1998).
    """
    before, after = numbers(internal), numbers(external)
    own, there = edges(internal["intervals"]), edges(external["intervals"])
    found: dict[str, TransferDifference] = {}
    for name in (name for name in before if name in after):
        interval = None
        if name in own and name in there:
            parts = [
                (1.0, after[name], (there[name][0], there[name][1])),
                (-1.0, before[name], (own[name][0], own[name][1])),
            ]
            interval = list(combined(parts, np.eye(2)))
        found[".".join(name)] = {
            "internal": before[name],
            "external": after[name],
            "difference": after[name] - before[name],
            "interval": interval,
        }
    return found


def calibration(internal: TestSummary, external: TestSummary, answers: Answers) -> TransferCalibration:
    """The calibration on the external images, next to that on the model's own test images."""
    logits = np.log(np.maximum(answers.probabilities, np.finfo(np.float64).tiny))
    return {
        "confidence": float(answers.probabilities.max(axis=1).mean()),
        "accuracy": external["accuracy"],
        "temperature": fit_temperature(logits, answers.labels),
        "internal": calibration_of(internal),
        "external": calibration_of(external),
    }


def point_there(point: OperatingPointEntry, answers: Answers, groups: Labels) -> TransferPoint:
    """The stored threshold on the external images, and the threshold that the same rule would choose for them."""

    def at(threshold: float) -> ThresholdThere:
        return {"threshold": threshold, "figures": figures_at(threshold, answers, groups)}

    try:
        needed = at(operating_point(answers, groups, point["sensitivity"]).threshold)
    except ConfigError:
        # There is no image of the disease.
        needed = None
    return {
        "class": point["class"],
        "sensitivity": point["sensitivity"],
        "stored": at(point["threshold"]),
        "needed": needed,
    }


def confidence_there(validation: list[RiskCoveragePoint], answers: Answers) -> TransferConfidence | None:
    """The error on the external images at the confidence that the validation images suggest, if they suggest one."""
    found = halving(validation)
    if found is None:
        return None
    wrong = answers.predicted != answers.labels
    return {
        "confidence": found["confidence"],
        "validation": found,
        "external": answered_from(answers.probabilities.max(axis=1), wrong, found["confidence"]),
    }
