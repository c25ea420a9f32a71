"""Pruners that compare the best values so far. A trial reports the value of each epoch, not its best value so far."""

from itertools import accumulate

import optuna
from optuna import Study
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

# The scheduler lowers the learning rate after its patience + 1 epochs without improvement. One more epoch tries the new
# rate.
MORE_EPOCHS = 2


def best_values(trial: FrozenTrial, direction: StudyDirection) -> dict[int, float]:
    """The best value up to each reported step of a trial."""
    better = min if direction == StudyDirection.MINIMIZE else max
    steps = sorted(trial.intermediate_values)
    values = accumulate((trial.intermediate_values[step] for step in steps), better)
    return dict(zip(steps, values, strict=True))


class StalledPruner(BasePruner):
    """Prunes a trial without improvement for its scheduler's patience + 2 epochs, if a completed trial is better.

    The learning rate has then been lowered, and an epoch at the lower rate did not help. A fixed number of epochs stops
    good trials before their rate is lowered. `scheduler_patience` applies to trials that do not vary it. See
    docs/explanation/pruner-evidence.md.
    """

    def __init__(self, scheduler_patience: int) -> None:
        self.scheduler_patience = scheduler_patience

    def waits(self, trial: FrozenTrial) -> int:
        """The number of epochs without improvement after which the trial may be pruned."""
        return int(trial.params.get("scheduler_patience", self.scheduler_patience)) + MORE_EPOCHS

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported step."""
        step, waits = trial.last_step, self.waits(trial)
        if step is None or step - waits not in trial.intermediate_values:
            return False
        values = best_values(trial, study.direction)
        if values[step] != values[step - waits]:
            return False
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # A trial without epochs was added with a value, not trained.
        ended = [other.value for other in complete if other.value is not None and other.intermediate_values]
        return any(sign * value < sign * values[step] for value in ended)


class BestMedianPruner(MedianPruner):
    """Optuna's median pruner on the best values so far: a trial's own, and those of others at the same step.

    Completed trials no longer change, so a study in memory keeps their best values. Each call adds the trials that were
    completed after the previous call.
    """

    def __init__(self, n_startup_trials: int, n_min_trials: int) -> None:
        super().__init__(n_startup_trials=n_startup_trials, n_min_trials=n_min_trials)
        self.known: set[int] = set()
        self.completed: Study | None = None

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported step."""
        if self.completed is None:
            self.completed = optuna.create_study(direction=study.direction)
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if other.number not in self.known:
                self.known.add(other.number)
                values = best_values(other, study.direction)
                self.completed.add_trial(create_trial(value=other.value, intermediate_values=values))
        return super().prune(self.completed, trial)


class BestHyperbandPruner(HyperbandPruner):
    """Optuna's Hyperband on the best values so far. It stores the compared values."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported step."""
        # Changing the trial is safe, because `Trial.should_prune` passes a new copy in each call.
        trial.intermediate_values = best_values(trial, study.direction)
        return super().prune(study, trial)
