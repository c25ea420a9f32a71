"""Who trains: this process, or several others; workers know runs and epochs, and nothing of Optuna."""

import contextlib
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from busi_tune import files
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.errors import BusiTuneError, WorkerLost
from busi_tune.progress import Progress
from busi_tune.training import hardware
from busi_tune.training import run as runs
from busi_tune.training.state import Epoch

# A worker that dies so often without finishing an epoch will die again: too little memory, most likely.
MOST_DEATHS = 3


@dataclass(frozen=True)
class Job:
    """A run to be trained to epoch `until` or to its own end."""

    name: str
    folder: Path
    config: Config
    until: int


@dataclass(frozen=True)
class Trained:
    """The records of a job so far; its worker waits to hear whether to go on."""

    job: Job
    records: Sequence[Epoch]


@dataclass(frozen=True)
class Ended:
    """A job is trained as far as it goes: why, or the error that ended it."""

    job: Job
    reason: str
    error: BusiTuneError | None = None


@dataclass(frozen=True)
class Died:
    """The worker of a job has died; the job can be started again, from its last saved epoch."""

    job: Job
    how: str


Event = Trained | Ended | Died


class Workers(Protocol):
    """Trains several jobs at a time; `next` says what has happened."""

    @property
    def idle(self) -> int:
        """How many more jobs can be started."""

    def start(self, job: Job) -> None:
        """Begin a job, or go on with it."""

    def waiting(self, seconds: float) -> bool:
        """Whether a job has something to say within so many seconds, without being asked for it."""

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
        with files.only_writer(job.folder, wait=True):
            run = runs.begin(job.folder, job.config, dataset, progress)
            records = runs.history(job.folder)
            if (yield Trained(job, records)):
                with contextlib.closing(runs.train(run, job.until, progress)) as epochs:
                    for record in epochs:
                        # A run whose checkpoints were given up is trained again from its first epoch.
                        records = [*records[: record.epoch - 1], record]
                        if not (yield Trained(job, records)):
                            break
        yield Ended(job, runs.stop_reason(job.folder))
    except BusiTuneError as error:
        yield Ended(job, "", error)


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

    def waiting(self, seconds: float) -> bool:  # noqa: ARG002
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


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


class Processes:
    """Several workers, each a process of its own; they share the decoded images through the page cache.

    `task` is what they do with a job.
    """

    def __init__(self, count: int, dataset: Dataset, progress: Progress, task: Work = work) -> None:
        self.dataset, self.progress, self.task = dataset, progress, task
        # Forked from a server that has imported PyTorch once: a worker that died is back at once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.threads, self.gpus = max(1, hardware.threads() // count), hardware.gpus()
        self.workers = [self._begin(number) for number in range(count)]

    # The server that forks may be killed, too; the next try starts another.
    @retry(
        retry=retry_if_exception_type((EOFError, OSError)),
        stop=stop_after_attempt(5),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    def _begin(self, number: int) -> _Process:
        ours, theirs = self.context.Pipe()
        gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
        process = self.context.Process(target=_serve, args=(theirs, self.dataset, self.threads, gpu, self.task))
        process.start()
        theirs.close()
        return _Process(process, ours)

    @property
    def idle(self) -> int:
        """How many processes have no job."""
        return sum(worker.job is None for worker in self.workers)

    def start(self, job: Job) -> None:
        """Send a job to a free process; one that has died in the meantime is replaced."""
        number = next(number for number, worker in enumerate(self.workers) if worker.job is None)
        if not self.workers[number].process.is_alive():
            self.workers[number] = self._begin(number)
        worker = self.workers[number]
        worker.job = job
        _send(worker.pipe, job)

    def waiting(self, seconds: float) -> bool:
        """Whether a busy process has something to say within so many seconds."""
        return bool(wait([worker.pipe for worker in self.workers if worker.job], timeout=seconds))

    def next(self) -> Event:
        """Wait for the first of the busy processes that has something to say."""
        while True:
            busy = [worker for worker in self.workers if worker.job]
            ready = wait([worker.pipe for worker in busy])
            worker = next(worker for worker in busy if worker.pipe in ready)
            assert worker.job is not None
            try:
                said: Trained | Ended | str = worker.pipe.recv()
            except (EOFError, OSError):
                return self._buried(worker)
            if isinstance(said, str):
                self.progress.notice(said)
                continue
            if isinstance(said, Ended):
                worker.job = None
            return said

    def _buried(self, worker: _Process) -> Died:
        worker.process.join()
        job, worker.job = worker.job, None
        assert job is not None
        code = worker.process.exitcode or 0
        return Died(job, f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def answer(self, job: Job, go_on: bool) -> None:
        """Let the process go on, or end the job."""
        _send(next(worker.pipe for worker in self.workers if worker.job == job), go_on)

    def close(self) -> None:
        """End all processes, now."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _send(pipe: Connection, value: Any) -> None:
    """Send; where the other side is gone, whoever reads from it next finds out."""
    with contextlib.suppress(OSError):
        pipe.send(value)


class _Told:
    """A worker's progress: notices go to the driver, bars are the driver's own."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def notice(self, text: str) -> None:
        _send(self.pipe, text)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        pass

    def close(self, task: str) -> None:
        pass


def _serve(pipe: Connection, dataset: Dataset, threads: int, gpu: str | None, task: Work) -> None:
    """A worker process: jobs in, events out. When its driver is gone it saves the epoch at hand, and ends."""
    # Ctrl-C is the driver's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hardware.confine(threads, gpu)
    try:
        while True:
            events = task(pipe.recv(), dataset, _Told(pipe))
            event = next(events)
            while isinstance(event, Trained):
                pipe.send(event)
                event = events.send(pipe.recv())
            pipe.send(event)
    except (EOFError, OSError):
        return


def work_through(
    workers: Workers,
    next_job: Callable[[], Job | None],
    trained: Callable[[Trained], bool],
    ended: Callable[[Ended], None],
    progress: Progress,
    *,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Train all that `next_job` gives, as many at a time as there are workers.

    `trained` hears of each epoch and says whether to go on; `ended` hears of a job's end.
    `waiting` is called when all workers have been answered, before the next event is waited for.
    A job whose worker dies is started again; one that has lost `MOST_DEATHS` workers in one epoch ends with an error.
    """
    deaths: Counter[tuple[Job, int]] = Counter()
    reached: Counter[Job] = Counter()
    open_jobs, more = 0, True
    while True:
        while more and workers.idle:
            job = next_job()
            more = job is not None
            if job is not None:
                workers.start(job)
                open_jobs += 1
        if not open_jobs:
            return
        waiting()
        event = workers.next()
        if isinstance(event, Died):
            deaths[event.job, reached[event.job]] += 1
            progress.notice(f"The worker of {event.job.name} died ({event.how}).")
            if deaths[event.job, reached[event.job]] < MOST_DEATHS:
                workers.start(event.job)
                continue
            error = WorkerLost(
                f"{MOST_DEATHS} workers died in one epoch ({event.how}); lower --workers or --batch-size."
            )
            event = Ended(event.job, "", error)
        if isinstance(event, Ended):
            open_jobs, more = open_jobs - 1, True
            ended(event)
            continue
        reached[event.job] = max(reached[event.job], len(event.records))
        workers.answer(event.job, trained(event))
