"""The temperature of the probabilities and the operating point, both fitted on the validation split."""

import math
from dataclasses import asdict, dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn.metrics import log_loss

from busi_tune.errors import ConfigError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, Labels, softmax, summarise
from busi_tune.names import MALIGNANT
from busi_tune.results import (
    BeforeAfter,
    CalibrationFigures,
    OperatingPointEntry,
    TestSummary,
    ThresholdFigure,
    ThresholdFigures,
)

Logits = NDArray[np.float64]
CONFIDENCE = 0.95


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature by which logits (n, classes) are to be divided for the lowest log loss.

    Guo et al., "On calibration of modern neural networks", 2017; the optimum of scikit-learn's temperature method,
    whose own interface takes classifiers, not logits. Where every answer is right there is none, and it stays 1.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    names = range(logits.shape[1])
    found = optimize.minimize_scalar(
        lambda log_sharpness: log_loss(labels, softmax(math.exp(log_sharpness) * logits), labels=names),
        bounds=(-10, 10),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return math.exp(-float(found.x))


def calibration_figures(before: Answers, after: Answers) -> BeforeAfter:
    """Brier score, log loss and expected calibration error before and after the temperature."""
    return {"before": _calibration_of(before), "after": _calibration_of(after)}


def _calibration_of(answers: Answers) -> CalibrationFigures:
    figures = summarise(answers)
    return {
        "brier": figures["brier"],
        "log_loss": float(log_loss(answers.labels, answers.probabilities, labels=range(len(answers.classes)))),
        "calibration_error": figures["calibration_error"],
    }


def summary_with_intervals(answers: Answers, groups: Labels) -> TestSummary:
    """All metrics of the test split, with intervals; `groups` has each image's group."""
    return cast("TestSummary", {**summarise(answers), **with_intervals(answers, groups)})


@dataclass(frozen=True)
class OperatingPoint:
    """The probability of the class `positive`, the disease, from which on an image is flagged, and its support.

    `cases` are groups of near-duplicates with such images in the validation split. A claim of this sensitivity
    takes at least `needed` of them, and is `supported` if it holds with 95 % confidence.
    """

    positive: str
    sensitivity: float
    threshold: float
    cases: int
    missed: int
    needed: int
    supported: bool

    def entry(self) -> OperatingPointEntry:
        """The point as the certificate and the model's metadata have it, with its class and a sentence."""
        values = {"class": self.positive, **asdict(self), "sentence": self._sentence()}
        del values["positive"]
        return cast("OperatingPointEntry", values)

    def _sentence(self) -> str:
        rest = f"{self.missed} of {self.cases} {self.positive} cases of the validation split below it"
        if self.supported:
            return f"Threshold {self.threshold:.4f}: {rest}; sensitivity {self.sensitivity:g} with 95 % confidence."
        return (
            f"Threshold {self.threshold:.4f}: {rest}, too few to support a sensitivity of {self.sensitivity:g}: that "
            f"takes at least {self.needed} cases."
        )


def operating_point(answers: Answers, groups: Labels, sensitivity: float) -> OperatingPoint:
    """The highest threshold at which the cases of `answers`, of the validation split, reach `sensitivity`.

    Where there are enough cases it is the one that new cases reach as well with 95 % confidence, whatever their
    distribution (Wilks, "Determination of sample sizes for setting tolerance limits", 1941). A case is a group with
    images of the disease, and is missed where one of them is.

    Raises:
        ConfigError: there is no image of the disease.
    """
    disease = _disease(answers)
    name = answers.classes[disease]
    positive = answers.labels == disease
    if not positive.any():
        raise ConfigError(f"sensitivity is of the class {name}, of which the validation split has no image.")
    score = answers.probabilities[:, disease]
    lowest = np.sort([score[positive & (groups == group)].min() for group in np.unique(groups[positive])])
    cases = len(lowest)
    miss = 1 - sensitivity
    needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(sensitivity))
    supported = cases >= needed
    missed = int(stats.binom.ppf(1 - CONFIDENCE, cases, miss)) if supported else math.floor(cases * miss + 1e-9)
    while supported and stats.binom.cdf(missed, cases, miss) > 1 - CONFIDENCE:
        missed -= 1
    edge = float(lowest[missed])
    # Between two images' probabilities, so that rounding elsewhere changes no answer.
    below = float(score[score < edge].max(initial=0.0))
    return OperatingPoint(name, sensitivity, (edge + below) / 2, cases, missed, needed, supported)


def _disease(answers: Answers) -> int:
    if answers.disease is None:
        raise ConfigError(
            f"sensitivity is of the class malignant, and the classes are {', '.join(answers.classes)}; train with "
            "--positive NAME, which says what class is the disease."
        )
    return answers.disease


def at_threshold(answers: Answers, groups: Labels, threshold: float) -> ThresholdFigures:
    """Sensitivity and specificity of the flag on a test split, with intervals over groups and Wilson's."""
    disease = _disease(answers)
    positive, flagged = answers.labels == disease, answers.probabilities[:, disease] >= threshold
    flags = Answers(positive.astype(np.int64), np.stack([~flagged, flagged], axis=1).astype(float), ("rest", MALIGNANT))
    figures, spread = summarise(flags), with_intervals(flags, groups)

    def figure(metric: Literal["sensitivity", "specificity"], images: int) -> ThresholdFigure:
        return {
            "value": figures["malignant_vs_rest"][metric],
            "images": images,
            "intervals": spread["intervals"].get("malignant_vs_rest", {}).get(metric),
            "wilson": spread["wilson"].get("malignant_vs_rest", {}).get(metric),
        }

    return {
        "sensitivity": figure("sensitivity", int(positive.sum())),
        "specificity": figure("specificity", int((~positive).sum())),
    }
