"""The work that is left of trainings, and its cost, measured in a few steps of training on a few images."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from busi_tune import files, images
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, Part
from busi_tune.training.batches import to_device
from busi_tune.training.fit import float32_logits
from busi_tune.training.hardware import memory_explained
from busi_tune.training.runs import epochs
from busi_tune.training.state import TrainingState

# Training steps in a measured epoch, the number of measured epochs, and the images that they are made of.
STEPS, REPEATS, SAMPLE = 4, 2, 32


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """Work that is left: trainings of one kind on one split.

    `configs` is their configuration, or several configurations that differ in their cost. `epochs` are left at most;
    `saved` of them are those that the pruner is expected to save. `checkpoints` are the trainings whose checkpoints
    are kept at one time, and `checkpoint_bytes` the size of those of one training.
    """

    name: str
    folder: Path
    dataset: Dataset
    configs: tuple[Config, ...]
    trainings: int
    finished: int
    epochs_done: int
    epochs: int
    evaluations: int
    checkpoints: int
    checkpoint_bytes: int
    saved: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured seconds: to start a training, for one epoch, and for one answer in float32; and the peak memory.

    The memory is that of this process, in bytes, or None where the system does not tell it; `gpu_memory` is None on a
    CPU. `processors` is the mean number of processors that the process had during the measurement.
    """

    start: float
    epoch: float
    answer: float
    memory: int | None
    gpu_memory: int | None
    processors: float


def measure(config: Config, dataset: Dataset) -> Pace:
    """Train a resolved `config` for a few steps on images of `dataset`, in memory alone.

    Raises:
        OutOfMemory: the device has too little memory.
        DataError: an image cannot be read.
    """
    classes = len(dataset.classes)
    # Speed depends neither on the weights nor on the learning rate, which must not make the loss diverge.
    config = config.replace(
        weights="none", learning_rate=1e-8, min_learning_rate=0.0, epochs=10_000, early_stopping_patience=10_000
    )
    counts = {name: len(dataset.split.rows(name)) for name in ("train", "validation")}
    some = min(counts["train"], STEPS * config.batch_size)
    share = some / counts["train"]
    sample = _sample(dataset, config.image_size, max(SAMPLE, classes))
    train, validation = (_repeated(sample, max(1, round(share * counts[name]))) for name in ("train", "validation"))
    began = time.perf_counter()
    state = TrainingState.start(config, classes)
    start = time.perf_counter() - began
    # The first step allocates memory and chooses algorithms.
    warm = _repeated(sample, min(some, config.batch_size))
    list(epochs(state, warm, _repeated(sample, 1), 1))
    began, used = time.perf_counter(), time.process_time()
    seconds = []
    for saved in epochs(state, train, validation, 1 + REPEATS):
        files.sha256_bytes(saved.last)
        seconds.append(saved.record.seconds)
    # The rest of the time goes into the checkpoints, which do not depend on the number of images.
    whole, used = time.perf_counter() - began, time.process_time() - used
    saving = (whole - sum(seconds)) / REPEATS
    return Pace(
        start=start,
        epoch=sum(seconds) / REPEATS / share + saving,
        answer=_answer(state, sample),
        memory=_peak(),
        gpu_memory=None if config.device == "cpu" else torch.cuda.max_memory_allocated(config.device),
        processors=used / whole,
    )


def _sample(dataset: Dataset, size: int, count: int) -> Part:
    """The first training images of each class in turn, `count` in all."""
    labels, paths = dataset.labels("train"), list(dataset.split.rows("train")["path"])
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(len(dataset.classes)):
        own = labels == label
        rank[own] = np.arange(own.sum())
    rows = np.lexsort((labels, rank))[:count]
    root = dataset.listing.root
    pixels = np.stack([images.resized(images.inspect(root / paths[row])[1], size) for row in rows])
    return Part(pixels, np.arange(len(rows)), labels[rows], tuple(paths[row] for row in rows))


def _repeated(part: Part, count: int) -> Part:
    """`count` images, which repeat those of `part`."""
    rows = np.resize(part.rows, count)
    return Part(part.images, rows, part.labels[rows], tuple(part.paths[row] for row in rows))


def _answer(state: TrainingState, part: Part) -> float:
    """The seconds for one answer in float32, as in the final evaluation."""
    config = state.config
    data = to_device(part, config.device, mean=config.mean, std=config.std)

    def passes() -> list[float]:
        found = []
        for _ in range(2):
            began = time.perf_counter()
            float32_logits(state.model, data)
            found.append(time.perf_counter() - began)
        return found

    (found,) = memory_explained(iter([passes()]), config.device, f"{config.arch} in float32")
    return found[-1] / len(part.rows)


def _peak() -> int | None:
    """The peak memory of this process in bytes."""
    if sys.platform == "win32":
        return None
    import resource

    # The unit is bytes on macOS and KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
