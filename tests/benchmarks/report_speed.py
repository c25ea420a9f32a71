"""Time of reports: on a run of 80 epochs with 780 images, and on a study of 200 trials of 20 epochs.

Both come from a short study on phantoms, whose histories are extended at random. Prints a table with the wall time and
the processor time of the whole command, and the size of the page.

python tests/benchmarks/report_speed.py --out /tmp/report-speed
"""

import argparse
import csv
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np

from busi_tune import pipeline, results
from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.progress import Silent
from busi_tune.results import EpochRecord, StateFile
from busi_tune.search_options import SearchOptions

COUNTS = {"benign": 437, "malignant": 210, "normal": 133}
EPOCHS, TRIALS, TRIAL_EPOCHS = 80, 200, 20
LIMITS = {"run": 10.0, "study": 20.0}


def continued(folder: Path, epochs: int, generator: np.random.Generator) -> list[EpochRecord]:
    """Extends the history of a run to `epochs` epochs."""
    state = results.read(folder / results.STATE, StateFile)
    first = dict(state["history"][0])
    history = []
    for epoch in range(1, epochs + 1):
        noise = generator.normal(0, 0.05)
        values = {"train_loss": 1.1 / epoch**0.5, "val_loss": 1 + noise, "val_accuracy": 0.6 + noise}
        history.append(cast("EpochRecord", {**first, **values, "epoch": epoch}))
    results.write(folder / results.STATE, {**state, "history": history})
    return history


def make(folder: Path) -> None:
    """Makes the run and the study."""
    data = folder / "data"
    data.mkdir(parents=True)
    make_phantoms(data, Silent(), COUNTS, seed=0)
    config = Config(arch="squeezenet1_1", weights="none", image_size=32, epochs=1, device="cpu", precision="float32")
    pipeline.search(data, folder / "study", config, SearchOptions(trials=1, trial_epochs=1), Silent())
    shutil.copytree(folder / "study" / "best", folder / "run")
    generator = np.random.default_rng(0)
    continued(folder / "run", EPOCHS, generator)
    trials, rows = folder / "study" / "trials", []
    for number in range(TRIALS):
        trial = trials / f"{number:04d}"
        if number:
            shutil.copytree(trials / "0000", trial)
        pruned = bool(number % 3 == 2)
        history = continued(trial, TRIAL_EPOCHS // 2 if pruned else TRIAL_EPOCHS, generator)
        losses = [record["val_loss"] for record in history]
        row = {"number": number, "state": "PRUNED" if pruned else "COMPLETE", "value": min(losses)}
        row |= {"learning_rate": 10 ** generator.uniform(-5, -2), "weight_decay": 10 ** generator.uniform(-5, -1)}
        row |= {"scheduler_patience": int(generator.integers(2, 10)), "epochs_run": len(history)}
        rows.append(row | {"best_epoch": 1 + int(np.argmin(losses)), "seconds": 60.0, "stop_reason": "made up"})
    with (folder / "study" / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Makes the run and the study if they do not exist, and measures their reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    if not (folder / "run").exists():
        make(folder)
    print("result  wall s  processor s  limit s  page MB")
    for name, limit in LIMITS.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        command = [sys.executable, "-m", "busi_tune", "report", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = (folder / name / results.REPORT_PAGE).stat().st_size / 1e6
        print(f"{name:6}  {wall:6.1f}  {used:11.1f}  {limit:7.0f}  {size:7.2f}")


if __name__ == "__main__":
    main()
