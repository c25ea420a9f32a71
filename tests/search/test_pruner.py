"""The default pruner: it prunes a trial without improvement that is behind the best completed trial."""

from typing import Literal

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from busi_tune.search.pruner import StalledPruner


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
