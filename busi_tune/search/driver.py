"""The driver of a study: it asks Optuna for trials, reports, prunes and finishes them, while workers train."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.errors import RunError
from busi_tune.progress import Progress
from busi_tune.results import Json, StudyFile
from busi_tune.search.plan import IDENTITY, TRIALS, Plan, trial_rows
from busi_tune.search.trials import OpenTrial, Trials, epochs_run, finished, ranked, running
from busi_tune.training import run_folder
from busi_tune.training.epochs import Epoch
from busi_tune.workers.claims import Claims
from busi_tune.workers.job_list import FAILURES
from busi_tune.workers.jobs import Ended, Job, Trained, Workers, work_through

# trials.csv is rewritten when it has grown by this share. Rewriting it for each trial would slow a long study.
GROWTH = 0.05
# The number of ended trials that stay on the screen, beside the best one.
SHOWN = 6


@dataclass(frozen=True)
class Search:
    """A study folder that is open for writing, with its trials, data and workers."""

    folder: Path
    plan: Plan
    dataset: Dataset
    progress: Progress
    trials: Trials
    workers: Workers
    claims: Claims

    def trial_folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / TRIALS / f"{number:04d}"

    def config_of(self, params: Mapping[str, object]) -> Config:
        """The configuration of a trial with these parameters.

        Raises:
            RunError: the file of weights has changed since the study began.
        """
        config = self.plan.trial_config(params)
        known = self.plan.weights.get(config.weights, "")
        now = run_folder.weights_sha256(config.weights)
        if now != known:
            raise RunError(
                f"The weights in {config.weights} have changed since the study in {self.folder} began (SHA-256 "
                f"{known[:16]} -> {now[:16]}); restore them, or start over with --overwrite."
            )
        return config

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other drivers from asking for trials and from writing the table.

        Raises:
            RunError: another driver has restarted the study.
        """
        if not self.trials.database.shared:
            # With a database file, the driver already holds the study's lock until it ends.
            yield
            return
        with locks.locked(self.folder / locks.STUDY):
            if results.read(self.folder / IDENTITY, StudyFile)["study"] != self.trials.study.study_name:
                raise RunError(f"Another driver has started the study in {self.folder} over; run the command again.")
            yield


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits after which no new trial starts. Trials that have started continue."""

    trials: int
    seconds: float | None = None
    epochs: int | None = None

    def allows(self, begun: int, epochs: int, elapsed: float) -> bool:
        """Whether a new trial may start after `begun` trials, `epochs` epochs and `elapsed` seconds in total."""
        return (
            begun < self.trials
            and (self.epochs is None or epochs < self.epochs)
            and (self.seconds is None or elapsed < self.seconds)
        )


@dataclass
class _Training:
    """A trial in training, the last epoch for which pruning was decided, and the records so far."""

    opened: OpenTrial
    decided: int
    records: Sequence[Epoch] = ()
    pruned: bool = False


@dataclass
class Driver:
    """Runs trials until the budget is spent; the `keep` best trials keep their checkpoints."""

    search: Search
    budget: Budget
    keep: int
    started: float = field(default_factory=time.monotonic)
    training: dict[str, _Training] = field(default_factory=dict)
    # Numbers of the ended trials, and of those ended trials that may still have checkpoints.
    ended: set[int] = field(default_factory=set)
    holding: set[int] = field(default_factory=set)
    tabled: int = 0
    shown: int = -1
    # The rows of the trials that ended here and are on the screen.
    rows: dict[int, list[object]] = field(default_factory=dict)

    def run(self) -> None:
        """Run the study. When this returns, every trial that started here has ended.

        Raises:
            FileError: the database or a folder cannot be written.
        """
        search = self.search
        # Otherwise the garbage collector scans the objects of all imported modules, many times a second.
        gc.freeze()
        try:
            work_through(search.workers, self._next_job, self._trained, self._ended, search.progress)
        finally:
            gc.unfreeze()
            search.claims.release_all()
        self.clean_up()
        search.progress.table((), ())
        search.progress.close("trials")

    def has_work(self) -> bool:
        """Whether a trial is unfinished or a new trial may start."""
        trials = self.search.trials.all()
        return bool(running(trials)) or self._may_begin(trials)

    def clean_up(self) -> None:
        """Write the table of all drivers' trials, and delete the checkpoints that need not be kept."""
        with self.search.alone():
            trials = self.search.trials.all()
            self._write_table(trials)
        self._forget(trials)

    def _next_job(self) -> Job | None:
        """The job of an abandoned trial, else of a new trial if the budget allows one."""
        search, opened = self.search, None
        with search.alone():
            trials = search.trials.all()
            left = self._left_behind(trials)
            while left is None and opened is None and self._may_begin(trials):
                opened = search.trials.ask()
                trials = trials if opened else search.trials.all()
            if opened is not None:
                claimed = search.claims.take(opened.number)
                assert claimed, f"trial {opened.number} is new, and held by another driver"
            self._show(trials)
            self._tidy(trials)
        found = left or opened
        return None if found is None else self._job(found)

    def _may_begin(self, trials: Sequence[FrozenTrial]) -> bool:
        begun = sum(trial.state != TrialState.WAITING for trial in trials)
        epochs = sum(epochs_run(trial) for trial in trials)
        return self.budget.allows(begun, epochs, time.monotonic() - self.started)

    def _left_behind(self, trials: Sequence[FrozenTrial]) -> OpenTrial | None:
        """A running trial whose lock no driver holds, because its driver was killed."""
        claims = self.search.claims
        for trial in running(trials):
            if claims.take(trial.number):
                opened = self.search.trials.resume(trial.number)
                if opened is not None:
                    return opened
                claims.release(trial.number)
        return None

    def _job(self, opened: OpenTrial) -> Job:
        plan = self.search.plan
        config = self.search.config_of(opened.trial.params)
        job = Job(f"trial {opened.number}", self.search.trial_folder(opened.number), config, plan.trial_epochs)
        self.training[job.name] = _Training(opened, decided=max(0, opened.reported - 1))
        return job

    def _trained(self, event: Trained) -> bool:
        """Report the epochs that the study lacks; return whether the trial continues.

        Pruning is decided once per epoch. A kill can lose the last reported epoch or the decision on it, so a driver
        that resumes the trial repeats this decision.
        """
        search, training = self.search, self.training[event.job.name]
        training.records = event.records
        records = event.records[: search.plan.trial_epochs]
        if event.new:
            show_epoch(search, event)
            self._show_trials()
        for epoch in range(training.decided + 1, len(records) + 1):
            search.trials.report(training.opened, epoch, getattr(records[epoch - 1], search.plan.metric))
            # Pruning in the last epoch saves nothing, but Hyperband must be asked in every epoch.
            if epoch < search.plan.trial_epochs or search.plan.pruner == "hyperband":
                training.pruned = search.trials.should_prune(training.opened, epoch)
            training.decided = epoch
        return not training.pruned

    def _ended(self, event: Ended) -> None:
        search, training = self.search, self.training[event.job.name]
        if event.error is not None:
            if not isinstance(event.error, FAILURES):
                raise event.error
            search.progress.notice(f"{event.job.name.capitalize()} failed: {event.error}")
            self._tell(event.job, TrialState.FAIL, str(event.error))
            return
        records = training.records
        epochs = len(records)
        # A trial that reached its last epoch, or stopped early, counts as complete.
        if training.pruned and epochs < search.plan.trial_epochs and not event.reason:
            self._tell(event.job, TrialState.PRUNED, "pruned")
            return
        # These pruners compare trials at each epoch, so a trial that stopped early repeats its last value.
        later = range(epochs + 1, search.plan.trial_epochs + 1) if search.plan.pruner in ("median", "hyperband") else ()
        for epoch in later:
            search.trials.report(training.opened, epoch, getattr(records[-1], search.plan.metric))
            if search.plan.pruner == "hyperband":
                # Hyperband records the trial only when asked.
                search.trials.should_prune(training.opened, epoch)
        own_end = epochs <= search.plan.trial_epochs and event.reason
        self._tell(event.job, TrialState.COMPLETE, own_end or "trial epochs done")

    def _tell(self, job: Job, state: TrialState, reason: str) -> None:
        search, training = self.search, self.training.pop(job.name)
        records = training.records[: search.plan.trial_epochs]
        value, epoch = best_so_far(records, search.plan) if records else (None, None)
        best = None if epoch is None else records[epoch - 1]
        facts: dict[str, Json] = {
            "val_accuracy": best.val_accuracy if best else None,
            "val_macro_f1": best.val_macro_f1 if best else None,
            "epochs_run": len(records),
            "best_epoch": epoch,
            "seconds": round(sum(record.seconds for record in records), 3),
            "stop_reason": reason,
        }
        search.trials.tell(training.opened, state, facts, value if state == TrialState.COMPLETE else None)
        search.claims.release(training.opened.number)
        search.progress.close(job.name)
        self.rows[training.opened.number] = self._row(training, state.name.lower())
        self._show_trials()

    def _row(self, training: _Training, state: str) -> list[object]:
        plan = self.search.plan
        records = training.records[: plan.trial_epochs]
        value = best_so_far(records, plan)[0] if records else None
        epochs, seconds = f"{len(records)}/{plan.trial_epochs}", round(sum(record.seconds for record in records))
        params = training.opened.trial.params
        return [training.opened.number, state, value, epochs, seconds, *(params.get(name) for name in plan.space)]

    def _show_trials(self) -> None:
        """Show the running trials, the last ended ones, and the best one of those that ended here."""
        plan = self.search.plan
        ended = [row for row in self.rows.values() if row[1] == "complete" and isinstance(row[2], float)]
        best = min(ended, key=lambda row: plan.sign * float(str(row[2])), default=None)
        self.rows = {
            number: row for number, row in self.rows.items() if row is best or number in list(self.rows)[-SHOWN:]
        }
        rows = [*self.rows.values(), *(self._row(training, "running") for training in self.training.values())]
        marked = [[f"{row[0]} *" if row is best else str(row[0]), *row[1:]] for row in rows]
        self.search.progress.table(("trial", "state", plan.metric, "epochs", "s", *plan.space), marked)

    def _show(self, trials: Sequence[FrozenTrial]) -> None:
        plan, ended = self.search.plan, len(finished(trials))
        if ended == self.shown:
            return
        self.shown = ended
        best = ranked(trials, plan)[:1]
        total = max(self.budget.trials, ended)
        values = [f"best {plan.metric} {trial.value:.4g} (trial {trial.number})" for trial in best]
        text = f"{ended} of {total} trials done, {values[0]}" if values else ""
        self.search.progress.step("trials", ended, total, text)

    def _tidy(self, trials: Sequence[FrozenTrial]) -> None:
        """Write the table if it has grown enough, and delete checkpoints that are no longer kept."""
        ended = len(finished(trials))
        if ended >= self.tabled + max(1, GROWTH * ended):
            self._write_table(trials)
        self._forget(trials)

    def _write_table(self, trials: Sequence[FrozenTrial]) -> None:
        rows = trial_rows(finished(trials), self.search.plan)
        self.tabled = len(rows)
        # No trial has ended yet if all of them are still running in other drivers.
        if rows:
            files.write_csv(self.search.folder / "trials.csv", rows)

    def _forget(self, trials: Sequence[FrozenTrial]) -> None:
        """Delete the checkpoints of ended trials, except those of the best trials and the baseline (trial 0)."""
        ended = {trial.number for trial in finished(trials)}
        self.holding |= ended - self.ended
        self.ended = ended
        best = {trial.number for trial in ranked(trials, self.search.plan)[: self.keep]}
        for number in self.holding - best - {0}:
            if self._forgotten(number):
                self.holding.remove(number)

    def _forgotten(self, number: int) -> bool:
        """Delete a trial's checkpoints, unless a driver or a worker of a killed driver holds the trial.

        Returns whether the checkpoints are gone.
        """
        folder, claims = self.search.trial_folder(number), self.search.claims
        if not (folder / "checkpoints").exists():
            return True
        if not claims.take(number):
            return False
        lock = locks.take(folder / locks.RUN, wait=False)
        if lock is not None:
            run_folder.forget(folder)
            locks.drop(lock)
        claims.release(number)
        return lock is not None


def show_epoch(search: Search, event: Trained) -> None:
    """Show a job's newest epoch."""
    last, metric = event.records[-1], search.plan.metric
    f1 = f"  {metric} {last.val_macro_f1:.3f}" if metric == "val_macro_f1" else ""
    detail = f"{event.job.name}: {last.summary(event.job.until)}{f1}"
    search.progress.step(event.job.name, last.epoch, event.job.until, detail)


def best_so_far(records: Sequence[Epoch], plan: Plan) -> tuple[float, int]:
    """The best value of the plan's metric, and the first epoch that reached it."""
    best = min(records, key=lambda record: (plan.sign * getattr(record, plan.metric), record.epoch))
    return float(getattr(best, plan.metric)), best.epoch
