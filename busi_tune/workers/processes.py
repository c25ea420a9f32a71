"""Workers in processes of this machine. A server that has imported PyTorch forks the workers and replacements."""

import contextlib
import multiprocessing
import selectors
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from busi_tune.data.dataset import Dataset
from busi_tune.errors import RunError
from busi_tune.locks import GUARD
from busi_tune.progress import Progress
from busi_tune.training import hardware
from busi_tune.workers.jobs import Died, Ended, Event, Job, Trained, Work, work

# The least number of seconds between two batch reports of one worker.
REPORT = 0.3


class _Within(NamedTuple):
    """A worker's report of batches: the arguments of `Progress.within`."""

    task: str
    done: int
    total: int
    share: float


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


class Processes:
    """Several workers, each in a separate process. They share the decoded images through the page cache.

    `task` is the function that trains a job.
    """

    def __init__(self, count: int, dataset: Dataset, progress: Progress, task: Work = work) -> None:
        self.dataset, self.progress, self.task = dataset, progress, task
        # The fork server imports PyTorch only once, so a dead worker is replaced without delay.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.threads, self.gpus = max(1, hardware.threads() // count), hardware.gpus()
        self.workers = [self._begin(number) for number in range(count)]
        for worker in self.workers:
            _await(worker)
        # The pipes of the busy processes, and the events received from them.
        self.selector = selectors.DefaultSelector()
        self.events: deque[Event] = deque()

    # The fork server may be killed, too. The next attempt starts another server.
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
        """The number of processes without a job."""
        return sum(worker.job is None for worker in self.workers)

    def start(self, job: Job) -> None:
        """Send a job to a free process. If that process has died, it is replaced first."""
        number = next(number for number, worker in enumerate(self.workers) if worker.job is None)
        if not self.workers[number].process.is_alive():
            self.workers[number] = self._begin(number)
            _await(self.workers[number])
        worker = self.workers[number]
        worker.job = job
        self.selector.register(worker.pipe, selectors.EVENT_READ, worker)
        _send(worker.pipe, job)

    def has_event(self) -> bool:
        """Whether `next` would return an event at once."""
        self._hear(0)
        return bool(self.events)

    def next(self) -> Event:
        """Wait for the next event of a busy process."""
        while not self.events:
            self._hear(None)
        return self.events.popleft()

    def _hear(self, timeout: float | None) -> None:
        """Receive at most one message from each busy process. Progress is passed on; events are queued."""
        for key, _ in self.selector.select(timeout):
            worker: _Process = key.data
            try:
                said: Trained | Ended | _Within | str = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                self.events.append(_died(self._free(worker), worker.process.exitcode or 0))
                continue
            if isinstance(said, str):
                self.progress.notice(said)
            elif isinstance(said, _Within):
                self.progress.within(*said)
            else:
                if isinstance(said, Ended):
                    self._free(worker)
                self.events.append(said)

    def _free(self, worker: _Process) -> Job:
        self.selector.unregister(worker.pipe)
        job, worker.job = worker.job, None
        assert job is not None
        return job

    def answer(self, job: Job, go_on: bool) -> None:
        """Answer a `Trained` event: the process trains the next epoch, or ends the job."""
        _send(next(worker.pipe for worker in self.workers if worker.job == job), go_on)

    def close(self) -> None:
        """Kill all processes."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self.selector.close()


def _await(worker: _Process) -> None:
    """Wait until a new process is ready for jobs. If it is killed before that, `start` replaces it.

    Raises:
        RunError: the process has ended by itself.
    """
    try:
        worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        if (worker.process.exitcode or 0) >= 0:
            raise RunError(f"A worker process ended before it could begin, as the error above says; {GUARD}.") from None


def _died(job: Job, code: int) -> Died:
    if code < 0:
        return Died(job, f"signal {signal.Signals(-code).name}")
    return Died(job, f"exit code {code}", "resolve the error above")


def _send(pipe: Connection, value: object) -> None:
    """Send `value`. If the other process has ended, the next read from the pipe fails."""
    with contextlib.suppress(OSError):
        pipe.send(value)


class _Told:
    """A worker's progress. Notices and batch reports go to the driver, which reports whole epochs itself."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.reported = pipe, 0.0

    def notice(self, text: str) -> None:
        _send(self.pipe, text)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        pass

    def within(self, task: str, done: int, total: int, share: float) -> None:
        now = time.monotonic()
        if now - self.reported >= REPORT:
            self.reported = now
            _send(self.pipe, _Within(task, done, total, share))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        pass

    def close(self, task: str) -> None:
        pass


def _serve(pipe: Connection, dataset: Dataset, threads: int, gpu: str | None, task: Work) -> None:
    """The main function of a worker process, which receives jobs and sends events.

    If the driver has ended, the process saves the current epoch and ends.
    """
    # The driver handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hardware.confine(threads, gpu)
    _send(pipe, "ready")
    with contextlib.suppress(_DriverGone):
        while True:
            job = _heard(pipe)
            assert isinstance(job, Job)
            events = task(job, dataset, _Told(pipe))
            event = next(events)
            while isinstance(event, Trained):
                _send(pipe, event)
                event = events.send(bool(_heard(pipe)))
            _send(pipe, event)


class _DriverGone(Exception):
    """The driver has ended."""


def _heard(pipe: Connection) -> object:
    try:
        heard: object = pipe.recv()
    except (EOFError, OSError) as error:
        raise _DriverGone from error
    return heard
