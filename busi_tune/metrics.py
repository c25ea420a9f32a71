"""The documents' metrics, from a confusion matrix; numpy only, so that every room can use them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(truth: Labels, predicted: Labels, classes: int) -> Labels:
    """Counts of shape (classes, classes): a row for each true class, a column for each predicted one."""
    cells = truth * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, and 0 where the whole is empty (scikit-learn's `zero_division=0`)."""
    return np.asarray(np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0))


def accuracy(matrix: Labels) -> float:
    """The share of images on the diagonal."""
    return float(np.trace(matrix) / matrix.sum())


def class_scores(matrix: Labels) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class: three arrays of shape (classes,)."""
    hits = np.diag(matrix)
    precision = ratio(hits, matrix.sum(axis=0))
    recall = ratio(hits, matrix.sum(axis=1))
    return precision, recall, ratio(2 * precision * recall, precision + recall)


def macro_f1(matrix: Labels) -> float:
    """The plain mean of the classes' F1."""
    return float(class_scores(matrix)[2].mean())


def summarise(matrix: Labels, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 (per class and macro) of a confusion matrix, as plain values."""
    precision, recall, f1 = class_scores(matrix)
    per_class = {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "images": int(matrix[k].sum()),
        }
        for k, name in enumerate(classes)
    }
    return {
        "images": int(matrix.sum()),
        "accuracy": accuracy(matrix),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": macro_f1(matrix),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def softmax(logits: NDArray[Any]) -> Floats:
    """Probabilities in float64 along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
