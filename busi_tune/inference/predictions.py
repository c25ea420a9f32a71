"""Files in, an answer for each out: decoding runs ahead of the model, and no more than that is in memory."""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from busi_tune import images
from busi_tune.errors import ImageError
from busi_tune.images import Pixels
from busi_tune.inference.classifier import Classifier
from busi_tune.inference.metadata import ModelFacts
from busi_tune.results import PredictionEntry

BATCH_SIZE = 8
# The graph resizes in double precision: what is larger is resized as it is read, to the same pixels.
LARGEST_SIDE = 1024
PIXELS_AT_ONCE = 4_000_000

Loaded = tuple[Path, Pixels | str]


@dataclass(frozen=True)
class Prediction:
    """One file's answer: probabilities in the order of the classes, or the reason why there is none.

    `malignant` is None where the model has no operating point.
    """

    path: str
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    malignant: bool | None = None
    warning: str = ""
    error: str = ""

    def to_entry(self, classes: Sequence[str]) -> PredictionEntry:
        """The prediction as JSON has it, with the names of the classes."""
        if self.error:
            return {"path": self.path, "error": self.error}
        probabilities = dict(zip(classes, self.probabilities, strict=True))
        entry: PredictionEntry = {"path": self.path, "class": self.predicted, "probabilities": probabilities}
        if self.malignant is not None:
            entry["malignant"] = self.malignant
        if self.warning:
            entry["warning"] = self.warning
        return entry


def predict_files(
    classifier: Classifier, paths: Iterable[Path], batch_size: int = BATCH_SIZE, threads: int = 0
) -> Iterator[Prediction]:
    """An answer for each file, in order; a file that cannot be read gets its error, and the rest goes on.

    Of each `batch_size` files those of equal size go through the model together. The next two batches are decoded
    meanwhile, by `threads` threads; 0 is one for each core.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
    loaded = _loaded_ahead(pool, classifier, iter(paths), 2 * batch_size)
    # `images` silences Pillow's warnings for each file, but threads undo that for each other.
    with warnings.catch_warnings(action="ignore"):
        try:
            while batch := list(islice(loaded, batch_size)):
                yield from _answered(classifier, batch)
        finally:
            pool.shutdown(cancel_futures=True)


def _loaded_ahead(
    pool: ThreadPoolExecutor, classifier: Classifier, paths: Iterator[Path], ahead: int
) -> Iterator[Loaded]:
    waiting: deque[tuple[Path, Future[Pixels | str]]] = deque()
    for path in paths:
        waiting.append((path, pool.submit(_load, path, classifier)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _load(path: Path, classifier: Classifier) -> Pixels | str:
    """The pixels of a file as the model takes them, or the reason why there are none."""
    try:
        image = images.decode(path)
        if classifier.fixed_size is None and max(image.size) <= LARGEST_SIDE:
            return np.asarray(image)
        return images.resized(image, classifier.image_size)
    except ImageError as error:
        return str(error)


def _answered(classifier: Classifier, batch: list[Loaded]) -> Iterator[Prediction]:
    """The answers for a batch in its order, computed for each size at once."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, (_, pixels) in enumerate(batch):
        if not isinstance(pixels, str):
            sizes.setdefault(pixels.shape, []).append(number)
    answers: dict[int, Prediction] = {}
    for (height, width, _), numbers in sizes.items():
        most = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            found = classifier.run(np.stack([batch[number][1] for number in some]))
            for number, row, scores in zip(some, found.probabilities.tolist(), found.guard.tolist(), strict=True):
                answers[number] = _prediction(str(batch[number][0]), row, scores, classifier.facts)
    for number, (path, pixels) in enumerate(batch):
        yield answers[number] if number in answers else Prediction(str(path), error=str(pixels))


def _prediction(path: str, row: list[float], scores: list[float], facts: ModelFacts) -> Prediction:
    malignant = None
    if facts.threshold is not None:
        malignant = row[facts.classes.index("malignant")] >= facts.threshold
    warnings = [guard.warning for guard, score in zip(facts.guards, scores, strict=True) if score > guard.limit]
    return Prediction(path, facts.classes[int(np.argmax(row))], tuple(row), malignant, "; ".join(warnings))
