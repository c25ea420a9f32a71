"""Jobs, the interface of workers, and the worker in this process."""

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from busi_tune import locks
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.data.split import Split
from busi_tune.errors import BusiTuneError, WorkerLost
from busi_tune.progress import Progress
from busi_tune.training import run_folder, runs
from busi_tune.training.epochs import Epoch

# A job that loses this many workers in one epoch is given up. The most likely cause is too little memory.
MOST_DEATHS = 5


@dataclass(frozen=True)
class Job:
    """A run to train to epoch `until` or to its end. If `split` is None, it uses the split of the workers' data."""

    name: str
    folder: Path
    config: Config
    until: int
    split: Split | None = field(default=None, compare=False, repr=False)

    def data(self, dataset: Dataset) -> Dataset:
        """The data of the workers with the split of the job."""
        return dataset if self.split is None else replace(dataset, split=self.split)


@dataclass(frozen=True)
class Trained:
    """An event: a job has these records so far, and its worker waits for an answer.

    `new` is False if the worker has not trained an epoch yet and the records are from earlier training.
    """

    job: Job
    records: Sequence[Epoch]
    new: bool = True


@dataclass(frozen=True)
class Ended:
    """An event: a job has ended, with the reason or with an error."""

    job: Job
    reason: str
    error: BusiTuneError | None = None


@dataclass(frozen=True)
class Died:
    """An event: the worker of a job has died. The job can be started again and resumes from its last saved epoch.

    `cure` is the advice for the case that its workers die repeatedly.
    """

    job: Job
    how: str
    cure: str = "lower --workers or --batch-size"


Event = Trained | Ended | Died


class Workers(Protocol):
    """Workers that train several jobs at a time. `next` returns their events."""

    @property
    def idle(self) -> int:
        """The number of jobs that can be started now."""

    def start(self, job: Job) -> None:
        """Start a job, or resume it."""

    def has_event(self) -> bool:
        """Whether `next` would return an event at once."""

    def next(self) -> Event:
        """Wait for the next event of a job."""

    def answer(self, job: Job, go_on: bool) -> None:
        """Answer a `Trained` event: the worker trains the next epoch, or ends the job."""

    def close(self) -> None:
        """End all workers. Saved epochs are kept."""


Events = Generator[Trained | Ended, bool | None, None]
Work = Callable[[Job, Dataset, Progress], Events]


def work(job: Job, dataset: Dataset, progress: Progress) -> Events:
    """Train a job while holding the lock of its folder.

    Yields the records of earlier training, then all records after each new epoch. The value sent back says whether to
    continue.
    """
    try:
        # A worker whose driver was killed may still be saving its last epoch.
        with locks.only_writer(job.folder, wait=True):
            yield from _epochs(job, dataset, progress)
        yield Ended(job, run_folder.stop_reason(job.folder))
    except BusiTuneError as error:
        yield Ended(job, "", error)


def _epochs(job: Job, dataset: Dataset, progress: Progress) -> Generator[Trained, bool | None, None]:
    """Yield the existing records of a job's run, then all records after each new epoch, until an answer is false."""
    run = runs.begin(job.folder, job.config, job.data(dataset), progress)
    records = run_folder.history(job.folder)
    if not (yield Trained(job, records, new=False)):
        return
    with contextlib.closing(runs.train(run, job.until, progress, job.name)) as epochs:
        for record in epochs:
            # A run whose checkpoints were deleted is trained again from its first epoch.
            records = [*records[: record.epoch - 1], record]
            if not (yield Trained(job, records)):
                return


class Here:
    """One worker, in this process."""

    def __init__(self, dataset: Dataset, progress: Progress) -> None:
        self.dataset, self.progress = dataset, progress
        self.events: Events | None = None
        self.said: bool | None = None

    @property
    def idle(self) -> int:
        """1 if no job is being trained, else 0."""
        return int(self.events is None)

    def start(self, job: Job) -> None:
        """Start a job, or resume it."""
        self.events, self.said = work(job, self.dataset, self.progress), None

    def has_event(self) -> bool:
        """Always False, because epochs are trained inside `next`."""
        return False

    def next(self) -> Event:
        """Train until the next event."""
        assert self.events is not None
        event = self.events.send(self.said)
        if isinstance(event, Ended):
            self.events = None
        return event

    def answer(self, job: Job, go_on: bool) -> None:  # noqa: ARG002
        """Keep the answer for the next call of `next`."""
        self.said = go_on

    def close(self) -> None:
        """Stop the current job."""
        if self.events is not None:
            self.events.close()
        self.events = None


def work_through(
    workers: Workers,
    next_job: Callable[[], Job | None],
    trained: Callable[[Trained], bool],
    ended: Callable[[Ended], None],
    progress: Progress,
) -> None:
    """Train all jobs that `next_job` returns, as many at a time as there are workers.

    `trained` is called after each epoch and returns whether the job continues. `ended` is called when a job has ended.
    A job whose worker dies is started again. A job that loses `MOST_DEATHS` workers in one epoch ends with an error.
    """
    deaths: Counter[tuple[Job, int]] = Counter()
    reached: Counter[Job] = Counter()
    open_jobs, more = 0, True
    while True:
        # Workers that wait for an answer come first, because `next_job` may be slow.
        while more and workers.idle and not (open_jobs and workers.has_event()):
            job = next_job()
            more = job is not None
            if job is not None:
                workers.start(job)
                open_jobs += 1
        if not open_jobs:
            return
        event = workers.next()
        if isinstance(event, Died):
            deaths[event.job, reached[event.job]] += 1
            progress.notice(f"The worker of {event.job.name} died ({event.how}).")
            if deaths[event.job, reached[event.job]] < MOST_DEATHS:
                workers.start(event.job)
                continue
            error = WorkerLost(f"{MOST_DEATHS} workers died in one epoch ({event.how}); {event.cure}.")
            event = Ended(event.job, "", error)
        if isinstance(event, Ended):
            open_jobs, more = open_jobs - 1, True
            ended(event)
            continue
        reached[event.job] = max(reached[event.job], len(event.records))
        workers.answer(event.job, trained(event))
