"""Temperature and operating point: fitted on validation, right on data whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from busi_tune.errors import ConfigError
from busi_tune.evaluation.metrics import Answers, softmax
from busi_tune.export.calibration import at_threshold, calibration_figures, fit_temperature, operating_point

CLASSES = ("benign", "malignant", "normal")
Logits = NDArray[np.float64]


def calibrated(count: int, seed: int = 0) -> tuple[Logits, NDArray[np.int64]]:
    """Logits whose softmax is the truth, and labels drawn from it."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(count, 3))
    draws = generator.random(count)[:, None]
    return logits, (softmax(logits).cumsum(axis=1) < draws).sum(axis=1)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_what_made_a_model_too_sure(factor: float) -> None:
    logits, labels = calibrated(4000)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_it_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(300, 4)), generator.integers(0, 3, 300)
    points[np.arange(300), labels] += 1
    model = LogisticRegression().fit(points[:150], labels[:150])
    model.coef_, model.intercept_ = model.coef_ * 3, model.intercept_ * 3
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature", cv=2, ensemble=False)
    theirs.fit(points[150:], labels[150:])
    logits = model.decision_function(points[150:])
    ours = softmax(logits / fit_temperature(logits, labels[150:]))
    np.testing.assert_allclose(ours, theirs.predict_proba(points[150:]), atol=1e-6)


def test_without_an_error_there_is_no_temperature_to_find() -> None:
    assert fit_temperature(np.eye(3) * 5, np.arange(3)) == 1.0


def test_a_class_without_images_does_no_harm() -> None:
    logits, labels = calibrated(500)
    kept = labels != 2
    assert 0.2 < fit_temperature(logits[kept], labels[kept]) < 5


def test_figures_fall_and_no_answer_changes() -> None:
    logits, labels = calibrated(2000)
    temperature = fit_temperature(logits * 4, labels)
    before, after = (Answers(labels, softmax(values), CLASSES) for values in (logits * 4, logits * 4 / temperature))
    figures = calibration_figures(before, after)
    assert temperature > 2
    for earlier, later in zip(figures["before"].values(), figures["after"].values(), strict=True):
        assert isinstance(earlier, float)
        assert isinstance(later, float)
        assert later < earlier
    assert float(str(figures["after"]["calibration_error"])) < 0.03
    np.testing.assert_array_equal((logits * 4 / temperature).argmax(axis=1), logits.argmax(axis=1))


def answers(malignant: NDArray[np.float64], others: NDArray[np.float64]) -> Answers:
    """Images with these probabilities of malignant."""
    probability = np.concatenate([malignant, others])
    labels = np.array([1] * len(malignant) + [0] * len(others))
    rest = (1 - probability) / 2
    return Answers(labels, np.stack([rest, probability, rest], axis=1), CLASSES)


@pytest.mark.parametrize(
    ("cases", "sensitivity", "missed", "supported", "needed"),
    [
        (20, 0.95, 1, False, 59),
        (58, 0.95, 2, False, 59),
        (59, 0.95, 0, True, 59),
        (93, 0.95, 1, True, 59),
        (100, 0.9, 4, True, 29),
        (10, 0.9, 1, False, 29),
        (298, 0.99, 2, False, 299),
        (299, 0.99, 0, True, 299),
    ],
)
def test_operating_points(cases: int, sensitivity: float, missed: int, supported: bool, needed: int) -> None:
    given = answers(np.linspace(0.05, 0.95, cases), np.array([0.01]))
    point = operating_point(given, np.arange(cases + 1), sensitivity)
    assert (point.cases, point.missed, point.supported, point.needed) == (cases, missed, supported, needed)
    assert (np.linspace(0.05, 0.95, cases) < point.threshold).sum() == missed
    if supported:
        # As few misses as this are rare where the true sensitivity is lower, and one more would not be.
        assert (
            stats.binom.cdf(missed, cases, 1 - sensitivity)
            <= 0.05
            < stats.binom.cdf(missed + 1, cases, 1 - sensitivity)
        )
    assert (f"takes at least {needed} cases" in point.entry()["sentence"]) is not supported


def test_a_supported_sensitivity_holds_for_new_cases() -> None:
    generator = np.random.default_rng(0)
    held = []
    for _ in range(400):
        given = answers(generator.beta(4, 2, 100), generator.beta(2, 4, 100))
        threshold = operating_point(given, np.arange(200), 0.95).threshold
        held.append(stats.beta(4, 2).sf(threshold) >= 0.95)
    assert 0.93 <= np.mean(held) <= 1.0


def test_a_group_is_one_case_and_missed_where_one_image_is() -> None:
    given = answers(np.array([0.2, 0.9, 0.8, 0.7]), np.array([0.1]))
    point = operating_point(given, np.array([0, 0, 1, 2, 3]), 0.9)
    assert (point.cases, point.missed) == (3, 0)
    assert 0.1 < point.threshold < 0.2


def test_figures_at_a_threshold() -> None:
    given = answers(np.array([0.2, 0.6, 0.7, 0.9]), np.array([0.1, 0.4, 0.65]))
    found = at_threshold(given, np.arange(7), 0.5)
    for metric, value, count in ((found["sensitivity"], 3 / 4, 4), (found["specificity"], 2 / 3, 3)):
        assert metric["value"] is not None
        assert metric["intervals"] is not None
        assert metric["wilson"] is not None
        assert metric["value"] == pytest.approx(value)
        assert metric["images"] == count
        low, high = metric["intervals"]
        assert 0 <= low <= metric["value"] <= high <= 1
        assert metric["wilson"][0] < metric["value"] < metric["wilson"][1]


def test_without_malignant_images_there_is_no_point() -> None:
    given = Answers(np.array([0, 0]), np.full((2, 3), 1 / 3), CLASSES)
    with pytest.raises(ConfigError, match="of which the validation split has no image"):
        operating_point(given, np.arange(2), 0.95)
    with pytest.raises(ConfigError, match="the classes are cat, dog"):
        operating_point(Answers(np.array([0]), np.full((1, 2), 0.5), ("cat", "dog")), np.arange(1), 0.95)
