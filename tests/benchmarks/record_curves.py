"""Records full learning curves over a grid of configurations, for replays of studies.

    python tests/benchmarks/record_curves.py --data data/busi --arch resnet18 --out curves.csv
    python tests/benchmarks/record_curves.py --arch resnet18 --pack curves.csv

An interrupted recording continues when it is started again. Without a `curves.csv`, it continues from the packed
table of the architecture.
"""

import argparse
import gzip
import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from busi_tune.config import Config
from busi_tune.data.dataset import open_dataset
from busi_tune.progress import Silent
from busi_tune.training.batches import DeviceImages, to_device
from busi_tune.training.fit import fit, logits_of
from busi_tune.training.hardware import keep_memory, resolve
from busi_tune.training.state import TrainingState

TABLES = Path(__file__).parents[1] / "data"
RATES = [float(f"{rate:.4g}") for rate in np.geomspace(1e-5, 1e-2, 13)][2:]
DECAYS = [1e-5, 1e-3, 1e-1]
PATIENCES = [2, 6]
BASE: dict[str, Any] = {"weights": "none", "image_size": 64, "epochs": 30, "device": "cpu"}
# Configurations that are recorded with several seeds, for the spread over seeds.
REPEATED = [(RATES[6], 1e-3, 6), (RATES[4], 1e-3, 2)]
SEEDS = 6


def jobs() -> list[tuple[float, float, int, int]]:
    """All configurations of the grid in random order, with further seeds of some of them after the first 20."""
    grid = [(*point, 0) for point in itertools.product(RATES, DECAYS, PATIENCES)]
    random.Random(0).shuffle(grid)
    repeats = [(*point, seed) for seed in range(1, SEEDS) for point in REPEATED]
    return grid[:20] + repeats + grid[20:]


def packed(arch: str) -> Path:
    """The path of an architecture's table in the repository."""
    return TABLES / f"learning_curves.{arch}.csv.gz"


def record(data: Path, arch: str, out: Path) -> None:
    """Trains the configurations that `out` lacks, and appends their epochs."""
    torch.set_num_threads(1)
    keep_memory()
    base = Config(arch=arch, **BASE)
    base = base.replace(**resolve(base.device, base.precision))
    dataset = open_dataset(data, base, Silent())
    train, validation, test = (
        to_device(dataset.part(name, base.image_size, Silent()), base.device, mean=base.mean, std=base.std)
        for name in ("train", "validation", "test")
    )
    if not out.exists() and packed(arch).exists():
        out.write_bytes(gzip.decompress(packed(arch).read_bytes()))
    names = ["learning_rate", "weight_decay", "scheduler_patience", "seed"]
    done = set(pd.read_csv(out)[names].itertuples(index=False, name=None)) if out.exists() else set()
    for number, job in enumerate(jobs()):
        if job in done:
            continue
        started = time.monotonic()
        values = dict(zip(names, job, strict=True))
        config = base.replace(**values)
        state = TrainingState.start(config, len(dataset.classes))
        rows = [
            values
            | {
                "epoch": epoch.epoch,
                "train_loss": f"{epoch.train_loss:.6g}",
                "val_loss": f"{epoch.val_loss:.6g}",
                "val_accuracy": f"{epoch.val_accuracy:.6g}",
                "val_macro_f1": f"{epoch.val_macro_f1:.6g}",
                "test_accuracy": f"{test_accuracy(state, test):.6g}",
                "next_learning_rate": state.learning_rate,
            }
            for epoch in fit(state, train, validation, config.epochs)
        ]
        pd.DataFrame(rows).to_csv(out, mode="a", header=not out.exists(), index=False)
        print(f"{number} {values}: {len(rows)} epochs in {time.monotonic() - started:.0f} s", flush=True)


def test_accuracy(state: TrainingState, test: DeviceImages) -> float:
    """The accuracy on the test split at the current epoch of `state`."""
    predicted = logits_of(state.model, test, state.config.precision).argmax(dim=1).numpy()
    return float((predicted == test.host_labels).mean())


def pack(arch: str, curves: Path) -> None:
    """Writes the table in the repository; equal curves give equal bytes."""
    table = pd.read_csv(curves)
    table = table[table["learning_rate"].isin(RATES)].sort_values(
        ["learning_rate", "weight_decay", "scheduler_patience", "seed", "epoch"]
    )
    packed(arch).write_bytes(gzip.compress(table.to_csv(index=False, lineterminator="\n").encode(), mtime=0))


def main() -> None:
    """Records or packs curves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("data/busi"))
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--out", type=Path, default=Path("curves.csv"))
    parser.add_argument("--pack", type=Path)
    options = parser.parse_args()
    if options.pack:
        pack(options.arch, options.pack)
    else:
        record(options.data, options.arch, options.out)


if __name__ == "__main__":
    main()
