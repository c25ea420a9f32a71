"""The metrics of a classifier, computed for many weightings of the images at once.

A weighting is a row with a weight for each image: ones for the metrics themselves, or the counts of a bootstrap
resample.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from busi_tune import names
from busi_tune.evaluation.selective import aurc, risk_coverage
from busi_tune.results import BeforeAfter, Interval, Intervals, Summary, TestSummary

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64 | np.float64]
Flags = NDArray[np.bool_]
Name = tuple[str, ...]

BALANCED, RECALL = ("balanced_accuracy",), ("macro_recall",)
T = TypeVar("T")

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Answers:
    """A model's predictions: true labels (images,), probabilities (images, classes) and class names.

    `positive` names the class that is the disease. None means malignant, if that class exists.
    """

    labels: Labels
    probabilities: Floats
    classes: tuple[str, ...]
    positive: str | None = None

    @property
    def predicted(self) -> Labels:
        """The likeliest class of each image."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def subset(self, kept: NDArray[np.bool_]) -> "Answers":
        """The predictions for the images that the flags `kept` select."""
        return Answers(self.labels[kept], self.probabilities[kept], self.classes, self.positive)

    @property
    def disease(self) -> int | None:
        """The number of the class that is the disease, or None if there is none.

        Raises:
            ConfigError: `positive` names no class.
        """
        name = names.positive_class(self.classes, self.positive)
        return None if name is None else self.classes.index(name)

    @property
    def benign(self) -> int | None:
        """The number of the class benign, or None if it does not exist or is the disease."""
        name = names.same_name(self.classes, names.BENIGN)
        found = None if name is None else self.classes.index(name)
        return None if found == self.disease else found

    @property
    def binary(self) -> tuple[str, str]:
        """The keys of the metrics of the disease against the rest, and against benign."""
        assert self.disease is not None
        word = names.positive_word(self.classes[self.disease])
        return f"{word}_vs_rest", f"benign_vs_{word}"


def confusion_matrix(truth: Labels, predicted: Labels, classes: int) -> Labels:
    """Counts of shape (classes, classes): a row for each true class, a column for each predicted one."""
    cells = truth * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def ratio(part: Counts, whole: Counts, empty: float = 0.0) -> Floats:
    """part / whole, or `empty` where the whole is 0 (an `empty` of 0 matches scikit-learn's `zero_division=0`)."""
    out = np.full(np.broadcast(part, whole).shape, empty)
    return np.asarray(np.divide(part, whole, out=out, where=whole > 0))


def accuracy(matrix: Counts) -> Floats:
    """The accuracy of confusion matrices (..., classes, classes)."""
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)), np.nan)


def class_scores(matrix: Counts) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class, (..., classes), from matrices (..., classes, classes)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    precision = ratio(hits, matrix.sum(axis=-2))
    recall = ratio(hits, matrix.sum(axis=-1))
    return precision, recall, ratio(2 * precision * recall, precision + recall)


def macro_f1(matrix: Counts) -> Floats:
    """The unweighted mean of the classes' F1, (...), from matrices (..., classes, classes)."""
    return np.asarray(class_scores(matrix)[2].mean(axis=-1))


def scores(answers: Answers, weights: Floats) -> dict[Name, Floats]:
    """Every metric under each of `weights` (rows, images), as arrays (rows,); NaN where a metric is undefined.

    Precision without a prediction is 0, as in scikit-learn. If a class has no images, its precision, recall and F1 and
    all macro averages are NaN. A metric of one class against others is NaN if either side is empty.
    """
    labels, probabilities, classes = answers.labels, answers.probabilities, answers.classes
    count = len(classes)
    cells = np.eye(count * count)[labels * count + answers.predicted]
    matrix = (weights @ cells).reshape(len(weights), count, count)
    present = matrix.sum(axis=-1) > 0
    precision, recall, f1 = (np.where(present, value, np.nan) for value in class_scores(matrix))
    areas = [roc_auc(probabilities[:, k], labels == k, weights) for k in range(count)]
    ranked = [average_precision(probabilities[:, k], labels == k, weights) for k in range(count)]
    total = weights.sum(axis=1)
    result: dict[Name, Floats] = {
        ("accuracy",): accuracy(matrix),
        ("macro_precision",): precision.mean(axis=1),
        ("macro_recall",): recall.mean(axis=1),
        ("macro_f1",): f1.mean(axis=1),
        ("balanced_accuracy",): ratio(np.where(present, recall, 0).sum(axis=1), present.sum(axis=1), np.nan),
        ("matthews_correlation",): matthews(matrix),
        ("macro_roc_auc",): np.mean(areas, axis=0),
        ("macro_average_precision",): np.mean(ranked, axis=0),
        ("log_loss",): ratio(weights @ log_losses(answers), total, np.nan),
        ("brier",): ratio(weights @ squared_errors(answers), total, np.nan),
        ("calibration_error",): calibration_error(answers, weights),
        ("aurc",): aurc(probabilities.max(axis=1), answers.predicted != labels, weights),
    }
    for k, name in enumerate(classes):
        result |= {
            ("per_class", name, "precision"): precision[:, k],
            ("per_class", name, "recall"): recall[:, k],
            ("per_class", name, "f1"): f1[:, k],
            ("per_class", name, "roc_auc"): areas[k],
            ("per_class", name, "average_precision"): ranked[k],
        }
    m = answers.disease
    if m is not None:
        rest, _ = answers.binary
        ill = matrix[:, m].sum(axis=1)
        well = total - ill
        false_alarms = matrix[:, :, m].sum(axis=1) - matrix[:, m, m]
        result |= {
            (rest, "sensitivity"): ratio(matrix[:, m, m], ill, np.nan),
            (rest, "specificity"): ratio(well - false_alarms, well, np.nan),
            (rest, "roc_auc"): areas[m],
            (rest, "average_precision"): ranked[m],
        }
    lesions = _lesions(answers)
    if lesions is not None:
        result |= _benign_vs_disease(answers, lesions, weights)
    return result


@dataclass(frozen=True)
class Lesions:
    """The benign and the diseased images only, which the flags `rows` select from all images.

    `ill` flags the diseased images. `share` is the disease's share of the two classes' probabilities. `called` flags
    the images for which the disease has the higher probability.
    """

    ill: NDArray[np.bool_]
    share: Floats
    called: NDArray[np.bool_]
    rows: NDArray[np.bool_]


def _lesions(answers: Answers) -> Lesions | None:
    """The benign and the diseased images, or None if one of the two classes does not exist."""
    b, m = answers.benign, answers.disease
    if b is None or m is None:
        return None
    rows = np.isin(answers.labels, (b, m))
    pair = answers.probabilities[rows]
    share = ratio(pair[:, m], pair[:, b] + pair[:, m], 0.5)
    return Lesions(answers.labels[rows] == m, share, pair[:, m] > pair[:, b], rows)


def _benign_vs_disease(answers: Answers, lesions: Lesions, weights: Floats) -> dict[Name, Floats]:
    """The metrics of benign against the disease, from the images and probabilities of these two classes only."""
    ill, called = lesions.ill, lesions.called
    w, (_, pair) = weights[:, lesions.rows], answers.binary
    return {
        (pair, "accuracy"): ratio(w @ (called == ill), w.sum(axis=1), np.nan),
        (pair, "sensitivity"): ratio(w @ (called & ill), w @ ill, np.nan),
        (pair, "specificity"): ratio(w @ ~(called | ill), w @ ~ill, np.nan),
        (pair, "roc_auc"): roc_auc(lesions.share, ill, w),
        (pair, "average_precision"): average_precision(lesions.share, ill, w),
    }


def roc_auc(score: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The area under the ROC curve under each of `weights` (rows, images), as an array (rows,).

    It is the share of correctly ordered pairs, where ties count half: the Mann-Whitney form (Hanley and McNeil, "The
    meaning and use of the area under a ROC curve", 1982).
    """
    if not len(score):
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    high = np.add.reduceat(np.where(positive[order], weights[:, order], 0), starts, axis=1)
    low = np.add.reduceat(np.where(positive[order], 0, weights[:, order]), starts, axis=1)
    below = np.cumsum(low, axis=1) - low / 2
    return ratio((high * below).sum(axis=1), high.sum(axis=1) * low.sum(axis=1), np.nan)


def average_precision(score: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The average precision under each of `weights` (rows, images), as an array (rows,).

    It is the area under the stepwise precision-recall curve, where tied scores form one step. It equals scikit-learn's
    `average_precision_score`, but is NaN if there is no positive or no negative image.
    """
    if not len(score):
        return np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(-score[order], prepend=-np.inf))
    high = np.add.reduceat(np.where(positive[order], weights[:, order], 0), starts, axis=1)
    every = np.add.reduceat(weights[:, order], starts, axis=1)
    precision = ratio(np.cumsum(high, axis=1), np.cumsum(every, axis=1))
    hits, total = high.sum(axis=1), every.sum(axis=1)
    return np.where(hits < total, ratio((high * precision).sum(axis=1), hits, np.nan), np.nan)


def matthews(matrix: Counts) -> Floats:
    """Matthews' coefficient for several classes, from matrices (..., classes, classes); 0 where it is undefined.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    total, right = matrix.sum(axis=(-2, -1)), np.trace(matrix, axis1=-2, axis2=-1)
    true, called = matrix.sum(axis=-1), matrix.sum(axis=-2)
    spread = np.sqrt((total**2 - (true**2).sum(axis=-1)) * (total**2 - (called**2).sum(axis=-1)))
    return ratio(right * total - (true * called).sum(axis=-1), spread)


def log_losses(answers: Answers) -> Floats:
    """The negative logarithm of the true class's probability, which counts as at least 2.2e-16 as in scikit-learn."""
    true = answers.probabilities[np.arange(len(answers.labels)), answers.labels]
    return np.asarray(-np.log(np.maximum(true, np.finfo(np.float64).eps)))


def calibration_error(answers: Answers, weights: Floats) -> Floats:
    """The expected calibration error of the likeliest class, over 15 bins of equal width, under each of `weights`.

    Source: Guo et al., "On calibration of modern neural networks", 2017. With few images it is biased upwards.
    """
    bins, confidence, right = calibration_bins(answers)
    gaps = np.eye(CALIBRATION_BINS)[bins] * (right - confidence)[:, None]
    return ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1), np.nan)


def calibration_bins(answers: Answers) -> tuple[Labels, Floats, Flags]:
    """For each image, the bin of its confidence, the confidence, and whether its prediction is right."""
    confidence = answers.probabilities.max(axis=1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return bins, confidence, answers.predicted == answers.labels


def squared_errors(answers: Answers) -> Floats:
    """Each image's part of the Brier score, from 0 to 2."""
    truth = np.eye(len(answers.classes))[answers.labels]
    return np.asarray(((answers.probabilities - truth) ** 2).sum(axis=1))


def proportions(answers: Answers) -> dict[Name, tuple[Flags, Flags]]:
    """The metrics that are plain proportions, each with the flags of its hits and of the images that it counts."""
    labels, predicted = answers.labels, answers.predicted
    right = labels == predicted
    result: dict[Name, tuple[Flags, Flags]] = {("accuracy",): (right, np.ones_like(right))}
    for k, name in enumerate(answers.classes):
        result["per_class", name, "precision"] = (right, predicted == k)
        result["per_class", name, "recall"] = (right, labels == k)
    m = answers.disease
    if m is not None:
        rest, _ = answers.binary
        result[rest, "sensitivity"] = (predicted == m, labels == m)
        result[rest, "specificity"] = (predicted != m, labels != m)
    lesions = _lesions(answers)
    if lesions is not None:
        _, pair = answers.binary
        ill, called = labels == m, np.zeros_like(right)
        called[lesions.rows] = lesions.called
        result[pair, "accuracy"] = (called == ill, lesions.rows)
        result[pair, "sensitivity"] = (called, lesions.rows & ill)
        result[pair, "specificity"] = (~called, lesions.rows & ~ill)
    return result


def rankings(answers: Answers) -> dict[Name, tuple[Floats, Flags, Flags]]:
    """For each ranking metric, by the first parts of its name: scores, flags of positives, flags of counted images."""
    labels, probabilities, classes = answers.labels, answers.probabilities, answers.classes
    every = np.ones(len(labels), dtype=bool)
    result: dict[Name, tuple[Floats, Flags, Flags]] = {
        ("per_class", name): (probabilities[:, k], labels == k, every) for k, name in enumerate(classes)
    }
    if answers.disease is not None:
        rest, _ = answers.binary
        result[rest,] = result["per_class", classes[answers.disease]]
    lesions = _lesions(answers)
    if lesions is not None:
        _, pair = answers.binary
        score, positive = np.zeros(len(labels)), np.zeros_like(every)
        score[lesions.rows], positive[lesions.rows] = lesions.share, lesions.ill
        result[pair,] = (score, positive, lesions.rows)
    return result


def summarise(answers: Answers) -> Summary:
    """Every metric, the number of images and the confusion matrix, as plain values; None where undefined.

    If the disease is not malignant, its class is included, because the keys of its metrics do not name it.
    """
    matrix = confusion_matrix(answers.labels, answers.predicted, len(answers.classes))
    figures = scores(answers, np.ones((1, len(answers.labels))))
    values: dict[Name, object] = {
        name: None if np.isnan(value[0]) else float(value[0]) for name, value in figures.items()
    }
    values["images",] = len(answers.labels)
    for name, row in zip(answers.classes, matrix, strict=True):
        values["per_class", name, "images"] = int(row.sum())
    values["confusion_matrix",] = matrix.tolist()
    values["risk_coverage",] = risk_coverage(answers.probabilities.max(axis=1), answers.predicted != answers.labels)
    if any(name[0] == "positive_vs_rest" for name in figures):
        values["positive",] = names.positive_class(answers.classes, answers.positive)
    return cast("Summary", nested(values))


def nested(values: Mapping[Name, object]) -> dict[str, object]:
    """A tree of dictionaries, with a level for each part of the names."""
    tree: dict[str, object] = {}
    for name, value in values.items():
        place = tree
        for part in name[:-1]:
            branch = place.setdefault(part, {})
            assert isinstance(branch, dict)
            place = branch
        place[name[-1]] = value
    return tree


def numbers(figures: Mapping[str, object]) -> dict[Name, float]:
    """The defined metrics of a summary, without counts and intervals."""
    return {name: value for name, value in _leaves(figures) if isinstance(value, float)}


def shown(figures: Mapping[str, object]) -> dict[Name, float]:
    """The metrics that tables show: those of `numbers` without duplicates."""
    return once(numbers(figures))


def once(found: Mapping[Name, T]) -> dict[Name, T]:
    """Values of metrics without macro recall, if they have balanced accuracy, which is the same metric."""
    return {name: value for name, value in found.items() if name != RECALL or BALANCED not in found}


def missing_intervals(figures: TestSummary) -> list[str]:
    """A sentence for each reason why metrics have no interval."""
    reasons: dict[str, list[str]] = {}
    for name, reason in figures["without_interval"].items():
        reasons.setdefault(reason, []).append(name.removeprefix("per_class.").replace(".", " ").replace("_", " "))
    return [f"No interval of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def worsened(found: BeforeAfter) -> list[str]:
    """The names of the calibration metrics that the temperature made worse."""
    before, after = found["before"], found["after"]
    pairs = {
        "Brier score": (before["brier"], after["brier"]),
        "log loss": (before["log_loss"], after["log_loss"]),
        "calibration error": (before["calibration_error"], after["calibration_error"]),
    }
    return [name for name, (old, new) in pairs.items() if old is not None and new is not None and new > old]


def edges(intervals: Intervals) -> dict[Name, Interval]:
    """The intervals [low, high] of a tree, by the names of their metrics."""
    return {name: value for name, value in _leaves(intervals) if isinstance(value, list)}


def _leaves(tree: Mapping[str, object]) -> Iterator[tuple[Name, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from (((key, *rest), leaf) for rest, leaf in _leaves(value))
        else:
            yield (key,), value


def softmax(logits: NDArray[np.floating]) -> Floats:
    """The probabilities of logits in float64, along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
