"""Drives a study: one process asks, reports, prunes and tells, while workers train."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files
from busi_tune.data.dataset import Dataset
from busi_tune.errors import ConfigError, OutOfMemory, TrainingDiverged, WorkerLost
from busi_tune.progress import Progress
from busi_tune.search import studies
from busi_tune.search.ledger import Ledger
from busi_tune.search.studies import Plan
from busi_tune.training import run_folder
from busi_tune.training.epochs import Epoch
from busi_tune.workers.jobs import Ended, Job, Trained, Workers, work_through

# A trial with one of these has failed; any other error stops the study.
FAILURES = (TrainingDiverged, ConfigError, OutOfMemory, WorkerLost)
# A table of many trials is not written anew for each of them, but when it has grown by this share.
GROWTH = 0.05
# Who holds this lock is at what follows the trials, and may need any checkpoint.
NEEDED = ".needed.lock"
# Seconds that the database may lag behind.
LAG = 1.0
# Seconds until a driver looks again for trials that others have left behind: on a shared disk each look has its price.
LOOK = 10.0


@dataclass(frozen=True)
class Search:
    """A study folder that is open for writing, and what its trials are trained on and by."""

    folder: Path
    plan: Plan
    dataset: Dataset
    progress: Progress
    ledger: Ledger
    workers: Workers

    def trial_folder(self, number: int) -> Path:
        """Where a trial is trained: a run of its own."""
        return self.folder / studies.TRIALS / f"{number:04d}"

    def finished(self) -> list[FrozenTrial]:
        """The trials that have ended, in the order of their numbers."""
        return self.ledger.finished

    def ranked(self) -> list[FrozenTrial]:
        """The completed trials, the best first."""
        return self.ledger.ranked


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When no further trial is begun: what is reached first. Trials that have begun are trained to their end."""

    trials: int
    seconds: float | None = None
    epochs: int | None = None

    def allows(self, begun: int, epochs: int, elapsed: float) -> bool:
        """Whether one more trial may be begun, after so many with so many epochs and seconds in all."""
        return (
            begun < self.trials
            and (self.epochs is None or epochs < self.epochs)
            and (self.seconds is None or elapsed < self.seconds)
        )


@dataclass
class _Open:
    """A trial that is being trained, and the last of its epochs that the study knows."""

    trial: optuna.Trial
    known: int
    records: Sequence[Epoch] | None = None
    pruned: bool = False


@dataclass
class Driver:
    """Runs trials until the budget is spent; `keep` is how many of the best keep their checkpoints."""

    search: Search
    budget: Budget
    keep: int
    started: float = field(default_factory=time.monotonic)
    open_trials: dict[str, _Open] = field(default_factory=dict)
    # The locks of the trials that are trained here, held until the database knows that they have ended.
    claims: dict[int, int] = field(default_factory=dict)
    holding: set[int] = field(default_factory=set)
    flushed: float = 0.0
    looked: float = -LOOK
    tabled: int = 0

    def run(self) -> None:
        """Run the study; every trial that has been begun here has ended when this returns.

        Raises:
            FileError: the database or a folder cannot be written.
        """
        search = self.search
        self.holding = self._held()
        self._show()
        try:
            work_through(
                search.workers, self._next_job, self._trained, self._ended, search.progress, waiting=self._write_behind
            )
        finally:
            for claim in self.claims.values():
                os.close(claim)
        self.clean_up()
        search.progress.close("trials")

    def _held(self) -> set[int]:
        """The numbers of the ended trials that have checkpoints, whoever trained them."""
        folder, ended = self.search.trial_folder, self.search.finished()
        return {trial.number for trial in ended if (folder(trial.number) / "checkpoints").exists()}

    def clean_up(self) -> None:
        """Write all that any driver has done into the table, and delete what need not be kept."""
        with files.locked(self.search.folder / ".ask.lock"):
            self.search.ledger.read()
            self._write_table()
        self.holding = self._held()
        self._forget()

    def _next_job(self) -> Job | None:
        """A trial that nobody trains any more, or a new one where the budget allows; nobody else asks meanwhile."""
        ledger, budget = self.search.ledger, self.budget
        with files.locked(self.search.folder / ".ask.lock"):
            self.holding.update(ledger.read(epochs=budget.epochs is not None))
            begun = ledger.ended + len(ledger.running)
            allowed = budget.allows(begun, ledger.epochs, time.monotonic() - self.started)
            left = self._left_behind() if not allowed or time.monotonic() >= self.looked + LOOK else None
            trial = ledger.ask() if allowed and left is None else None
            # What has ended before it is written with it.
            self._flush()
            if trial is not None:
                claimed = self._claim(trial.number)
                assert claimed, f"trial {trial.number} is new, and held by another"
        self._tidy()
        return left if trial is None else self._open(trial)

    def _left_behind(self) -> Job | None:
        """A trial whose driver is gone: nobody holds its lock."""
        for known in self.search.ledger.running:
            if self._claim(known.number):
                trial = self.search.ledger.take(known.number)
                if trial is not None:
                    return self._open(trial)
                os.close(self.claims.pop(known.number))
        self.looked = time.monotonic()
        return None

    def _claim(self, number: int) -> bool:
        if number in self.claims:
            return False
        claim = files.take_lock(self.search.folder / studies.TRIALS / f".{number:04d}.lock", wait=False)
        if claim is not None:
            self.claims[number] = claim
        return claim is not None

    def _open(self, trial: optuna.Trial) -> Job:
        plan = self.search.plan
        stored = self.search.ledger.own[trial.number]
        assert stored is not None
        folder, config = self.search.trial_folder(trial.number), studies.trial_config(plan, trial)
        job = Job(f"trial {trial.number}", folder, config, plan.trial_epochs)
        self.open_trials[job.name] = _Open(trial, max(stored.intermediate_values, default=0))
        return job

    def _trained(self, event: Trained) -> bool:
        """Report what the study has not heard of; whether the trial should go on.

        A decision that a kill may have cut off is taken again; earlier ones were "go on", or there were no later epoch.
        """
        search, trial = self.search, self.open_trials[event.job.name]
        new, trial.records = trial.records is not None, event.records
        records = event.records[: search.plan.trial_epochs]
        if new and records:
            show_epoch(search, event)
        for epoch in range(max(trial.known, 1), len(records) + 1):
            self._report(trial, epoch, best_so_far(records[:epoch], search.plan.metric)[0])
            trial.pruned = search.ledger.should_prune(trial.trial, epoch)
        return not trial.pruned

    def _report(self, trial: _Open, epoch: int, value: float) -> None:
        if epoch > trial.known:
            trial.trial.report(value, epoch)
            trial.known = epoch

    def _ended(self, event: Ended) -> None:
        search, trial = self.search, self.open_trials[event.job.name]
        if event.error is not None:
            if not isinstance(event.error, FAILURES):
                raise event.error
            search.progress.notice(f"{event.job.name.capitalize()} failed: {event.error}")
            self._tell(event.job, TrialState.FAIL, str(event.error))
            return
        records = trial.records or ()
        epochs = len(records)
        # In its last epoch there is nothing left to save: such a trial is complete.
        if trial.pruned and epochs < search.plan.trial_epochs and not event.reason:
            self._tell(event.job, TrialState.PRUNED, "pruned")
            return
        # A trial that stopped by itself stands at its best for all later epochs, as others are judged by.
        for epoch in range(epochs + 1, search.plan.trial_epochs + 1):
            self._report(trial, epoch, best_so_far(records, search.plan.metric)[0])
            search.ledger.should_prune(trial.trial, epoch)
        own_end = epochs <= search.plan.trial_epochs and event.reason
        self._tell(event.job, TrialState.COMPLETE, own_end or "trial epochs done")

    def _tell(self, job: Job, state: TrialState, reason: str) -> None:
        search, trial = self.search, self.open_trials.pop(job.name)
        records = (trial.records or ())[: search.plan.trial_epochs]
        value, epoch = best_so_far(records, search.plan.metric) if records else (None, None)
        facts = {
            "epochs_run": len(records),
            "best_epoch": epoch,
            "seconds": round(sum(record.seconds for record in records), 3),
            "stop_reason": reason,
        }
        for key, fact in facts.items():
            trial.trial.set_user_attr(key, fact)
        search.ledger.tell(trial.trial, state, value if state == TrialState.COMPLETE else None)
        search.progress.close(job.name)
        self._show()

    def _write_behind(self) -> None:
        """Let the database catch up once in a while, and where nothing can happen before that is due."""
        due = self.flushed + LAG - time.monotonic()
        if due <= 0 or not self.search.workers.waiting(due):
            self._flush()
            self._tidy()

    def _flush(self) -> None:
        for number in self.search.ledger.flush():
            os.close(self.claims.pop(number))
            self.holding.add(number)
        self.flushed = time.monotonic()

    def _show(self) -> None:
        ended = self.search.ledger.ended
        best = self.search.ranked()[:1]
        text = "".join(f"best {self.search.plan.metric} {trial.value:.4f} (trial {trial.number})" for trial in best)
        self.search.progress.step("trials", ended, max(self.budget.trials, ended), text)

    def _tidy(self) -> None:
        """Write the table where it has grown, and delete checkpoints that are no longer kept."""
        ended = self.search.ledger.ended
        if ended >= self.tabled + max(1, GROWTH * ended):
            with files.locked(self.search.folder / ".ask.lock"):
                self._write_table()
        self._forget()

    def _write_table(self) -> None:
        rows = studies.trial_rows(self.search.finished(), self.search.plan.space)
        self.tabled = len(rows)
        # All that others have begun may still be running.
        if rows:
            files.write_csv(self.search.folder / "trials.csv", rows)

    def _forget(self) -> None:
        """Delete the checkpoints of ended trials, but for the best and the baseline."""
        search = self.search
        best = {trial.number for trial in search.ranked()[: self.keep]}
        idle = self.holding - best - {0}
        claim = files.take_lock(search.folder / NEEDED, wait=False) if idle else None
        if claim is None:
            return
        for number in idle:
            # Another driver may be training it on.
            held = files.take_lock(search.trial_folder(number) / ".lock", wait=False)
            if held is not None:
                run_folder.forget(search.trial_folder(number))
                os.close(held)
                self.holding.remove(number)
        os.close(claim)


def show_epoch(search: Search, event: Trained) -> None:
    """Show a job's newest epoch."""
    last = event.records[-1]
    detail = f"{search.plan.metric} {getattr(last, search.plan.metric):.4f}"
    search.progress.step(event.job.name, last.epoch, event.job.until, detail)


def best_so_far(records: Sequence[Epoch], metric: str) -> tuple[float, int]:
    """The best value of `metric` and the epoch that first had it."""
    sign = studies.sign_of(metric)
    best = min(records, key=lambda record: (sign * getattr(record, metric), record.epoch))
    return float(getattr(best, metric)), best.epoch
