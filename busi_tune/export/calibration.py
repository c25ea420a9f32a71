"""The temperature of the probabilities and the operating point, both fitted on the validation split."""

import math
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn.metrics import log_loss

from busi_tune.errors import ConfigError
from busi_tune.evaluation.intervals import of_proportion, with_intervals
from busi_tune.evaluation.metrics import Answers, Labels, softmax, summarise
from busi_tune.names import MALIGNANT
from busi_tune.results import (
    BeforeAfter,
    CalibrationFigures,
    OperatingPointEntry,
    SensitivityClaim,
    Summary,
    TestSummary,
    ThresholdFigure,
    ThresholdFigures,
)

Logits = NDArray[np.float64]
CONFIDENCE = 0.95
# Beyond these bounds, all probabilities are equal or certain. Only a useless network needs such a temperature.
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature that minimises the log loss when the logits (n, classes) are divided by it.

    Source: Guo et al., "On calibration of modern neural networks", 2017. The result is that of scikit-learn's
    temperature method, whose interface takes classifiers instead of logits. If every prediction is right, no minimum
    exists and the temperature is 1. It is at least `LOWEST` and at most `HIGHEST`; see `ran_into_bound`.
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
    return min(max(math.exp(-float(found.x)), LOWEST), HIGHEST)


def ran_into_bound(temperature: float) -> bool:
    """Whether a fitted temperature is at one of its bounds."""
    return not LOWEST < temperature < HIGHEST


def calibration_figures(before: Answers, after: Answers) -> BeforeAfter:
    """Brier score, log loss and expected calibration error before and after the temperature."""
    return {"before": calibration_of(summarise(before)), "after": calibration_of(summarise(after))}


def calibration_of(figures: Summary) -> CalibrationFigures:
    """The calibration metrics of a summary."""
    return {
        "brier": figures["brier"],
        "log_loss": figures["log_loss"],
        "calibration_error": figures["calibration_error"],
    }


def summary_with_intervals(answers: Answers, groups: Labels) -> TestSummary:
    """All metrics of the test split, with intervals; `groups` has each image's group."""
    return cast("TestSummary", {**summarise(answers), **with_intervals(answers, groups)})


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold at which an image is flagged: the least probability of `positive`, the class of the disease.

    `cases` is the number of groups of near-duplicates with such images in the validation split; `missed` of them are
    below the threshold. The same images chose the checkpoint, so they support no claim about new cases; see `claim`.
    """

    positive: str
    sensitivity: float
    threshold: float
    cases: int
    missed: int

    def entry(self) -> OperatingPointEntry:
        """The point in the form of the certificate and the model's metadata, with a sentence about it."""
        values = {"class": self.positive, **asdict(self), "sentence": self._sentence()}
        del values["positive"]
        return cast("OperatingPointEntry", values)

    def _sentence(self) -> str:
        return (
            f"Threshold {self.threshold:.4f}, for a sensitivity of {self.sensitivity:g}: {self.missed} of {self.cases} "
            f"{self.positive} validation cases are below it. The same images chose the checkpoint, so this promises "
            "nothing for new cases."
        )


def operating_point(answers: Answers, groups: Labels, sensitivity: float) -> OperatingPoint:
    """A conservative threshold for `sensitivity`, from `answers`, the predictions of the validation split.

    At most `allowed_misses` cases are below it, so a higher `sensitivity` never raises the threshold. A case is a group
    with images of the disease. It is missed if one of these images is below the threshold.

    Raises:
        ConfigError: there is no image of the disease.
    """
    disease = _disease(answers)
    name = answers.classes[disease]
    positive = answers.labels == disease
    if not positive.any():
        raise ConfigError(
            f"sensitivity needs validation images of class {name}, and the split has none; leave out --sensitivity."
        )
    score = answers.probabilities[:, disease]
    lowest = np.sort([score[positive & (groups == group)].min() for group in np.unique(groups[positive])])
    missed = allowed_misses(len(lowest), sensitivity)
    edge = float(lowest[missed])
    # In the middle between two images' probabilities, so that rounding on another machine changes no flag.
    below = float(score[score < edge].max(initial=0.0))
    return OperatingPoint(name, sensitivity, (edge + below) / 2, len(lowest), missed)


def allowed_misses(cases: int, sensitivity: float) -> int:
    """The most misses among `cases` that would support `sensitivity` with 95 % confidence; at least 0.

    If the true sensitivity is lower, this number of misses or fewer occurs in at most 5 % of samples (Wilks,
    "Determination of sample sizes for setting tolerance limits", 1941). The cases also chose the checkpoint, so this is
    no guarantee.
    """
    rare = stats.binom.cdf(np.arange(cases), cases, 1 - sensitivity) <= 1 - CONFIDENCE
    return max(0, int(rare.sum()) - 1)


def evaluated(point: OperatingPoint, answers: Answers, groups: Labels) -> OperatingPointEntry:
    """The point with its metrics on the test split, and the claim that they support. No choice used the test split."""
    disease = _disease(answers)
    positive, flagged = answers.labels == disease, answers.probabilities[:, disease] >= point.threshold
    missed = len(np.unique(groups[positive & ~flagged]))
    return {
        **point.entry(),
        "test": figures_at(point.threshold, answers, groups),
        "claim": claim(len(np.unique(groups[positive])), missed, point.sensitivity, point.positive),
    }


def figures_at(threshold: float, answers: Answers, groups: Labels) -> ThresholdFigures:
    """Sensitivity and specificity for the disease if images are flagged from the probability `threshold` on."""
    disease = _disease(answers)
    positive, flagged = answers.labels == disease, answers.probabilities[:, disease] >= threshold
    return {
        "sensitivity": _threshold_figure(flagged[positive], groups[positive]),
        "specificity": _threshold_figure(~flagged[~positive], groups[~positive]),
    }


def _threshold_figure(hits: NDArray[np.bool_], groups: Labels) -> ThresholdFigure:
    return {
        "value": float(hits.mean()) if len(hits) else None,
        "images": len(hits),
        "interval": list(of_proportion(hits, groups)) if len(hits) else None,
    }


def claim(cases: int, missed: int, sensitivity: float, positive: str = MALIGNANT) -> SensitivityClaim:
    """The sensitivity for new cases with 95 % confidence, from the test split's cases at a fixed threshold.

    The result is the lower end of Clopper and Pearson's one-sided interval (1934), rounded down. `positive` is the
    name of the disease's class.
    """
    least = float(stats.beta.ppf(1 - CONFIDENCE, cases - missed, missed + 1)) if missed < cases else 0.0
    found: SensitivityClaim = {
        "cases": cases,
        "missed": missed,
        "at_least": math.floor(1000 * least) / 1000,
        "supported": least >= sensitivity,
        "needed": math.ceil(math.log(1 - CONFIDENCE) / math.log(sensitivity)),
        "sentence": "",
    }
    return {**found, "sentence": _claimed(found, sensitivity, positive)}


def _claimed(found: SensitivityClaim, sensitivity: float, positive: str) -> str:
    if not found["cases"]:
        return f"The test split has no {positive} case, so there is no claim for new cases."
    flagged = found["cases"] - found["missed"]
    shown = (
        f"{flagged} of {found['cases']} {positive} cases are flagged on the test split, which was used for no choice. "
        f"New cases like them have a sensitivity of at least {found['at_least']:.3f}, with 95 % confidence."
    )
    if found["supported"]:
        return shown
    return f"{shown} A claim of {sensitivity:g} needs at least {found['needed']} cases without a miss."


def _disease(answers: Answers) -> int:
    if answers.disease is None:
        raise ConfigError(
            f"sensitivity needs a class for the disease, and the classes are {', '.join(answers.classes)}; train with "
            "--positive NAME, which names this class."
        )
    return answers.disease
