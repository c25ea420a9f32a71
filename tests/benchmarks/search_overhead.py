"""Overhead of a study outside training: a real driver, processes and database, with sleep in place of training.

python tests/benchmarks/search_overhead.py --workers 8 --trials 80 --seconds 3 --database sqlite
python tests/benchmarks/search_overhead.py --trials 500 --seconds 0.5 --dashboard
python tests/benchmarks/search_overhead.py --drivers 4 --workers 8 --trials 128 --seconds 30 --database postgres
python tests/benchmarks/search_overhead.py --asks
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.data.listing import Listing
from busi_tune.data.split import Split
from busi_tune.progress import Progress, Silent
from busi_tune.results import EpochRecord, StoppingState, TrainingValues
from busi_tune.search.driver import Budget, Driver, Search
from busi_tune.search.plan import IDENTITY, TRIALS, Plan
from busi_tune.search.storage import Database
from busi_tune.search.trials import Trials, finished
from busi_tune.training.epochs import Epoch, Watcher
from busi_tune.training.run_folder import history
from busi_tune.training.runs import Saved, save_behind
from busi_tune.workers.claims import Claims
from busi_tune.workers.jobs import Ended, Events, Job, Trained
from busi_tune.workers.processes import Processes
from postgres import Server

EPOCHS = 20
NAME = "overhead"
SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "scheduler_patience": IntDistribution(2, 9),
}
# The size of a small network's checkpoint; training_speed.py covers large ones.
CHECKPOINT = b"\0" * 1_000_000


WATCH = """
import sys, threading
from optuna import load_study
from optuna.storages import RDBStorage
study = load_study(study_name=sys.argv[2], storage=RDBStorage(sys.argv[1]))
ended, reads = threading.Event(), 0
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
print("ready", flush=True)
while not ended.is_set():
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    reads += 1
print(reads)
"""
# The time at which this process last ended a sleep.
awoke: float | None = None


def asleep(job: Job, _: Dataset, __: Progress) -> Events:
    """The events of `work`, with sleep in place of training; `job.config.min_learning_rate` sets the duration."""
    with locks.only_writer(job.folder, wait=True):
        files.write_json(job.folder / results.IDENTITY, job.config.to_dict())
        records: list[Epoch] = []
        yield Trained(job, records, new=False)
        for record in save_behind(job.folder, _epochs(job)):
            records = [*records, record]
            yield Trained(job, records)
    yield Ended(job, "")


def _epochs(job: Job) -> Iterator[Saved]:
    """Yields the saved epochs of a job, each after a sleep.

    A record's `seconds` is the time since the process's last epoch, of any trial, minus the sleep. It is negative for
    the first epoch of a process.
    """
    global awoke
    seconds = job.config.min_learning_rate * 1e3
    history: list[EpochRecord] = []
    watcher = Watcher(10)
    for number in range(1, job.until + 1):
        time.sleep(seconds)
        before, awoke = awoke, time.monotonic()
        # All trials are equal, so that none is pruned and all run to their end.
        record = Epoch(number, 1 / number, 1 / number, 0.5, 0.5, 0.1, awoke - before - seconds if before else -1.0, 1.0)
        best = CHECKPOINT if watcher.see(record) else None
        history = [*history, cast("EpochRecord", vars(record))]
        values: TrainingValues = {
            "history": history,
            "scheduler": {},
            "learning_rate": 0.1,
            "watcher": cast("StoppingState", deepcopy(vars(watcher))),
            "stop_reason": "",
        }
        yield Saved(record, values, CHECKPOINT, best)


@contextmanager
def database(kind: str) -> Iterator[str | None]:
    """The URL of a new PostgreSQL database, or None for a file in the study's folder."""
    if kind == "sqlite":
        yield None
        return
    server = Server()
    try:
        yield server.url
    finally:
        server.remove()


@dataclass(frozen=True)
class Measured:
    """The overhead of a study with sleep in place of training.

    `wall` is in seconds, `overhead` the share of extra time to sleep, `a_trial` the extra seconds of a trial, and
    `driver` the processor seconds of all drivers for a trial. `reads` counts the dashboard's reads.
    """

    trials: int
    wall: float
    overhead: float
    a_trial: float
    driver: float
    reads: int


@dataclass(frozen=True)
class Load:
    """The size of a study: `workers` for each driver, and `trials` in addition to `known` finished ones."""

    workers: int
    trials: int
    seconds: float
    kind: str
    known: int = 0
    drivers: int = 1

    @property
    def plan(self) -> Plan:
        config = Config(min_learning_rate=self.seconds / EPOCHS / 1e3)
        return Plan(config=config, space=SPACE, metric="val_loss", trial_epochs=EPOCHS, split="")


def drive(load: Load, folder: Path, url: str | None) -> float:
    """Runs one driver with its workers, and returns its processor time in seconds."""
    empty = Dataset(Listing(Path(), (), (), 0), Split(pd.DataFrame(), pd.DataFrame()))
    trials = Trials(Database.of(folder, url, Silent()), NAME, load.plan)
    crew = Processes(load.workers, empty, Silent(), asleep)
    try:
        search = Search(folder, load.plan, empty, Silent(), trials, crew, Claims(folder / TRIALS))
        worked = time.process_time()
        Driver(search, Budget(trials=load.known + load.trials), 5).run()
        return time.process_time() - worked
    finally:
        crew.close()


def measure(load: Load, *, watched: bool = False) -> Measured:
    """Runs a study with sleep in place of training; `watched` adds a dashboard.

    The time of each worker counts from its first epoch to its last. The start of its process does not count, nor does
    the end of the study, when some workers have no trial left.
    """
    with tempfile.TemporaryDirectory() as name, database(load.kind) as url:
        folder = Path(name)
        place = Database.of(folder, url, Silent())
        files.make_folder(folder / TRIALS)
        files.write_json(folder / IDENTITY, load.plan.document(place, NAME))
        fill(place, load)
        started = time.monotonic()
        watching: AbstractContextManager[list[int]] = nullcontext([])
        if watched:
            watching = dashboard(place.url.render_as_string(hide_password=False))
        with watching as reads:
            if load.drivers == 1:
                work = drive(load, folder, url)
            else:
                with ProcessPoolExecutor(load.drivers, mp_context=get_context("spawn")) as pool:
                    work = sum(pool.map(drive, *zip(*[(load, folder, url)] * load.drivers, strict=True)))
        wall = time.monotonic() - started
        done = finished(Trials(place, NAME, load.plan).all())[load.known :]
        histories = [history(folder / TRIALS / f"{trial.number:04d}") for trial in done]
        lost = np.array([record.seconds for records in histories for record in records])
    lost = lost[lost >= 0]
    share = lost.mean() / (load.seconds / EPOCHS)
    return Measured(len(done), wall, share, lost.mean() * EPOCHS, work / load.trials, sum(reads))


@contextmanager
def dashboard(url: str) -> Iterator[list[int]]:
    """A process that reads all trials again and again, like a dashboard; at its end it appends the number of reads.

    Raises:
        RuntimeError: the process failed, for example because of a locked database.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, url, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    counted: list[int] = []
    try:
        yield counted
        said, _ = watcher.communicate()
    finally:
        watcher.kill()
    if watcher.returncode != 0:
        raise RuntimeError(f"The dashboard ended with code {watcher.returncode}.")
    counted.append(int(said))


def fill(place: Database, load: Load) -> Trials:
    """A new study with `known` finished trials."""
    generator = np.random.default_rng(0)
    trials = Trials(place, NAME, load.plan)
    trials.study.add_trials([_ended(generator) for _ in range(load.known)])
    return trials


def asks(kind: str) -> None:
    """Prints how the driver's time for one trial grows with the number of trials: for the ask, and for the rest."""
    for count in (100, 300, 1_000, 3_000):
        load = Load(1, 0, 3.0, kind, known=count)
        with tempfile.TemporaryDirectory() as name, database(kind) as url:
            trials = fill(Database.of(Path(name), url, Silent()), load)
            asked: list[tuple[float, float]] = []
            followed: list[tuple[float, float]] = []
            for _ in range(11):
                with timed(asked):
                    trials.all()
                    trial = trials.ask()
                assert trial is not None
                with timed(followed):
                    for epoch in range(1, EPOCHS + 1):
                        trials.report(trial, epoch, 1.0)
                        trials.should_prune(trial, epoch)
                    trials.tell(trial, TrialState.COMPLETE, {"epochs_run": EPOCHS}, 1.0)
            (ask, ask_cpu), (rest, rest_cpu) = np.median(asked, axis=0) * 1e3, np.median(followed, axis=0) * 1e3
            print(
                f"{kind}, {count} trials: one ask {ask:.0f} ms ({ask_cpu:.0f} of the processor), {EPOCHS} reports and "
                f"the end {rest:.0f} ms ({rest_cpu:.0f})",
                flush=True,
            )


@contextmanager
def timed(found: list[tuple[float, float]]) -> Iterator[None]:
    """Appends the wall seconds and the processor seconds of the block."""
    started = time.perf_counter(), time.process_time()
    yield
    found.append((time.perf_counter() - started[0], time.process_time() - started[1]))


def _ended(generator: np.random.Generator) -> optuna.trial.FrozenTrial:
    params = {
        "learning_rate": 10 ** generator.uniform(-5, -2),
        "weight_decay": 10 ** generator.uniform(-5, -1),
        "scheduler_patience": int(generator.integers(2, 10)),
    }
    value = generator.uniform()
    reports = {epoch: value + 1 / epoch for epoch in range(1, EPOCHS + 1)}
    facts = {"epochs_run": EPOCHS, "best_epoch": EPOCHS, "seconds": 0.0, "stop_reason": "trial epochs done"}
    return create_trial(
        params=params, distributions=SPACE, value=reports[EPOCHS], intermediate_values=reports, user_attrs=facts
    )


def main() -> None:
    """Runs the measurements that the arguments select."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--known", type=int, default=0, help="trials that the study has already")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--drivers", type=int, default=1, help="each with --workers; more than one needs postgres")
    parser.add_argument("--dashboard", action="store_true", help="another process reads all trials all the time")
    parser.add_argument("--asks", action="store_true", help="measure how the cost of one ask grows, and nothing else")
    options = parser.parse_args()
    if options.asks:
        asks(options.database)
        return
    load = Load(options.workers, options.trials, options.seconds, options.database, options.known, options.drivers)
    found = measure(load, watched=options.dashboard)
    print(
        f"{load.kind}, {load.drivers} drivers of {load.workers} workers, {found.trials} trials of {load.seconds:g} s "
        f"in {EPOCHS} epochs, after {load.known}: {found.wall:.0f} s; overhead {found.overhead:.2%}, "
        f"{found.a_trial * 1e3:.0f} ms a trial, {found.driver * 1e3:.0f} of the driver's processor"
        + f"; {found.reads} reads by a dashboard"
        * options.dashboard
    )


if __name__ == "__main__":
    main()
