"""The pruners: the default pruner, and Optuna's pruners on the best values so far."""

from itertools import accumulate
from typing import Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.trial import TrialState

from busi_tune.search.pruner import BestHyperbandPruner, BestMedianPruner, StalledPruner


def asked(direction: Literal["minimize", "maximize"], complete: list[float], values: list[float]) -> bool:
    """Whether a trial with reported `values` is pruned, given the values of completed trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=direction, pruner=StalledPruner(1))
    for value in complete:
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={5: value}))
    # The next trial reported no epochs, so it was not trained.
    study.add_trial(optuna.trial.create_trial(value=-9.0 if direction == "minimize" else 9.0))
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.0}))
    trial = study.ask()
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
    return trial.should_prune()


def test_each_trial_waits_for_its_own_scheduler() -> None:
    pruner = StalledPruner(4)
    own = optuna.trial.create_trial(
        value=1.0, params={"scheduler_patience": 7}, distributions={"scheduler_patience": IntDistribution(2, 9)}
    )
    assert pruner.waits(own) == 9
    assert pruner.waits(optuna.trial.create_trial(value=1.0)) == 6


@pytest.mark.parametrize(
    ("complete", "values", "pruned"),
    [
        ([0.5], [0.9, 0.8, 0.8, 0.8, 0.8], True),
        ([0.5, 0.9], [0.9, 0.8, 0.8, 0.8, 0.8], True),
        # It improved within the last three epochs, or it is the best, or it ties with the best.
        ([0.5], [0.9, 0.8, 0.8, 0.8], False),
        ([0.5], [0.9, 0.8, 0.8, 0.8, 0.79], False),
        ([0.5], [0.9, 0.4, 0.4, 0.4, 0.4], False),
        ([0.5], [0.9, 0.5, 0.5, 0.5, 0.5], False),
        # No completed trial to compare with, or too few epochs.
        ([], [0.9, 0.8, 0.8, 0.8, 0.8], False),
        ([0.5], [], False),
        ([0.5], [0.8], False),
    ],
)
def test_a_trial_that_stalled_behind_the_best_is_pruned(
    complete: list[float], values: list[float], *, pruned: bool
) -> None:
    assert asked("minimize", complete, values) == pruned
    assert asked("maximize", [-value for value in complete], [-value for value in values]) == pruned


def curves(seed: int, trials: int, epochs: int) -> list[list[float]]:
    """Validation curves with improvements, plateaus and overfitting."""
    generator = np.random.default_rng(seed)
    levels = generator.uniform(0.3, 1.0, (trials, 1))
    steps = generator.normal(-0.02, 0.15, (trials, epochs)).cumsum(axis=1)
    rounded: list[list[float]] = (levels + np.abs(steps)).round(2).tolist()
    return rounded


def decisions(pruner: BasePruner, values: list[list[float]], *, maximise: bool) -> list[tuple[bool, dict[str, object]]]:
    """A pruner's decision and stored value after each reported value of trials that run one after the other."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if maximise else "minimize", pruner=pruner, study_name="study")
    better = max if maximise else min
    found: list[tuple[bool, dict[str, object]]] = []
    for own in values:
        trial, pruned = study.ask(), False
        for epoch, value in enumerate(own, start=1):
            trial.report(value, epoch)
            pruned = trial.should_prune()
            found.append((pruned, study.trials[-1].system_attrs))
            if pruned:
                break
        study.tell(trial, None if pruned else better(own), TrialState.PRUNED if pruned else TrialState.COMPLETE)
    return found


@pytest.mark.parametrize("maximise", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["stalled", "median", "hyperband"])
def test_raw_values_are_judged_as_best_values_so_far_are_by_optuna(name: str, seed: int, *, maximise: bool) -> None:
    """Earlier versions reported the best value so far to Optuna's own pruners."""
    ours: dict[str, BasePruner] = {
        "stalled": StalledPruner(1),
        "median": BestMedianPruner(n_startup_trials=3, n_min_trials=3),
        "hyperband": BestHyperbandPruner(min_resource=2, max_resource=12),
    }
    before: dict[str, BasePruner] = {
        "stalled": StalledPruner(1),
        "median": MedianPruner(n_startup_trials=3, n_min_trials=3),
        "hyperband": HyperbandPruner(min_resource=2, max_resource=12),
    }
    values = curves(seed, 24, 12)
    best = [list(accumulate(own, max if maximise else min)) for own in values]
    assert best != values
    expected = decisions(before[name], best, maximise=maximise)
    assert decisions(ours[name], values, maximise=maximise) == expected
    assert {pruned for pruned, _ in expected} == {False, True}
