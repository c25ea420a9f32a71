"""A study's trials, kept twice: in memory, where they are read and decided on, and in the database, written behind."""

import copy
import itertools

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from busi_tune.search import study as studies
from busi_tune.search.storage import Database, together
from busi_tune.search.study import Plan


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
        self.storage = database.call(database.open, patient=False)
        self.stored = database.call(
            lambda: optuna.create_study(
                storage=self.storage, study_name=name, direction=direction, load_if_exists=True
            ),
            patient=False,
        )
        self.memory = optuna.create_study(
            storage=InMemoryStorage(), study_name=name, direction=direction, pruner=studies.make_pruner(plan)
        )
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
        stored = self.database.call(lambda: self.stored.get_trials(deepcopy=False))
        memory = self.memory._storage
        for trial in self.memory.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            if trial.number not in self.own:
                _bring(memory, trial._trial_id, trial, stored[trial.number])
        for trial in stored[len(self.memory.get_trials(deepcopy=False)) :]:
            memory.create_new_trial(self.memory._study_id, trial)

    def ask(self) -> optuna.Trial:
        """A new trial with all its parameters; nobody else may ask meanwhile."""
        if not self.memory.get_trials(deepcopy=False):
            self.memory.enqueue_trial({field: getattr(self.plan.config, field) for field in self.plan.space})
        asked = self.memory.ask()
        trial = studies.draw(self.memory, self.plan, asked._trial_id, asked.number)
        known = self._copy(trial.number)
        attempts = itertools.count(1)
        self.database.call(lambda: self._enter(known, next(attempts)))
        self.own[trial.number] = known
        return trial

    def _enter(self, trial: FrozenTrial, attempt: int) -> None:
        # An earlier attempt may have written it, with its answer lost.
        if attempt > 1 and len(self.stored.get_trials(deepcopy=False)) > trial.number:
            return
        self.stored._storage.create_new_trial(self.stored._study_id, trial)

    def take(self, number: int) -> optuna.Trial | None:
        """A running trial whose driver is gone, or None where it has ended meanwhile; the caller holds its lock."""
        self.read()
        trial = self._copy(number)
        if trial.state != TrialState.RUNNING:
            return None
        self.own[number] = trial
        return optuna.Trial(self.memory, trial._trial_id)

    def _copy(self, number: int) -> FrozenTrial:
        # Optuna changes the trials that it has given.
        return copy.deepcopy(self.memory.get_trials(deepcopy=False)[number])

    def flush(self) -> list[int]:
        """Write what the database has not heard of, all of it or nothing; the numbers of the trials that have ended."""
        trials = self.memory.get_trials(deepcopy=False)
        changed = {number: self._copy(number) for number, known in self.own.items() if trials[number] != known}
        if changed:
            self.database.call(lambda: self._write(changed))
        self.own |= changed
        ended = [number for number, trial in changed.items() if trial.state.is_finished()]
        for number in ended:
            del self.own[number]
        return ended

    def _write(self, changed: dict[int, FrozenTrial]) -> None:
        storage = self.stored._storage
        with together(self.storage):
            for number, trial in changed.items():
                there = storage.get_trial_id_from_study_id_trial_number(self.stored._study_id, number)
                # An earlier attempt may have written it, with its answer lost.
                if not (trial.state.is_finished() and storage.get_trial(there).state.is_finished()):
                    _bring(storage, there, self.own[number], trial)


def _bring(storage: BaseStorage, trial_id: int, old: FrozenTrial, new: FrozenTrial) -> None:
    """Bring a trial in `storage` from `old` to `new`; nothing of a trial is ever taken back."""
    for name, distribution in new.distributions.items():
        if name not in old.distributions:
            storage.set_trial_param(trial_id, name, distribution.to_internal_repr(new.params[name]), distribution)
    for step, value in new.intermediate_values.items():
        if step not in old.intermediate_values:
            storage.set_trial_intermediate_value(trial_id, step, value)
    for key, value in new.system_attrs.items():
        if key not in old.system_attrs:
            storage.set_trial_system_attr(trial_id, key, value)
    for key, value in new.user_attrs.items():
        if key not in old.user_attrs:
            storage.set_trial_user_attr(trial_id, key, value)
    if new.state != old.state:
        storage.set_trial_state_values(trial_id, new.state, new.values)
