"""Predictions for image files. Threads decode and predict in parallel, and only a few files are in memory."""

import base64
import html
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from busi_tune import images
from busi_tune.errors import ConfigError, ImageError, printable
from busi_tune.images import Pixels
from busi_tune.inference.certificate import open_export
from busi_tune.inference.classifier import Classifier, Floats
from busi_tune.inference.inputs import mode_of
from busi_tune.inference.metadata import ModelMetadata
from busi_tune.names import MALIGNANT
from busi_tune.overlays import Explanation
from busi_tune.results import PREDICTION, PredictionEntry

BATCH_SIZE = 8
# Up to this number of images, optimisation takes longer than it saves, and twice the memory
# (docs/explanation/predict.md).
FEW = 8
PIXELS_AT_ONCE = 4_000_000
# The predictions that a notebook shows, and the longest side of their pictures in pixels.
SHOWN, SIDE = 20, 64


class Loaded(NamedTuple):
    """A picture: its pixels (side, side, 3) for the model or the reason why it cannot be read, and a warning.

    `width` and `height` are those of the decoded picture, before a resize.
    """

    path: str
    pixels: Pixels | str
    warning: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file: probabilities in the order of the `classes`, or an `error` with the reason.

    `malignant` is True if the probability of the disease reaches its threshold, and None without an operating point.
    `flag` is the name of this entry in results: "malignant", or "positive" for a disease of another name. `refer` is
    True if the largest probability is below the requested confidence, and None if no confidence was requested.
    `explanation` is there if it was requested, and `overlay` is the file that shows it.
    """

    path: str
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    malignant: bool | None = None
    warning: str = ""
    error: str = ""
    flag: str = MALIGNANT
    refer: bool | None = None
    classes: tuple[str, ...] = ()
    explanation: Explanation | None = field(default=None, compare=False, repr=False)
    overlay: str = ""

    @property
    def by_class(self) -> dict[str, float]:
        """The probability of each class, by its name; empty if there is an error."""
        return dict(zip(self.classes, self.probabilities, strict=True)) if self.probabilities else {}

    def referred_below(self, confidence: float) -> "Prediction":
        """The prediction with `refer` set by this `confidence`. An error is returned unchanged."""
        return self if self.error else replace(self, refer=max(self.probabilities) < confidence)

    def to_entry(self, classes: Sequence[str]) -> PredictionEntry:
        """The prediction as a JSON object, with the names of the classes."""
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
        if self.overlay:
            entry["overlay"] = self.overlay
        if self.warning:
            entry["warning"] = self.warning
        return entry


@dataclass(frozen=True)
class Predictions:
    """The predictions of `classifier`, one for each file, in order. Each is computed on demand, and only once."""

    classifier: Classifier
    found: Iterator[Prediction]

    def __iter__(self) -> Iterator[Prediction]:
        """The predictions that have not been taken yet."""
        return self.found

    def _repr_html_(self) -> str:
        """A table of the next predictions with their pictures, for a notebook. It does not take them."""
        first = list(islice(self.found, SHOWN + 1))
        object.__setattr__(self, "found", chain(first, self.found))
        classes = self.classifier.classes
        heads = "".join(f"<th>{_cell(name)}</th>" for name in ("", "file", "predicted", *classes, "note"))
        more = f"<p>The first {SHOWN} are shown.</p>" if len(first) > SHOWN else ""
        return f"<table><tr>{heads}</tr>{''.join(map(_row, first[:SHOWN]))}</table>{more}"


def _row(found: Prediction) -> str:
    """A prediction as a row of the table in a notebook."""
    shares = [f"{share:.4f}" for share in found.probabilities] or [""] * len(found.classes)
    cells = [found.path, found.predicted, *shares, found.error or found.warning]
    picture = ""
    if not found.error:
        with suppress(ImageError):
            data = base64.b64encode(images.preview(images.inspect(Path(found.path))[1], SIDE)).decode()
            picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return f"<tr><td>{picture}</td>{''.join(f'<td>{_cell(text)}</td>' for text in cells)}</tr>"


def _cell(text: str) -> str:
    return html.escape(printable(text))


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
    explain: bool = False,
) -> Predictions:
    """Predict the images in `paths` with the model of an export folder, or with one model file in it.

    Up to eight files are predicted one at a time without optimisation, which would take longer than it saves. More
    files are predicted with optimisation: each of `threads` threads has a part of the `batch_size` files that are
    predicted at the same time, or at least one file. `threads` 0 means one thread for each core.
    With `min_confidence`, less certain predictions are marked for referral. With a public `key` (see
    `signature.read_public_key`), the owner of the key must have signed the export. With `explain`, each prediction has
    an explanation.

    Raises:
        BusiTuneError: the model cannot be used (see `open_export`).
        ConfigError: the model has no class activation maps to `explain` with.
    """
    remaining = iter(paths)
    first = list(islice(remaining, FEW + 1))
    few, workers = len(first) <= FEW, threads or os.cpu_count() or 1
    classifier = open_export(
        export,
        threads if few or provider != "cpu" else 1,
        optimisation="none" if few else "all",
        provider=provider,
        allow_unverified=allow_unverified,
        key=key,
    )
    if explain and not classifier.has_maps:
        raise ConfigError(
            f"{classifier.path} has no output cam to explain its predictions with; name a model.onnx that "
            "`busi-tune export --cam` made."
        )
    # A GPU needs whole batches; on a CPU, threads that each have a part of the batch need as much memory as one batch.
    each = batch_size if provider != "cpu" else max(1, batch_size // workers)
    found = predict_files(
        classifier, chain(first, remaining), 1 if few else each, 2 if few else workers, explain=explain
    )
    if min_confidence is not None:
        return Predictions(classifier, (prediction.referred_below(min_confidence) for prediction in found))
    return Predictions(classifier, found)


def predict_files(
    classifier: Classifier,
    paths: Iterable[Path],
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    *,
    explain: bool = False,
) -> Iterator[Prediction]:
    """A prediction for each file, in order. A file that cannot be read gives a prediction with an error.

    Each of `threads` threads decodes and predicts batches of `batch_size` files; 0 means one thread for each core. The
    images of a batch go through the model together. A classifier with one thread of its own is fastest. With `explain`,
    each prediction has an explanation.
    """
    workers = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    # `images` silences Pillow's warnings for each file, but each thread can undo that for the others.
    with warnings.catch_warnings(action="ignore"):
        try:
            predicted = partial(_predict_batch, classifier, explain=explain)
            yield from chain.from_iterable(_batches(pool, predicted, iter(paths), batch_size, ahead=2 * workers))
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(
    pool: ThreadPoolExecutor,
    predicted: Callable[[list[Path]], list[Prediction]],
    paths: Iterator[Path],
    batch_size: int,
    *,
    ahead: int,
) -> Iterator[list[Prediction]]:
    """The predictions of each batch, in order. At most `ahead` further batches are in the pool."""
    waiting = deque[Future[list[Prediction]]]()
    while batch := list(islice(paths, batch_size)):
        waiting.append(pool.submit(predicted, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _predict_batch(classifier: Classifier, paths: list[Path], *, explain: bool) -> list[Prediction]:
    return list(_predicted(classifier, [_load(path, classifier) for path in paths], explain=explain))


def predict_pictures(
    classifier: Classifier, pictures: Iterable[tuple[str, bytes]], *, explain: bool = False
) -> list[Prediction]:
    """A prediction for each picture, given as its name and the content of its file, in order.

    All pictures are in memory at the same time, and go through the model together. With `explain`, each prediction has
    an explanation.
    """
    loaded = [_decoded(name, data, classifier) for name, data in pictures]
    return list(_predicted(classifier, loaded, explain=explain))


def _load(path: Path, classifier: Classifier) -> Loaded:
    """The pixels of a file for the model, or the reason why the file cannot be read."""
    # A pipe or a device may have no end, and opening it may wait for ever.
    mode = mode_of(path)
    if mode and not stat.S_ISREG(mode):
        return Loaded(str(path), _no_file(path, mode))
    return _decoded(str(path), path, classifier)


def _decoded(name: str, source: Path | bytes, classifier: Classifier) -> Loaded:
    try:
        facts, image = images.inspect(source)
        pixels = images.resized(image, classifier.image_size)
    except ImageError as error:
        return Loaded(name, str(error))
    warning = "; ".join(note.text for note in facts.notes if note.doubtful)
    return Loaded(name, pixels, warning, facts.width, facts.height)


def _no_file(path: Path, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        return "a pipe, a socket or a device, not a file"
    return "is a directory" if next(images.walk(path), None) else "is a directory without images"


def _predicted(classifier: Classifier, batch: list[Loaded], *, explain: bool = False) -> Iterator[Prediction]:
    """The predictions for a batch, in its order. Its pictures are computed together, as far as memory allows."""
    pixels = {number: one.pixels for number, one in enumerate(batch) if not isinstance(one.pixels, str)}
    predictions: dict[int, Prediction] = {}
    numbers, most = list(pixels), max(1, PIXELS_AT_ONCE // classifier.image_size**2)
    for start in range(0, len(numbers), most):
        some = numbers[start : start + most]
        outputs = classifier.run(np.stack([pixels[number] for number in some]), maps=explain)
        for number, row, scores in zip(some, outputs.probabilities.tolist(), outputs.guard.tolist(), strict=True):
            predictions[number] = _prediction(batch[number], row, scores, classifier.metadata)
        for number, maps in zip(some, () if outputs.maps is None else outputs.maps, strict=False):
            explanation = _explanation(predictions[number].predicted, batch[number], pixels[number], maps, classifier)
            predictions[number] = replace(predictions[number], explanation=explanation)
    for number, loaded in enumerate(batch):
        yield predictions.get(number) or Prediction(
            loaded.path, error=str(loaded.pixels), classes=classifier.metadata.classes
        )


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
        classes=model.classes,
    )


def _explanation(predicted: str, loaded: Loaded, pixels: Pixels, maps: Floats, classifier: Classifier) -> Explanation:
    """The map of the predicted class, from the maps (classes, h, w) of the picture."""
    return Explanation(pixels, loaded.width, loaded.height, maps[classifier.classes.index(predicted)])
