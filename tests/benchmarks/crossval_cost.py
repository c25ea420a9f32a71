"""Overhead of a cross-validation: the share of its time outside training and prediction.

    python tests/benchmarks/crossval_cost.py --data DIR [--folds 5] [--epochs 5] [--image-size 64]

The overhead consists of folds, checks, checkpoints, files, metrics with intervals, and pictures. Images are decoded
before.
"""

import argparse
import tempfile
import time
from pathlib import Path

from torch import nn

from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.dataset import Part, open_dataset
from busi_tune.evaluation.metrics import Answers
from busi_tune.progress import Silent
from busi_tune.training import run_folder, runs


def measured(data: Path, config: Config, folds: int, place: Path) -> tuple[float, float, float]:
    """The seconds of a cross-validation: in total, in epochs, and in predictions."""
    answering: list[float] = []
    answer = runs._answers

    def timed(run: runs.Run, model: nn.Module, part: Part) -> Answers:
        started = time.perf_counter()
        found = answer(run, model, part)
        answering.append(time.perf_counter() - started)
        return found

    runs._answers = timed
    open_dataset(data, config, Silent())
    started = time.perf_counter()
    pipeline.crossval(data, place, config, CrossvalOptions(folds=folds), Silent())
    total = time.perf_counter() - started
    epochs = [
        record.seconds for fold in range(1, folds + 1) for record in run_folder.history(place / "folds" / str(fold))
    ]
    return total, sum(epochs), sum(answering)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    config = Config(arch="resnet18", weights="none", image_size=options.image_size, epochs=options.epochs, device="cpu")
    with tempfile.TemporaryDirectory() as place:
        total, training, answering = measured(options.data, config, options.folds, Path(place) / "study")
    rest = total - training - answering
    print(
        f"{total:.1f} s: training {training:.1f} s, answering {answering:.1f} s, rest {rest:.1f} s ({rest / total:.1%})"
    )


if __name__ == "__main__":
    main()
