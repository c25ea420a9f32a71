"""Our metrics compared with scikit-learn's."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special
from sklearn import metrics as sklearn

from busi_tune.evaluation import metrics

CLASSES = ("benign", "malignant", "normal")


def drawn(seed: int, truths: list[int], answers: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 200))
    return generator.choice(truths, size=size), generator.choice(answers, size=size)


# scikit-learn cannot know the other classes if all images and answers have one.
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("truths", "answers"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2], [0, 2]),  # a class never predicted
        ([0, 1], [0, 1, 2]),  # a class without images
        ([0, 1], [0, 1]),  # a class with neither images nor predictions
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
    assert metrics.matthews(matrix) == pytest.approx(sklearn.matthews_corrcoef(truth, predicted), abs=1e-12)
    summary = metrics.summarise(answers_of(truth, predicted))
    assert [summary["per_class"][name]["images"] for name in CLASSES] == each[3].tolist()
    found = metrics.numbers(summary)
    for number, metric in enumerate(("precision", "recall", "f1")):
        values = [found.get(("per_class", name, metric)) for name in CLASSES]
        expected = [value if images else None for value, images in zip(each[number], each[3], strict=True)]
        assert values == pytest.approx(expected)
        assert found.get((f"macro_{metric}",)) == (None if None in expected else pytest.approx(macro[number]))


def answers_of(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> metrics.Answers:
    """Answers with probability 1 for the predicted class."""
    return metrics.Answers(truth, np.eye(3)[predicted], CLASSES)


def test_a_summary_holds_plain_values() -> None:
    summary = metrics.summarise(answers_of(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])))
    assert summary["images"] == 6
    assert summary["accuracy"] == pytest.approx(4 / 6)
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert summary["brier"] == pytest.approx(2 * 2 / 6)
    assert summary["calibration_error"] == pytest.approx(2 / 6)
    assert summary["per_class"]["malignant"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(4 / 5),
        "roc_auc": pytest.approx(7 / 8),
        "average_precision": pytest.approx(2 / 3),
        "images": 2,
    }
    assert summary["malignant_vs_rest"] == {
        "sensitivity": 1.0,
        "specificity": pytest.approx(3 / 4),
        "roc_auc": pytest.approx(7 / 8),
        "average_precision": pytest.approx(2 / 3),
    }
    assert summary["benign_vs_malignant"]["specificity"] == pytest.approx(2 / 3)
    assert summary["confusion_matrix"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_what_is_not_defined_is_none() -> None:
    answers = answers_of(np.array([0, 0, 1]), np.array([0, 1, 2]))
    summary = metrics.summarise(answers)
    nothing = dict.fromkeys(("precision", "recall", "f1", "roc_auc", "average_precision"))
    assert summary["per_class"]["normal"] == nothing | {"images": 0}
    zero = dict.fromkeys(("precision", "recall", "f1"), 0)
    assert summary["per_class"]["malignant"] == zero | {"roc_auc": 0.25, "average_precision": 1 / 3, "images": 1}
    macro = [summary["macro_precision"], summary["macro_recall"], summary["macro_f1"], summary["macro_roc_auc"]]
    assert macro == [None] * 4
    assert summary["balanced_accuracy"] == pytest.approx(0.25)
    assert not {name for name in metrics.numbers(summary) if "normal" in name or name[0].startswith("macro")}
    assert metrics.proportions(answers)["per_class", "normal", "recall"][1].sum() == 0


def test_without_malignant_there_is_nothing_against_it() -> None:
    answers = metrics.Answers(np.array([0, 1]), np.eye(2), ("a", "b"))
    assert not {"malignant_vs_rest", "benign_vs_malignant"} & set(metrics.summarise(answers))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_all_figures_are_scikit_learns_whatever_the_weights(seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 60)
    logits = generator.standard_normal((60, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = metrics.softmax(np.round(logits) if ties else logits)
    weights = np.vstack([np.ones(60), generator.multinomial(60, np.full(60, 1 / 60), size=3)]).astype(float)
    found = metrics.scores(metrics.Answers(labels, probabilities, CLASSES), weights)
    predicted = probabilities.argmax(axis=1)
    pair = labels < 2
    for row, weight in enumerate(weights):
        own = {name: value[row] for name, value in found.items()}
        options = {"sample_weight": weight}
        assert own["accuracy",] == pytest.approx(sklearn.accuracy_score(labels, predicted, **options))
        assert own["balanced_accuracy",] == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted, **options))
        each = sklearn.precision_recall_fscore_support(labels, predicted, zero_division=0, **options)
        for k, name in enumerate(CLASSES):
            for metric, theirs in zip(("precision", "recall", "f1"), each[:3], strict=True):
                assert own["per_class", name, metric] == pytest.approx(theirs[k])
            area = sklearn.roc_auc_score(labels == k, probabilities[:, k], **options)
            assert own["per_class", name, "roc_auc"] == pytest.approx(area)
            ranked = sklearn.average_precision_score(labels == k, probabilities[:, k], **options)
            assert own["per_class", name, "average_precision"] == pytest.approx(ranked)
        squares = ((probabilities - np.eye(3)[labels]) ** 2).sum(axis=1)
        assert own["brier",] == pytest.approx(np.average(squares, weights=weight))
        assert own["log_loss",] == pytest.approx(sklearn.log_loss(labels, probabilities, labels=[0, 1, 2], **options))
        matthews = sklearn.matthews_corrcoef(labels, predicted, **options)
        assert own["matthews_correlation",] == pytest.approx(matthews)
        areas = [own["per_class", name, "roc_auc"] for name in CLASSES]
        assert own["macro_roc_auc",] == pytest.approx(np.mean(areas))
        ill = labels == 1
        recall = sklearn.recall_score(ill, predicted == 1, **options)
        assert own["malignant_vs_rest", "sensitivity"] == pytest.approx(recall)
        specificity = sklearn.recall_score(~ill, predicted != 1, **options)
        assert own["malignant_vs_rest", "specificity"] == pytest.approx(specificity)
        share = probabilities[pair, 1] / probabilities[pair, :2].sum(axis=1)
        area = sklearn.roc_auc_score(ill[pair], share, sample_weight=weight[pair])
        assert own["benign_vs_malignant", "roc_auc"] == pytest.approx(area)
        ranked = sklearn.average_precision_score(ill[pair], share, sample_weight=weight[pair])
        assert own["benign_vs_malignant", "average_precision"] == pytest.approx(ranked)
        called = probabilities[pair, 1] > probabilities[pair, 0]
        right = sklearn.accuracy_score(ill[pair], called, sample_weight=weight[pair])
        assert own["benign_vs_malignant", "accuracy"] == pytest.approx(right)


def test_the_calibration_error_of_two_bins_by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05]])
    answers = metrics.Answers(np.array([0, 1, 0, 0]), probabilities, CLASSES)
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]])
    np.testing.assert_allclose(metrics.calibration_error(answers, weights), [0.2 / 4, (1 + 0.2) / 4])


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
