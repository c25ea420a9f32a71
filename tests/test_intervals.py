"""Intervals: they hold the truth as often as they say, and groups come and go together."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from busi_tune.evaluation import intervals
from busi_tune.evaluation.metrics import Answers, numbers, proportions, summarise

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import interval_coverage

CLASSES = ("benign", "malignant", "normal")


def test_intervals_hold_the_truth_in_93_to_97_percent_of_1000_repetitions() -> None:
    """The whole table is printed by tests/benchmarks/interval_coverage.py."""
    held, _ = interval_coverage.coverage(repetitions=1000, groups=90, resamples=600)
    for name in (
        ("accuracy",),
        ("macro_f1",),
        ("balanced_accuracy",),
        ("macro_roc_auc",),
        ("brier",),
        ("per_class", "benign", "recall"),
        ("malignant_vs_rest", "sensitivity"),
        ("malignant_vs_rest", "specificity"),
        ("malignant_vs_rest", "roc_auc"),
        ("benign_vs_malignant", "roc_auc"),
    ):
        assert 0.93 <= held[name] <= 0.97, (name, held[name])


def test_images_of_a_group_come_and_go_together() -> None:
    groups = np.array([5, 2, 5, 9, 2, 5])
    weights = np.concatenate(list(intervals.group_weights(groups, 1000, seed=0)))
    assert weights.shape == (1000, 6)
    for group in (2, 5, 9):
        of_group = weights[:, groups == group]
        assert (of_group == of_group[:, :1]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)


def test_groups_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 30).repeat(4)
    right = (generator.random(30) < 0.7).repeat(4)
    answers = Answers(labels, np.eye(3)[np.where(right, labels, (labels + 1) % 3)], CLASSES)
    own, alone = (
        intervals.bootstrap(answers, groups, 2000)["accuracy",] for groups in (np.arange(30).repeat(4), np.arange(120))
    )
    assert own[1] - own[0] > 1.6 * (alone[1] - alone[0])


def test_a_seed_decides_the_intervals_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, groups = interval_coverage.draw(np.random.default_rng(3), 40)
    first = intervals.bootstrap(answers, groups, 500, seed=1)
    assert intervals.bootstrap(answers, groups, 500, seed=1) == first
    assert intervals.bootstrap(answers, groups, 500, seed=2) != first
    monkeypatch.setattr(intervals, "BLOCK", 1000)
    assert intervals.bootstrap(answers, groups, 500, seed=1) == first


def test_every_metric_has_an_interval_around_it() -> None:
    answers, groups = interval_coverage.draw(np.random.default_rng(4), 60)
    figures, found = summarise(answers), intervals.with_intervals(answers, groups)
    assert found["groups"] == 60
    for name, (low, high) in intervals.bootstrap(answers, groups, 500).items():
        assert low <= numbers(figures)[name] <= high, name
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_calibrated_model_may_have_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet((2, 1, 1), size=150)
    labels = np.array([generator.choice(3, p=row) for row in probabilities])
    error = ("calibration_error",)
    low, high = intervals.bootstrap(Answers(labels, probabilities, CLASSES), np.arange(150), 1000)[error]
    assert low == 0 < high
    sure = Answers(labels, np.eye(3)[probabilities.argmax(axis=1)], CLASSES)
    low, high = intervals.bootstrap(sure, np.arange(150), 1000)[error]
    assert 0 < low < 1 - (sure.predicted == labels).mean() < high


def test_one_group_has_no_interval() -> None:
    answers = Answers(np.array([0, 1]), np.eye(3)[[0, 2]], CLASSES)
    assert intervals.bootstrap(answers, np.array([4, 4])) == {}


def test_wilson_by_hand() -> None:
    """8 of 10, from Wilson's formula with z = 1.959964."""
    assert intervals.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert intervals.wilson(0, 5)[0] == 0
    assert intervals.wilson(5, 5)[1] == 1


def test_wilsons_interval_is_given_for_plain_proportions() -> None:
    answers, groups = interval_coverage.draw(np.random.default_rng(5), 50)
    found = intervals.with_intervals(answers, groups)["wilson"]
    hits, total = proportions(answers)["malignant_vs_rest", "sensitivity"]
    assert found["malignant_vs_rest"]["sensitivity"] == list(intervals.wilson(hits, total))
    assert "macro_f1" not in found


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_few_groups_have_wide_intervals_and_no_error(groups: int) -> None:
    for seed in range(10):
        answers, group = interval_coverage.draw(np.random.default_rng(seed), groups)
        for low, high in intervals.bootstrap(answers, group, 300).values():
            assert 0 <= low <= high
