"""The trials of a study in Optuna: created, reported, pruned and finished through Optuna's public interface."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from busi_tune.errors import ConfigError, FileError
from busi_tune.files import sha256_bytes
from busi_tune.results import Json
from busi_tune.search.plan import FACTS, Plan
from busi_tune.search.pruner import BestHyperbandPruner, BestMedianPruner, StalledPruner
from busi_tune.search.sampler import SeededTPESampler
from busi_tune.search.storage import Database

# The median and Hyperband pruners prune only after this many completed trials, so that one trial cannot decide alone.
N_MIN_TRIALS = 3
# User attributes that preserve a pruner's decision across a kill.
PRUNED_AT, RUNGS = "pruned_at", "rungs"
# User attributes of an ended trial: its number of epochs, and the SHA-256 of its result.
EPOCHS_RUN, FINGERPRINT = "epochs_run", "sha256"
# The prefix of the system attributes in which successive halving (and thus Hyperband) stores the compared values.
RUNG = "completed_rung_"


@dataclass
class OpenTrial:
    """A running trial of this driver, with its state in the database.

    `undecided` is true if Hyperband compared the trial in its last epoch and a kill lost the decision.
    """

    trial: optuna.Trial
    reported: int = 0
    pruned_at: int | None = None
    rungs: int = 0
    undecided: bool = False

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return self.trial.number


class Trials:
    """The trials of the study `name`, whose first trial is the baseline. The study is created if it does not exist.

    The caller holds the study's lock.

    Raises:
        FileError: the database cannot be used.
    """

    def __init__(self, database: Database, name: str, plan: Plan) -> None:
        self.database, self.plan = database, plan
        # Retries would not help with a wrong address or password.
        storage = database.call(database.open, patient=False)
        self.study = database.call(lambda: _opened(storage, name, plan), patient=False)
        if database.call(lambda: self.study.direction, patient=False) != plan.direction:
            raise FileError(f"The study's database {database.name} has another direction; restore it or start over.")
        known = self.all()
        if [trial.number for trial in known] != list(range(len(known))):
            raise FileError(f"The study's database {database.name} lacks trials; restore it or start over.")
        damaged = [trial.number for trial in known if not _is_sound(trial)]
        if damaged:
            raise FileError(
                f"The study's database {database.name} is damaged (trial {damaged[0]}); restore it or start over."
            )
        if not known:
            first = {field: getattr(plan.config, field) for field in plan.space}
            self.database.call(lambda: self.study.enqueue_trial(first, skip_if_exists=True))

    def describe(self, data: str) -> None:
        """Store the metric, the folder of the images, the architecture and the split, for programs that show the study.

        Values of an earlier call are kept, so they describe the beginning of the study.
        """
        plan, study = self.plan, self.study
        varied = plan.space.get("arch")
        names = map(str, varied.choices) if isinstance(varied, CategoricalDistribution) else (plan.config.arch,)
        known = self.database.call(lambda: study.user_attrs)
        for key, text in {"data": data, "architecture": ", ".join(names), "split": plan.split}.items():
            if key not in known:
                self.database.call(partial(study.set_user_attr, key, text))
        if self.database.call(lambda: study.metric_names) is None:
            self.database.call(lambda: study.set_metric_names([plan.metric]))

    def all(self) -> list[FrozenTrial]:
        """All trials in the database, in the order of their numbers."""
        return self.database.call(lambda: self.study.get_trials(deepcopy=False))

    def ask(self) -> OpenTrial | None:
        """A new trial with all its parameters, or None if it was enqueued with invalid values.

        The caller holds the study's lock.
        """
        return self._with_parameters(OpenTrial(self.database.call(self.study.ask)))

    def resume(self, number: int) -> OpenTrial | None:
        """A running trial whose driver was killed, or None if the trial has ended. The caller holds its lock."""
        known = self.all()[number]
        if known.state != TrialState.RUNNING:
            return None
        rungs = known.user_attrs.get(RUNGS, 0)
        found = OpenTrial(
            trial=self.database.call(lambda: reopened(self.study, known)),
            reported=known.last_step or 0,
            pruned_at=known.user_attrs.get(PRUNED_AT),
            rungs=rungs,
            undecided=_rungs(known) > rungs,
        )
        return self._with_parameters(found)

    def _with_parameters(self, opened: OpenTrial) -> OpenTrial | None:
        try:
            for name, distribution in self.plan.space.items():
                self.database.call(partial(suggest, opened.trial, name, distribution), own=ValueError)
            self.plan.trial_config(opened.trial.params)
        except (ConfigError, ValueError) as error:
            reason = f"It was enqueued with invalid values: {error}"
            self.database.progress.notice(f"Trial {opened.number} failed: {reason}")
            self.tell(opened, TrialState.FAIL, {"epochs_run": 0, "stop_reason": reason})
            return None
        return opened

    def report(self, opened: OpenTrial, epoch: int, value: float) -> None:
        """Report the value of `epoch`, unless the database already has it."""
        if epoch > opened.reported:
            self.database.call(lambda: opened.trial.report(value, epoch))
            opened.reported = epoch

    def should_prune(self, opened: OpenTrial, epoch: int) -> bool:
        """Whether to stop a trial after `epoch`, its last reported one.

        A trial is never stopped before its scheduler could have acted once. A decision to stop is stored, because the
        pruner may decide differently when asked again.
        """
        if opened.pruned_at == epoch:
            return True
        may = epoch > opened.trial.params.get("scheduler_patience", self.plan.config.scheduler_patience) + 1
        if self.plan.pruner == "hyperband":
            # Hyperband records each comparison, so it is asked even if its decision is ignored.
            decided = self._asked_hyperband(opened) and may and len(ranked(self.all(), self.plan)) >= N_MIN_TRIALS
        else:
            decided = may and self.database.call(opened.trial.should_prune)
        if decided:
            opened.pruned_at = epoch
            self.database.call(lambda: opened.trial.set_user_attr(PRUNED_AT, epoch))
        elif self.plan.pruner == "hyperband":
            self._keep_rungs(opened)
        return decided

    def _asked_hyperband(self, opened: OpenTrial) -> bool:
        if not opened.undecided:
            return self.database.call(opened.trial.should_prune)
        opened.undecided = False
        return decided_before(self.all(), opened, self.study.study_name, self.plan)

    def _keep_rungs(self, opened: OpenTrial) -> None:
        rungs = _rungs(self.all()[opened.number])
        if rungs > opened.rungs:
            opened.rungs = rungs
            self.database.call(lambda: opened.trial.set_user_attr(RUNGS, rungs))

    def tell(self, opened: OpenTrial, state: TrialState, facts: dict[str, Json], value: float | None = None) -> None:
        """Record the end of a trial. `facts` become user attributes; `value` is given for a complete trial only."""
        if facts:
            facts = facts | {FINGERPRINT: fingerprint(state, opened.trial.params, facts, value)}
        for key, fact in facts.items():
            self.database.call(partial(opened.trial.set_user_attr, key, fact))
        # An earlier attempt may have succeeded although its reply was lost.
        self.database.call(lambda: self.study.tell(opened.trial, value, state, skip_if_finished=True))


def fingerprint(
    state: TrialState, params: Mapping[str, object], facts: Mapping[str, object], value: float | None
) -> str:
    """The SHA-256 of an ended trial's result, which reveals a later change in the database."""
    kept = {name: facts[name] for name in FACTS if name in facts}
    known = [state.name, dict(params), kept, value if state == TrialState.COMPLETE else None]
    return sha256_bytes(json.dumps(known, sort_keys=True).encode())


def _is_sound(trial: FrozenTrial) -> bool:
    """Whether the values of a trial have the right types."""
    values = [*(trial.values or []), *trial.intermediate_values.values()]
    whole = (trial.user_attrs.get(name, 0) for name in (EPOCHS_RUN, PRUNED_AT, RUNGS))
    return all(isinstance(value, float) for value in values) and all(isinstance(number, int) for number in whole)


def _opened(storage: RDBStorage, name: str, plan: Plan) -> optuna.Study:
    """The study `name`, created if it does not exist."""
    sampler, pruner = SeededTPESampler(plan.space, plan.config.seed), make_pruner(plan)
    try:
        # `create_study` would write, and a finished study may be on a read-only disk.
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    except KeyError:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction=plan.direction,
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )


def reopened(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A running trial in the form that `ask` returns. Optuna has no public way to resume one."""
    return optuna.Trial(study, trial._trial_id)


def make_pruner(plan: Plan) -> BasePruner:
    """The pruner that `plan` names."""
    if plan.pruner == "none":
        return NopPruner()
    if plan.pruner == "hyperband":
        return BestHyperbandPruner(min_resource=min(2, plan.trial_epochs), max_resource=plan.trial_epochs)
    if plan.pruner == "median":
        return BestMedianPruner(n_startup_trials=5, n_min_trials=N_MIN_TRIALS)
    return StalledPruner(plan.config.scheduler_patience)


def decided_before(trials: Sequence[FrozenTrial], opened: OpenTrial, name: str, plan: Plan) -> bool:
    """The decision of Hyperband that a kill lost, reached again in a copy of the study.

    In the copy, the trial has only the comparisons before the lost one. Parameters are left out, because Hyperband
    ignores them.
    """
    copy = optuna.create_study(study_name=name, direction=plan.direction, pruner=make_pruner(plan))
    for trial in trials:
        attributes = trial.system_attrs
        if trial.number == opened.number:
            kept = {f"{RUNG}{rung}" for rung in range(opened.rungs)}
            attributes = {key: value for key, value in attributes.items() if not key.startswith(RUNG) or key in kept}
        copy.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                system_attrs=attributes,
                intermediate_values=trial.intermediate_values,
            )
        )
    return reopened(copy, copy.trials[opened.number]).should_prune()


def _rungs(trial: FrozenTrial) -> int:
    return sum(key.startswith(RUNG) for key in trial.system_attrs)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Draw a parameter's value, unless the trial already has one."""
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            trial.suggest_int(name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            trial.suggest_categorical(name, choices)


def running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials in the state RUNNING, in this driver or another."""
    return [trial for trial in trials if trial.state == TrialState.RUNNING]


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have ended."""
    return [trial for trial in trials if trial.state.is_finished()]


def is_trained(trial: FrozenTrial) -> bool:
    """Whether an ended trial was trained in this study rather than added with a value."""
    return EPOCHS_RUN in trial.user_attrs


def ranked(trials: Sequence[FrozenTrial], plan: Plan) -> list[FrozenTrial]:
    """The trained and completed trials, the best first. In a tie, the earlier trial comes first."""
    complete = [
        (plan.sign * trial.value, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None and is_trained(trial)
    ]
    return [trial for _, trial in sorted(complete, key=lambda entry: (entry[0], entry[1].number))]


def epochs_run(trial: FrozenTrial) -> int:
    """The number of a trial's epochs; for a running trial, the number of reported epochs."""
    return int(trial.user_attrs.get(EPOCHS_RUN, len(trial.intermediate_values)))
