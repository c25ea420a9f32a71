"""A pruner for trials whose lowered learning rate did not help and that are worse than the best completed trial."""

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# The scheduler lowers the learning rate after its patience + 1 epochs without improvement, and one epoch tries the new
# rate.
MORE_EPOCHS = 2


class StalledPruner(BasePruner):
    """Prunes a trial without improvement for its scheduler's patience + 2 epochs, if a completed trial is better.

    The learning rate has then been lowered, and an epoch at the lower rate did not help. A fixed number of epochs stops
    good trials before their rate is lowered. Trials report their best value so far at each step.
    `scheduler_patience` is that of trials that do not vary it. See docs/explanation/pruner-evidence.md.
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
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        best = sign * trial.intermediate_values[step]
        if best < sign * trial.intermediate_values[step - waits]:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # A trial without epochs was added with a value, not trained.
        values = [other.value for other in complete if other.value is not None and other.intermediate_values]
        return any(sign * value < best for value in values)
