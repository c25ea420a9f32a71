"""The documents' metrics agree with scikit-learn's."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special
from sklearn import metrics as sklearn

from busi_tune import metrics

CLASSES = ("benign", "malignant", "normal")


def drawn(seed: int, truths: list[int], answers: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 200))
    return generator.choice(truths, size=size), generator.choice(answers, size=size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("truths", "answers"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2], [0, 2]),  # a class never predicted
        ([0, 1], [0, 1, 2]),  # a class without images
        ([0, 1], [0, 1]),  # a class that does not occur at all
        ([0, 1], [2]),  # all wrong
        ([1], [1]),  # all right
    ],
)
def test_figures_are_scikit_learns(seed: int, truths: list[int], answers: list[int]) -> None:
    truth, predicted = drawn(seed, truths, answers)
    matrix = metrics.confusion_matrix(truth, predicted, 3)
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(truth, predicted, labels=[0, 1, 2]))
    each = sklearn.precision_recall_fscore_support(truth, predicted, labels=[0, 1, 2], zero_division=0)
    macro = sklearn.precision_recall_fscore_support(
        truth, predicted, labels=[0, 1, 2], zero_division=0, average="macro"
    )
    for ours, theirs in zip(metrics.class_scores(matrix), each[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0)
    assert metrics.accuracy(matrix) == pytest.approx(sklearn.accuracy_score(truth, predicted), rel=1e-12)
    assert metrics.macro_f1(matrix) == pytest.approx(macro[2], rel=1e-12)
    summary = metrics.summarise(matrix, CLASSES)
    assert [summary[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(list(macro[:3]))
    assert [summary["per_class"][name]["images"] for name in CLASSES] == each[3].tolist()


def test_a_summary_holds_plain_values() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0]), 3)
    assert metrics.summarise(matrix, CLASSES) == {
        "images": 6,
        "accuracy": pytest.approx(4 / 6),
        "macro_precision": pytest.approx((2 / 3 + 2 / 3 + 0) / 3),
        "macro_recall": pytest.approx((2 / 3 + 1 + 0) / 3),
        "macro_f1": pytest.approx((2 / 3 + 4 / 5 + 0) / 3),
        "per_class": {
            "benign": {
                "precision": pytest.approx(2 / 3),
                "recall": pytest.approx(2 / 3),
                "f1": pytest.approx(2 / 3),
                "images": 3,
            },
            "malignant": {
                "precision": pytest.approx(2 / 3),
                "recall": 1.0,
                "f1": pytest.approx(4 / 5),
                "images": 2,
            },
            "normal": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 1},
        },
        "confusion_matrix": [[2, 1, 0], [0, 2, 0], [1, 0, 0]],
    }


def test_rows_are_true_classes_and_columns_answers() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 0, 0]), np.array([2, 2, 1]), 3)
    assert matrix.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "logits",
    [[[0.0, 0.0, 0.0]], [[1.0, -2.0, 0.5], [3.0, 3.0, -1.0]], [[1e4, 0.0, -1e4]], [[-800.0, -801.0, -900.0]]],
)
def test_softmax_is_scipys(logits: list[list[float]]) -> None:
    probabilities = metrics.softmax(np.array(logits, dtype=np.float32))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, special.softmax(np.array(logits), axis=1), rtol=1e-12)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
