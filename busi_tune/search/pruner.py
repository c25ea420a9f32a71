"""A pruner that stops a trial which no longer improves and is worse than the best completed trial."""

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class StalledPruner(BasePruner):
    """Prunes a trial that did not improve for `patience` epochs and is worse than the best completed trial.

    Trials report their best value so far at each step. Early values predict final values poorly where learning curves
    cross, so a trial is never pruned while it improves. docs/explanation/pruner-evidence.md has the measurements.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported step."""
        step = trial.last_step
        if step is None or step - self.patience not in trial.intermediate_values:
            return False
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        best = sign * trial.intermediate_values[step]
        if best < sign * trial.intermediate_values[step - self.patience]:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # A trial without epochs was added with a value, not trained.
        values = [other.value for other in complete if other.value is not None and other.intermediate_values]
        return any(sign * value < best for value in values)
