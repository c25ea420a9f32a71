"""Importance of parameters: values, intervals, and options without effect."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

import importance_power
from busi_tune.config import Config
from busi_tune.search.importance import FEWEST_TRIALS, importances
from busi_tune.search.space import Space
from busi_tune.training.epochs import Epoch
from busi_tune.training.idle_options import never_acted

SPACE: Space = {**importance_power.SPACE, "class_weights": CategoricalDistribution((True,))}


def trials(count: int, effect: float = 0.3, sign: int = 1) -> list[FrozenTrial]:
    """Trials whose value depends on the learning rate alone, plus one parameter that never varies."""
    return [
        create_trial(
            params={**trial.params, "class_weights": True}, distributions=SPACE, value=sign * (trial.value or 0.0)
        )
        for trial in importance_power.draw(np.random.default_rng(count), count, effect)
    ]


@pytest.mark.parametrize(("direction", "sign"), [(StudyDirection.MINIMIZE, 1), (StudyDirection.MAXIMIZE, -1)])
def test_the_only_parameter_that_matters_comes_first_and_apart(direction: StudyDirection, sign: int) -> None:
    found = importances(trials(60, sign=sign), SPACE, direction, seed=0)
    assert found
    assert next(iter(found)) == "learning_rate"
    # A parameter that never varies has no importance.
    assert set(found) == {"learning_rate", "weight_decay", "scheduler_patience"}
    assert sum(each["importance"] for each in found.values()) == pytest.approx(1)
    assert found["learning_rate"]["low"] > max(found[name]["high"] for name in list(found)[1:])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_where_nothing_matters_nothing_stands_apart() -> None:
    found = importances(trials(60, effect=0), SPACE, StudyDirection.MINIMIZE, seed=0)
    assert found
    first, *others = found.values()
    assert first["low"] < max(each["high"] for each in others)
    assert importances(trials(60, effect=0), SPACE, StudyDirection.MINIMIZE, seed=0) == found
    assert importances(trials(60, effect=0), SPACE, StudyDirection.MINIMIZE, seed=1) != found


def test_equal_values_have_equal_shares() -> None:
    same = [create_trial(params=trial.params, distributions=SPACE, value=0.5) for trial in trials(20)]
    found = importances(same, SPACE, StudyDirection.MAXIMIZE, seed=0)
    assert found
    assert all(each == pytest.approx({"importance": 1 / 3, "low": 1 / 3, "high": 1 / 3}) for each in found.values())


def test_too_few_completed_trials_have_no_importance() -> None:
    few = trials(FEWEST_TRIALS - 1)
    pruned = [
        create_trial(state=TrialState.PRUNED, params=trial.params, distributions=SPACE, value=trial.value)
        for trial in trials(20)
    ]
    assert importances(few + pruned, SPACE, StudyDirection.MINIMIZE, seed=0) is None
    assert importances(few + few[:1] + pruned, SPACE, StudyDirection.MINIMIZE, seed=0)
    fixed: Space = {"class_weights": SPACE["class_weights"]}
    assert importances(trials(20), fixed, StudyDirection.MINIMIZE, seed=0) is None


def history(rates: list[float], losses: list[float] | None = None) -> list[Epoch]:
    """One record for each rate; without `losses`, the validation loss falls in every epoch."""
    fallen = losses or [1 / number for number in range(1, len(rates) + 1)]
    return [
        Epoch(number, 1.0, loss, 0.5, 0.5, rate, 1.0, 1.0)
        for number, (rate, loss) in enumerate(zip(rates, fallen, strict=True), start=1)
    ]


SCHEDULER: Space = {
    "scheduler_patience": IntDistribution(2, 9),
    "scheduler_factor": FloatDistribution(0.1, 0.9),
    "min_learning_rate": FloatDistribution(1e-6, 1e-4, log=True),
    "early_stopping_patience": IntDistribution(3, 9),
}
STEADY = history([1e-3] * 4)
LOWERED = history([1e-3, 1e-3, 5e-4])
AT_ITS_BOUND = history([1e-3, 5e-4, 1e-5])
STOPPED = history([1e-3] * 4, [1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("histories", "idle"),
    [
        ({0: STEADY, 3: STEADY}, list(SCHEDULER)),
        ({0: STEADY, 3: LOWERED}, ["min_learning_rate", "early_stopping_patience"]),
        ({0: AT_ITS_BOUND}, ["early_stopping_patience"]),
        ({0: STOPPED, 3: []}, ["scheduler_patience", "scheduler_factor", "min_learning_rate"]),
        ({0: STOPPED, 3: AT_ITS_BOUND}, []),
        ({0: []}, []),
    ],
)
def test_a_parameter_that_never_acted_is_named(histories: Mapping[int, list[Epoch]], idle: list[str]) -> None:
    configs = {number: Config(early_stopping_patience=3, scheduler_patience=2) for number in histories}
    assert [line.split()[0] for line in never_acted(histories, configs, SCHEDULER)] == idle
    assert never_acted(histories, configs, {"learning_rate": SPACE["learning_rate"]}) == []


def test_what_never_acted_is_one_sentence() -> None:
    configs = {number: Config() for number in range(12)}
    space: Space = {"scheduler_patience": SCHEDULER["scheduler_patience"]}
    assert never_acted(dict.fromkeys(range(12), STEADY), configs, space) == [
        "scheduler_patience had no effect: the learning rate was lowered in none of the 12 trials."
    ]
