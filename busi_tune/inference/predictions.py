"""Predictions for image files: decoding runs ahead of the model, and only a few files are in memory."""

import os
import stat
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from busi_tune import images
from busi_tune.errors import ImageError
from busi_tune.images import Pixels
from busi_tune.inference.certificate import open_export
from busi_tune.inference.classifier import LARGEST_SIDE, Classifier
from busi_tune.inference.inputs import mode_of
from busi_tune.inference.metadata import ModelMetadata
from busi_tune.names import MALIGNANT
from busi_tune.results import PREDICTION, PredictionEntry

BATCH_SIZE = 8
# For so few images optimisation takes longer than it saves, and twice the memory (docs/explanation/predict.md).
FEW = 8
PIXELS_AT_ONCE = 4_000_000


class Loaded(NamedTuple):
    """A picture: its pixels as the model takes them, or the reason why there are none; and doubts about them."""

    path: str
    pixels: Pixels | str
    warning: str = ""


@dataclass(frozen=True)
class Prediction:
    """One file's answer: probabilities in the order of the classes, or the reason why there is none.

    `malignant` says whether the disease reaches its threshold, and is None where the model has no operating point.
    `flag` is its word in answers: "malignant", or "positive" for a disease of another name. `refer` says whether the
    largest probability is below the confidence that was asked for, and is None where none was.
    """

    path: str
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    malignant: bool | None = None
    warning: str = ""
    error: str = ""
    flag: str = MALIGNANT
    refer: bool | None = None

    def referred_below(self, confidence: float) -> "Prediction":
        """The prediction with its mark of whether it is less sure than `confidence`; an error has none."""
        return self if self.error else replace(self, refer=max(self.probabilities) < confidence)

    def to_entry(self, classes: Sequence[str]) -> PredictionEntry:
        """The prediction as JSON has it, with the names of the classes."""
        if self.error:
            return {"schema": PREDICTION, "path": self.path, "error": self.error}
        probabilities = dict(zip(classes, self.probabilities, strict=True))
        entry: PredictionEntry = {
            "schema": PREDICTION,
            "path": self.path,
            "predicted": self.predicted,
            "probabilities": probabilities,
        }
        if self.malignant is not None and self.flag == MALIGNANT:
            entry["malignant"] = self.malignant
        elif self.malignant is not None:
            entry["positive"] = self.malignant
        if self.refer is not None:
            entry["refer"] = self.refer
        if self.warning:
            entry["warning"] = self.warning
        return entry


@dataclass(frozen=True)
class Predictions:
    """The predictions of `classifier`, one for each file, in order; each is computed when it is asked for, and once."""

    classifier: Classifier
    found: Iterator[Prediction]

    def __iter__(self) -> Iterator[Prediction]:
        """The predictions that have not been asked for yet."""
        return self.found


def predict(
    export: Path,
    paths: Iterable[Path],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    provider: str = "cpu",
    allow_unverified: bool = False,
    min_confidence: float | None = None,
    key: str = "",
) -> Predictions:
    """The predictions for `paths` of an export folder's model, or of one model file in it.

    Up to eight files go one at a time through a model that is not optimised, because optimisation takes longer than it
    saves; more go through an optimised one, up to `batch_size` at a time. `threads` is 0 for one on each core. With
    `min_confidence` less sure answers are marked to be referred. With a public `key` (see `signature.read_public_key`)
    its owner must have signed the export.

    Raises:
        BusiTuneError: the model cannot be used (see `open_export`).
    """
    remaining = iter(paths)
    first = list(islice(remaining, FEW + 1))
    few = len(first) <= FEW
    classifier = open_export(
        export,
        threads,
        optimisation="none" if few else "all",
        provider=provider,
        allow_unverified=allow_unverified,
        key=key,
    )
    found = predict_files(classifier, chain(first, remaining), 1 if few else batch_size, threads)
    if min_confidence is not None:
        return Predictions(classifier, (prediction.referred_below(min_confidence) for prediction in found))
    return Predictions(classifier, found)


def predict_files(
    classifier: Classifier, paths: Iterable[Path], batch_size: int = BATCH_SIZE, threads: int = 0
) -> Iterator[Prediction]:
    """A prediction for each file, in order; a file that cannot be read gets its error, and the rest goes on.

    Of each `batch_size` files those of equal size go through the model together. The next two batches are decoded
    meanwhile, by `threads` threads; 0 is one for each core.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
    loaded = _loaded_ahead(pool, classifier, iter(paths), 2 * batch_size)
    # `images` silences Pillow's warnings for each file, but threads undo that for each other.
    with warnings.catch_warnings(action="ignore"):
        try:
            while batch := list(islice(loaded, batch_size)):
                yield from _predicted(classifier, batch)
        finally:
            pool.shutdown(cancel_futures=True)


def predict_pictures(classifier: Classifier, pictures: Iterable[tuple[str, bytes]]) -> list[Prediction]:
    """A prediction for each picture, given as its name and the content of its file, in order.

    All of them are in memory at once; those of equal size go through the model together.
    """
    return list(_predicted(classifier, [_decoded(name, data, classifier) for name, data in pictures]))


def _loaded_ahead(
    pool: ThreadPoolExecutor, classifier: Classifier, paths: Iterator[Path], ahead: int
) -> Iterator[Loaded]:
    waiting: deque[Future[Loaded]] = deque()
    for path in paths:
        waiting.append(pool.submit(_load, path, classifier))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _load(path: Path, classifier: Classifier) -> Loaded:
    """The pixels of a file as the model takes them, or the reason why there are none."""
    # A pipe or a device may have no end, and opening it may wait for ever.
    mode = mode_of(path)
    if mode and not stat.S_ISREG(mode):
        return Loaded(str(path), _no_file(path, mode))
    return _decoded(str(path), path, classifier)


def _decoded(name: str, source: Path | bytes, classifier: Classifier) -> Loaded:
    try:
        facts, image = images.inspect(source)
        whole = classifier.fixed_size is None and max(image.size) <= LARGEST_SIDE
        pixels = np.asarray(image) if whole else images.resized(image, classifier.image_size)
    except ImageError as error:
        return Loaded(name, str(error))
    return Loaded(name, pixels, "; ".join(note.text for note in facts.notes if note.doubtful))


def _no_file(path: Path, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        return "a pipe, a socket or a device, not a file"
    return "is a directory" if next(images.walk(path), None) else "is a directory without images"


def _predicted(classifier: Classifier, batch: list[Loaded]) -> Iterator[Prediction]:
    """The predictions for a batch in its order, computed for each size at once."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, loaded in enumerate(batch):
        if not isinstance(loaded.pixels, str):
            sizes.setdefault(loaded.pixels.shape, []).append(number)
    predictions: dict[int, Prediction] = {}
    for (height, width, _), numbers in sizes.items():
        most = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            outputs = classifier.run(np.stack([batch[number].pixels for number in some]))
            for number, row, scores in zip(some, outputs.probabilities.tolist(), outputs.guard.tolist(), strict=True):
                predictions[number] = _prediction(batch[number], row, scores, classifier.metadata)
    for number, loaded in enumerate(batch):
        yield predictions.get(number) or Prediction(loaded.path, error=str(loaded.pixels))


def _prediction(loaded: Loaded, row: list[float], scores: list[float], model: ModelMetadata) -> Prediction:
    malignant = None
    if model.threshold is not None:
        malignant = row[model.classes.index(model.positive)] >= model.threshold
    warnings = [guard.warning for guard, score in zip(model.guards, scores, strict=True) if score > guard.limit]
    return Prediction(
        loaded.path,
        model.classes[int(np.argmax(row))],
        tuple(row),
        malignant,
        "; ".join(filter(None, [loaded.warning, *warnings])),
        flag=model.flag or MALIGNANT,
    )
