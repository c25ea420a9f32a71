"""What a study costs beside training: real driver, real processes, a real database, and epochs that sleep.

python tests/benchmarks/search_overhead.py --workers 8 --trials 80 --seconds 3 --database sqlite
python tests/benchmarks/search_overhead.py --asks
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from busi_tune import files
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.data.find import Listing
from busi_tune.data.split import Split
from busi_tune.progress import Progress, Silent
from busi_tune.search import study as studies
from busi_tune.search.driver import Budget, Driver, Search
from busi_tune.search.storage import Database
from busi_tune.search.workers import Ended, Job, Processes, Trained
from busi_tune.training import folder as store
from busi_tune.training.state import Epoch
from postgres import Server

EPOCHS = 20
SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "scheduler_patience": IntDistribution(2, 9),
}
# What a small network's checkpoint weighs; a large one's time to disk is training_speed.py's to measure.
CHECKPOINT = b"\0" * 1_000_000


def asleep(job: Job, _: Dataset, __: Progress) -> Iterator[Trained | Ended]:
    """What `work` does, with sleep for training: `job.config.min_learning_rate` says how long."""
    records: list[Epoch] = []
    with files.only_writer(job.folder, wait=True):
        files.write_json(job.folder / store.IDENTITY, job.config.to_dict())
        yield Trained(job, records)
        for number in range(1, job.until + 1):
            time.sleep(job.config.min_learning_rate * 1e3)
            loss = 1 / number + abs(np.log10(job.config.learning_rate) + 3.5) / 10
            records = [*records, Epoch(number, loss, loss, 0.5, 0.5, 0.1, 1.0, 1.0)]
            values = {"history": [vars(record) for record in records], "stop_reason": ""}
            store.commit(job.folder, values, last=CHECKPOINT, best=None)
            yield Trained(job, records)
    yield Ended(job, "")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[Database]:
    """A database of its own."""
    if kind == "sqlite":
        yield Database.of(folder, None, Silent())
        return
    server = Server()
    try:
        yield Database.of(folder, server.url, Silent())
    finally:
        server.remove()


def measure(workers: int, trials: int, seconds: float, kind: str) -> None:
    """Run a study of sleeping trials; how much longer than its sleep it took."""
    config = Config(min_learning_rate=seconds / EPOCHS / 1e3)
    empty = Dataset(Listing(Path(), (), (), 0), Split(pd.DataFrame(), pd.DataFrame()))
    plan = studies.Plan(config=config, space=SPACE, metric="val_loss", trial_epochs=EPOCHS, split="")
    with tempfile.TemporaryDirectory() as name, database(kind, Path(name)) as place:
        study = studies.open_study(place, "overhead", plan)
        crew = Processes(workers, empty, Silent(), asleep)
        try:
            search = Search(Path(name), plan, empty, Silent(), place, study, crew)
            # The first trials wait for the processes to import PyTorch, once.
            Driver(search, Budget(trials=workers), 5).run()
            started = time.monotonic()
            Driver(search, Budget(trials=workers + trials), 5).run()
            wall = time.monotonic() - started
        finally:
            crew.close()
        done = search.finished()[workers:]
    slept = sum(trial.user_attrs["epochs_run"] for trial in done) * seconds / EPOCHS
    pruned = sum(trial.state == TrialState.PRUNED for trial in done)
    # The last trials do not fill all workers, which is no cost of ours.
    ideal = slept / workers
    print(
        f"{kind}, {workers} workers, {len(done)} trials ({pruned} pruned) of at most {seconds:g} s: "
        f"{wall:.1f} s, {slept / wall / workers:.1%} of the workers' time was training; "
        f"overhead {wall / ideal - 1:.1%}, {(wall - ideal) * workers / len(done) * 1e3:.0f} ms a trial"
    )


def asks() -> None:
    """How the cost of one ask grows with the number of trials."""
    plan = studies.Plan(config=Config(), space=SPACE, metric="val_loss", trial_epochs=EPOCHS, split="")
    with tempfile.TemporaryDirectory() as name, database("postgres", Path(name)) as place:
        study = studies.open_study(place, "asks", plan)
        generator = np.random.default_rng(0)
        known = 0
        for count in (100, 1_000, 3_000, 10_000):
            study.add_trials([_ended(generator) for _ in range(count - known)])
            known = count
            times = []
            for _ in range(10):
                started = time.perf_counter()
                asked = study.ask()
                studies.draw(study, plan, asked._trial_id, asked.number)
                times.append(time.perf_counter() - started)
                study.tell(asked, 1.0)
                known += 1
            print(f"ask with {count} trials: {np.median(times) * 1e3:.0f} ms")


def _ended(generator: np.random.Generator) -> optuna.trial.FrozenTrial:
    params = {
        "learning_rate": 10 ** generator.uniform(-5, -2),
        "weight_decay": 10 ** generator.uniform(-5, -1),
        "scheduler_patience": int(generator.integers(2, 10)),
    }
    return create_trial(params=params, distributions=SPACE, value=generator.uniform())


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--asks", action="store_true")
    options = parser.parse_args()
    if options.asks:
        asks()
    else:
        measure(options.workers, options.trials, options.seconds, options.database)


if __name__ == "__main__":
    main()
