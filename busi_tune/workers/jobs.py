"""Jobs and the workers that train them: what a worker offers, and the worker that is this process."""

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

# A worker that dies so often without finishing an epoch will die again: too little memory, most likely.
MOST_DEATHS = 5


@dataclass(frozen=True)
class Job:
    """A run to be trained to epoch `until` or to its own end; on `split`, or on that of the workers' data."""

    name: str
    folder: Path
    config: Config
    until: int
    split: Split | None = field(default=None, compare=False, repr=False)

    def data(self, dataset: Dataset) -> Dataset:
        """The data of the workers with the job's own split."""
        return dataset if self.split is None else replace(dataset, split=self.split)


@dataclass(frozen=True)
class Trained:
    """The records of a job so far; its worker waits for an answer.

    `new` is false for the records that a worker found when it began.
    """

    job: Job
    records: Sequence[Epoch]
    new: bool = True


@dataclass(frozen=True)
class Ended:
    """A job is trained as far as it goes: why, or the error that ended it."""

    job: Job
    reason: str
    error: BusiTuneError | None = None


@dataclass(frozen=True)
class Died:
    """The worker of a job has died; the job can be started again, from its last saved epoch.

    `cure` says what may help where it dies again and again.
    """

    job: Job
    how: str
    cure: str = "lower --workers or --batch-size"


Event = Trained | Ended | Died


class Workers(Protocol):
    """Trains several jobs at a time; `next` says what has happened."""

    @property
    def idle(self) -> int:
        """How many more jobs can be started."""

    def start(self, job: Job) -> None:
        """Begin a job, or go on with it."""

    def has_event(self) -> bool:
        """Whether `next` would give an event at once."""

    def next(self) -> Event:
        """Wait until one of the jobs has something to say."""

    def answer(self, job: Job, go_on: bool) -> None:
        """Let the worker of a `Trained` job go on, or end it."""

    def close(self) -> None:
        """End all workers; what they have saved is kept."""


Events = Generator[Trained | Ended, bool | None, None]
Work = Callable[[Job, Dataset, Progress], Events]


def work(job: Job, dataset: Dataset, progress: Progress) -> Events:
    """Train a job, with its folder held; say what was known at first, then every epoch, and hear whether to go on."""
    try:
        # Another worker may be finishing its last epoch there, its driver gone.
        with locks.only_writer(job.folder, wait=True):
            yield from _epochs(job, dataset, progress)
        yield Ended(job, run_folder.stop_reason(job.folder))
    except BusiTuneError as error:
        yield Ended(job, "", error)


def _epochs(job: Job, dataset: Dataset, progress: Progress) -> Generator[Trained, bool | None, None]:
    """The records that a job's run has, then those with each new epoch, while the answer is to go on."""
    run = runs.begin(job.folder, job.config, job.data(dataset), progress)
    records = run_folder.history(job.folder)
    if not (yield Trained(job, records, new=False)):
        return
    with contextlib.closing(runs.train(run, job.until, progress, job.name)) as epochs:
        for record in epochs:
            # A run whose checkpoints were given up is trained again from its first epoch.
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
        """One, while nothing is trained."""
        return int(self.events is None)

    def start(self, job: Job) -> None:
        """Begin a job, or go on with it."""
        self.events, self.said = work(job, self.dataset, self.progress), None

    def has_event(self) -> bool:
        """Never: an epoch is trained when it is asked for."""
        return False

    def next(self) -> Event:
        """Train an epoch."""
        assert self.events is not None
        event = self.events.send(self.said)
        if isinstance(event, Ended):
            self.events = None
        return event

    def answer(self, job: Job, go_on: bool) -> None:  # noqa: ARG002
        """Go on with the next epoch, or end the job."""
        self.said = go_on

    def close(self) -> None:
        """Leave the job."""
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
    """Train all jobs that `next_job` gives, as many at a time as there are workers.

    `trained` is called after each epoch and says whether to go on; `ended` is called at a job's end.
    A job whose worker dies is started again; one that has lost `MOST_DEATHS` workers in one epoch ends with an error.
    """
    deaths: Counter[tuple[Job, int]] = Counter()
    reached: Counter[Job] = Counter()
    open_jobs, more = 0, True
    while True:
        # Workers that wait for an answer come first: the next job may take its time.
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
