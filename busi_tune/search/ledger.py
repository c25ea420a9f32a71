"""A study's trials, kept twice: in memory, where they are read and decided on, and in the database, written behind."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from busi_tune.search import study as studies
from busi_tune.search import tables
from busi_tune.search.storage import Database
from busi_tune.search.study import Plan


@dataclass
class _Completed:
    """The completed trials, as a pruner looks at them at each epoch: Optuna's own are slow to see by the thousand."""

    direction: StudyDirection
    trials: list[SimpleNamespace] = field(default_factory=list)

    def get_trials(self, deepcopy: bool, states: Sequence[TrialState]) -> list[SimpleNamespace]:
        """What the median pruner asks of a study."""
        assert not deepcopy
        assert states == (TrialState.COMPLETE,)
        return self.trials


class Ledger:
    """The trials of the study called `name`, which is created where there is none; its first trial is the baseline.

    A new trial is in the database before it is trained. What happens to it then is known here at once, and there after
    `flush`; what other drivers do to theirs is known here after `read`.

    Raises:
        FileError: the database cannot be used.
    """

    def __init__(self, database: Database, name: str, plan: Plan) -> None:
        self.database, self.plan = database, plan
        direction = studies.METRICS[plan.metric]
        # A wrong address or password would not come right by waiting.
        storage = database.call(database.open, patient=False)
        self.stored = database.call(
            lambda: optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True),
            patient=False,
        )
        self.place = storage.engine, self.stored._study_id
        self.memory = optuna.create_study(
            storage=InMemoryStorage(), study_name=name, direction=direction, pruner=studies.make_pruner(plan)
        )
        self.searched = IntersectionSearchSpace(include_pruned=True)
        self.completed = _Completed(direction)
        # The trials that this driver trains, as the database knows them.
        self.own: dict[int, FrozenTrial] = {}
        self.read()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that are running or have ended, in the order of their numbers."""
        return self.memory.get_trials(deepcopy=False, states=(TrialState.RUNNING, *studies.FINISHED))

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that have ended, in the order of their numbers."""
        return self.memory.get_trials(deepcopy=False, states=studies.FINISHED)

    def read(self) -> None:
        """Take in what other drivers have written."""
        running = self.memory.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        others = [trial for trial in running if trial.number not in self.own]
        known = len(self.memory.get_trials(deepcopy=False))
        if not others and self.database.call(lambda: tables.count(*self.place)) == known:
            return
        stored = self.database.call(lambda: self.stored.get_trials(deepcopy=False))
        for trial in others:
            _bring(self.memory._storage, trial, stored[trial.number])
        for trial in stored[known:]:
            self.memory._storage.create_new_trial(self.memory._study_id, trial)
        for number in [*(trial.number for trial in others), *range(known, len(stored))]:
            self._note(stored[number])

    def ask(self) -> optuna.Trial:
        """A new trial with all its parameters; nobody else may ask meanwhile."""
        if not self.memory.get_trials(deepcopy=False):
            self.memory.enqueue_trial({field: getattr(self.plan.config, field) for field in self.plan.space})
        asked = self.memory.ask()
        trial = studies.draw(self.memory, self.plan, asked._trial_id, asked.number, self.searched)
        known = self._copy(trial.number)
        self.database.call(lambda: tables.write(*self.place, {trial.number: (None, known)}))
        self.own[trial.number] = known
        return trial

    def should_prune(self, trial: optuna.Trial, epoch: int) -> bool:
        """Whether the pruner wants to stop `trial` after `epoch`, and may.

        It may not before the trial's scheduler could have acted once, nor while fewer than `N_MIN_TRIALS` trials are
        complete.
        """
        may = epoch > studies.trial_config(self.plan, trial).scheduler_patience + 1
        may = may and len(self.completed.trials) >= studies.N_MIN_TRIALS
        if self.plan.pruner == "hyperband":
            # It learns by being asked, so it is asked even where its answer does not count.
            return trial.should_prune() and may
        known = self.memory._storage.get_trial(trial._trial_id)
        return may and self.memory.pruner.prune(self.completed, known)  # type: ignore[arg-type]

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        """Say how a trial has ended."""
        self.memory.tell(trial.number, value, state=state)
        self._note(self.memory._storage.get_trial(trial._trial_id))

    def _note(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE:
            self.completed.trials.append(SimpleNamespace(intermediate_values=trial.intermediate_values))

    def take(self, number: int) -> optuna.Trial | None:
        """A running trial whose driver is gone, or None where it has ended meanwhile; the caller holds its lock."""
        self.read()
        trial = self._copy(number)
        if trial.state != TrialState.RUNNING:
            return None
        self.own[number] = trial
        return optuna.Trial(self.memory, trial._trial_id)

    def flush(self) -> list[int]:
        """Write what the database has not heard of, all of it or nothing; the numbers of the trials that have ended."""
        trials = self.memory.get_trials(deepcopy=False)
        changed = {number: self._copy(number) for number, known in self.own.items() if trials[number] != known}
        if changed:
            changes = {number: (self.own[number], trial) for number, trial in changed.items()}
            self.database.call(lambda: tables.write(*self.place, changes))
        self.own |= changed
        ended = [number for number, trial in changed.items() if trial.state.is_finished()]
        for number in ended:
            del self.own[number]
        return ended

    def _copy(self, number: int) -> FrozenTrial:
        # Optuna changes the trials that it has given.
        return copy.deepcopy(self.memory.get_trials(deepcopy=False)[number])


def _bring(storage: BaseStorage, old: FrozenTrial, new: FrozenTrial) -> None:
    """Bring a trial from `old`, which `storage` has, to `new`; nothing of a trial is ever taken back."""
    for name, distribution in new.distributions.items():
        if name not in old.distributions:
            value = distribution.to_internal_repr(new.params[name])
            storage.set_trial_param(old._trial_id, name, value, distribution)
    for step, value in new.intermediate_values.items():
        storage.set_trial_intermediate_value(old._trial_id, step, value)
    for key, value in new.system_attrs.items():
        storage.set_trial_system_attr(old._trial_id, key, value)
    for key, value in new.user_attrs.items():
        storage.set_trial_user_attr(old._trial_id, key, value)
    if new.state != old.state:
        storage.set_trial_state_values(old._trial_id, new.state, new.values)
