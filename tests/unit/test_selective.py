"""The risk-coverage curve, its area, and the confidence threshold it suggests, against brute force."""

import numpy as np
import pytest

from busi_tune.evaluation.metrics import Answers, scores, summarise
from busi_tune.evaluation.selective import answered_from, aurc, halving, risk_coverage

CLASSES = ("benign", "malignant", "normal")


def by_hand(confidence: list[float], wrong: list[bool]) -> float:
    """The mean, over images, of the error rate among all images of at least that confidence."""
    sure, errors = np.array(confidence), np.array(wrong)
    return float(np.mean([errors[sure >= each].mean() for each in sure]))


@pytest.mark.parametrize(
    ("confidence", "wrong", "area"),
    [
        ([0.9, 0.8, 0.7, 0.6], [False, False, False, False], 0.0),
        ([0.9, 0.8, 0.7, 0.6], [True, True, True, True], 1.0),
        ([0.9, 0.8, 0.7, 0.6], [False, False, True, True], (0 + 0 + 1 / 3 + 2 / 4) / 4),
        ([0.9, 0.8, 0.7, 0.6], [True, False, False, False], (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4),
        ([0.9, 0.5, 0.5, 0.5], [False, True, False, False], (0 + 3 * 1 / 4) / 4),
    ],
)
def test_the_area_by_hand(confidence: list[float], wrong: list[bool], area: float) -> None:
    found = aurc(np.array(confidence), np.array(wrong), np.ones((1, 4)))
    assert found == pytest.approx([area])
    assert by_hand(confidence, wrong) == pytest.approx(area)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_that_of_brute_force_whatever_the_weights_and_the_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence, wrong = np.round(generator.random(40), 1), generator.random(40) < 0.3
    weights = generator.integers(0, 3, (3, 40)).astype(np.float64)
    for row, found in zip(weights, aurc(confidence, wrong, weights), strict=True):
        repeated = np.repeat(np.arange(40), row.astype(int))
        assert found == pytest.approx(by_hand(list(confidence[repeated]), list(wrong[repeated])))
    order = generator.permutation(40)
    np.testing.assert_allclose(
        aurc(confidence[order], wrong[order], weights[:, order]), aurc(confidence, wrong, weights)
    )
    assert np.isnan(aurc(confidence, wrong, np.zeros((1, 40)))).all()


def test_the_points_are_those_of_their_thresholds() -> None:
    generator = np.random.default_rng(0)
    confidence, wrong = np.round(generator.uniform(0.34, 1, 113), 2), generator.random(113) < 0.4
    points = risk_coverage(confidence, wrong)
    assert len(points) <= 20
    assert points[-1] == {"confidence": 0, "coverage": 1, "error": wrong.mean(), "images": 113}
    assert [point["images"] for point in points] == sorted({point["images"] for point in points})
    for point in points:
        assert answered_from(confidence, wrong, point["confidence"]) == pytest.approx(point)
        assert point["confidence"] not in confidence
    assert answered_from(confidence, wrong, 2.0) is None


def test_the_confidence_that_is_suggested_halves_the_error_and_answers_most() -> None:
    confidence, wrong = np.linspace(1, 0.4, 100), np.arange(100) >= 60
    points = risk_coverage(confidence, wrong)
    found = halving(points)
    assert found is not None
    assert found["error"] <= 0.2 < points[points.index(found) + 1]["error"]
    assert found["coverage"] == 0.75
    assert halving(risk_coverage(confidence, ~wrong)) is None
    assert halving([]) is None


def test_every_summary_has_the_area_and_the_points() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 50)
    answers = Answers(labels, generator.dirichlet(np.ones(3), 50), CLASSES)
    summary = summarise(answers)
    sure, wrong = answers.probabilities.max(axis=1), answers.predicted != labels
    assert summary["aurc"] == pytest.approx(by_hand(list(sure), list(wrong)))
    assert summary["risk_coverage"] == risk_coverage(sure, wrong)
    assert scores(answers, np.ones((1, 50)))["aurc",] == pytest.approx([summary["aurc"]])
