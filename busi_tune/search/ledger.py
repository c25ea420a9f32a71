"""A study's trials, kept twice: in memory, where they are read and decided on, and in the database, written behind."""

import copy
from bisect import insort
from collections.abc import Sequence

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from busi_tune.search import studies, tables
from busi_tune.search.recent import Completed, Recent
from busi_tune.search.storage import Database
from busi_tune.search.studies import Plan

# The greatest id that a database can give to a trial.
MOST = 2**31 - 1


class Ledger:
    """The trials of the study called `name`, which is created where there is none; its first trial is the baseline.

    What happens to a trial of this driver is known here at once, and in the database after `flush`; what other drivers
    do to theirs is known here after `read`. Nothing that is asked for each trial or epoch walks through all trials.

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
        self.storage, self.place = storage, (storage.engine, self.stored._study_id)
        self.memory = optuna.create_study(
            storage=InMemoryStorage(), study_name=name, direction=direction, pruner=studies.make_pruner(plan)
        )
        self.recent = Recent(name, self.memory._storage, pruner=self.memory.pruner)
        self.searched = IntersectionSearchSpace(include_pruned=True)
        self.completed = Completed(direction)
        # The trials that this driver trains, as the database knows them; None where it does not yet.
        self.own: dict[int, FrozenTrial | None] = {}
        # The numbers of all that run or wait, and in their order those of all that sampling learns from.
        self.open: set[int] = set()
        self.learnt: list[int] = []
        self.epochs_ended = 0
        self._take_in(database.call(lambda: self.stored.get_trials(deepcopy=False)))

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that have ended, in the order of their numbers."""
        return self.memory.get_trials(deepcopy=False, states=studies.FINISHED)

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return len(self._known()) - len(self.open)

    @property
    def running(self) -> list[FrozenTrial]:
        """The trials that are running, here or anywhere, in the order of their numbers."""
        known = self._known()
        return [known[number] for number in sorted(self.open) if known[number].state == TrialState.RUNNING]

    @property
    def epochs(self) -> int:
        """How many epochs all trials have had so far."""
        return self.epochs_ended + sum(studies.epochs_run(trial) for trial in self.running)

    @property
    def ranked(self) -> list[FrozenTrial]:
        """The completed trials, the best first; a tie goes to the earlier trial."""
        return self.completed.ranking

    def read(self, *, epochs: bool = False) -> list[int]:
        """Take in what other drivers have begun and ended: the numbers of what has ended.

        The epochs of what they train now are taken in only where asked for.
        """
        known, others = self._known(), self.open - self.own.keys()
        states = self.database.call(lambda: tables.states(*self.place, others, len(known)))
        new = {
            trial_id
            for number, (trial_id, state) in states.items()
            if epochs or number >= len(known) or state != known[number].state
        }
        trials = self._stored(new)
        self._take_in(trials)
        return [trial.number for trial in trials if trial.state.is_finished()]

    def _stored(self, ids: set[int]) -> list[FrozenTrial]:
        """The trials with these ids as the database knows them, in the order of their numbers."""
        if not ids:
            return []
        # All in six queries; Optuna's `get_trial` takes six for each. No id is greater than the last argument.
        read = self.storage._get_trials
        return self.database.call(lambda: read(self.stored._study_id, None, ids, MOST))

    def _known(self) -> list[FrozenTrial]:
        """All trials by their numbers, those that wait, too."""
        return self.memory.get_trials(deepcopy=False)

    def _take_in(self, trials: Sequence[FrozenTrial]) -> None:
        """Bring the study in memory to what the database knows of these trials, which have not ended in memory."""
        known, storage = self._known(), self.memory._storage
        for trial in trials:
            if trial.number < len(known):
                _bring(storage, known[trial.number], trial)
            else:
                storage.create_new_trial(self.memory._study_id, trial)
            self.open.add(trial.number)
            if trial.state.is_finished():
                self._close(trial)

    def _close(self, trial: FrozenTrial) -> None:
        self.open.remove(trial.number)
        self.epochs_ended += studies.epochs_run(trial)
        if trial.state != TrialState.FAIL:
            insort(self.learnt, trial.number)
        if trial.state == TrialState.COMPLETE:
            self.completed.add(trial)

    def ask(self) -> optuna.Trial:
        """A new trial with all its parameters; nobody else may ask before it is in the database, too."""
        if not self._known():
            self.memory.enqueue_trial({field: getattr(self.plan.config, field) for field in self.plan.space})
        asked = self.memory.ask()
        problem = studies.impossible(self.plan, asked._fixed_params)
        if problem:
            self.database.progress.notice(f"Trial {asked.number} was enqueued and cannot be: {problem} It is drawn.")
            self.memory._storage.set_trial_system_attr(asked._trial_id, "fixed_params", {})
        self.open.add(asked.number)
        running = [trial.number for trial in self.running]
        self.recent.look(self._known(), running, self.learnt, self.ranked)
        studies.draw(self.recent, self.plan, asked._trial_id, asked.number, self.searched)
        self.own[asked.number] = None
        return optuna.Trial(self.memory, asked._trial_id)

    def should_prune(self, trial: optuna.Trial, epoch: int) -> bool:
        """Whether the pruner wants to stop `trial` after `epoch`, and may.

        It may not before the trial's scheduler could have acted once, nor while fewer than `N_MIN_TRIALS` trials are
        complete. A trial that was to stop is to stop, whoever asks again: Hyperband itself would answer otherwise.
        """
        if trial.user_attrs.get("pruned_at") == epoch:
            return True
        decided = self._decides_to_prune(trial, epoch)
        if decided:
            trial.set_user_attr("pruned_at", epoch)
        return decided

    def _decides_to_prune(self, trial: optuna.Trial, epoch: int) -> bool:
        patience = trial.params.get("scheduler_patience", self.plan.config.scheduler_patience)
        may = epoch > patience + 1 and len(self.ranked) >= studies.N_MIN_TRIALS
        if self.plan.pruner == "hyperband":
            # It learns by being asked, so it is asked even where its answer does not count.
            return trial.should_prune() and may
        known = self.memory._storage.get_trial(trial._trial_id)
        return may and self.memory.pruner.prune(self.completed, known)  # type: ignore[arg-type]

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        """Say how a trial has ended."""
        self.memory.tell(trial.number, value, state=state)
        self._close(self.memory._storage.get_trial(trial._trial_id))

    def take(self, number: int) -> optuna.Trial | None:
        """A running trial whose driver is gone, or None where it has ended meanwhile; the caller holds its lock."""
        if number in self.open:
            find = self.storage.get_trial_id_from_study_id_trial_number
            self._take_in(self._stored({self.database.call(lambda: find(self.stored._study_id, number))}))
        trial = self._copy(number)
        if trial.state != TrialState.RUNNING:
            return None
        self.own[number] = trial
        return optuna.Trial(self.memory, trial._trial_id)

    def flush(self) -> list[int]:
        """Write what the database has not heard of, all of it or nothing; the numbers of the trials that have ended."""
        known = self._known()
        changed = {number: self._copy(number) for number, stored in self.own.items() if known[number] != stored}
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
        return copy.deepcopy(self._known()[number])


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
