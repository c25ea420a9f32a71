"""The curves of a classifier's predictions. Each point has a 95 % interval that accounts for groups of images."""

import numpy as np

from busi_tune.evaluation.intervals import of_proportion
from busi_tune.evaluation.metrics import CALIBRATION_BINS, Answers, Flags, Floats, Labels, calibration_bins
from busi_tune.results import Band, ClassCurves, ReliabilityBin

# The maximum number of points in a curve.
POINTS = 120


def class_curves(answers: Answers, groups: Labels) -> dict[str, ClassCurves]:
    """The curves of each class against the others. A class with no images, or with all images, has no curves."""
    result: dict[str, ClassCurves] = {}
    for number, name in enumerate(answers.classes):
        positive = answers.labels == number
        if positive.any() and not positive.all():
            score = answers.probabilities[:, number]
            result[name] = {
                "roc": _roc(score, positive, groups),
                "precision_recall": _precision_recall(score, positive, groups),
                "share": float(positive.mean()),
            }
    return result


def _thresholds(score: Floats) -> Floats:
    """At most `POINTS` thresholds, from the highest score down; at the last one, every image is positive."""
    every = np.unique(score)[::-1]
    places = np.unique(np.linspace(0, len(every) - 1, min(POINTS, len(every))).round().astype(np.int64))
    return np.asarray(every[places])


def _roc(score: Floats, positive: Flags, groups: Labels) -> Band:
    """Sensitivity over the false-positive rate, with the interval of the sensitivity at each threshold."""
    points = []
    for threshold in (np.inf, *_thresholds(score)):
        called = score >= threshold
        edges = of_proportion(called[positive], groups[positive])
        points.append((float(called[~positive].mean()), float(called[positive].mean()), *edges))
    return _band(points)


def _precision_recall(score: Floats, positive: Flags, groups: Labels) -> Band:
    """Precision over recall, with the interval of the precision at each threshold."""
    points = []
    for threshold in _thresholds(score):
        called = score >= threshold
        hits = positive[called]
        points.append((float(called[positive].mean()), float(hits.mean()), *of_proportion(hits, groups[called])))
    return _band(points)


def coverage(answers: Answers, groups: Labels) -> Band:
    """The error rate of the most confident predictions, over their share of all images."""
    order = np.argsort(-answers.probabilities.max(axis=1), kind="stable")
    wrong, member = (answers.predicted != answers.labels)[order], groups[order]
    counts = np.unique(np.linspace(1, len(order), min(POINTS, len(order))).round().astype(np.int64))
    points = [
        (float(count / len(order)), float(wrong[:count].mean()), *of_proportion(wrong[:count], member[:count]))
        for count in counts
    ]
    return _band(points)


def reliability(answers: Answers, groups: Labels) -> list[ReliabilityBin]:
    """Accuracy over confidence, in each bin of the calibration error that holds predictions."""
    bins, confidence, right = calibration_bins(answers)
    result: list[ReliabilityBin] = []
    for number in range(CALIBRATION_BINS):
        own = bins == number
        if own.any():
            low, high = of_proportion(right[own], groups[own])
            result.append(
                {
                    "confidence": float(confidence[own].mean()),
                    "accuracy": float(right[own].mean()),
                    "low": low,
                    "high": high,
                    "images": int(own.sum()),
                }
            )
    return result


def cooled(answers: Answers, temperature: float) -> Answers:
    """The same predictions with their logits divided by a temperature."""
    logits = np.log(np.maximum(answers.probabilities, np.finfo(np.float64).tiny)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return Answers(answers.labels, np.asarray(shares), answers.classes, answers.positive)


def _band(points: list[tuple[float, float, float, float]]) -> Band:
    x, y, low, high = (list(column) for column in zip(*points, strict=True))
    return {"x": x, "y": y, "low": low, "high": high}
