"""A model to evaluate, from a finished run or an export: its predictions, its test metrics and its training images.

An export runs on ONNX Runtime; evaluating it imports no PyTorch.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from busi_tune import files, images
from busi_tune.data.dataset import Dataset
from busi_tune.data.labelled import Known, known_images, training_listing
from busi_tune.errors import DataError, ImageError, RunError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, Flags, Floats, softmax, summarise
from busi_tune.inference import MODEL, VERIFICATION, open_export, predict_files
from busi_tune.inference.certificate import check_folder
from busi_tune.inference.classifier import Classifier
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import (
    IDENTITY,
    METRICS,
    PREDICTIONS,
    MetricsFile,
    OperatingPointEntry,
    RiskCoveragePoint,
    TestSummary,
    read,
)

# The number of images that are held in memory at a time for a run's network.
CHUNK = 256


@dataclass(frozen=True)
class Answered:
    """A model's outputs: probabilities (images, classes), and for each score of its guard, flags of the warnings."""

    probabilities: Floats
    warned: Mapping[str, Flags]


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    `internal` has the metrics on its own test images, at its temperature. `point` is the stored operating point.
    `validation` is the risk-coverage curve of its validation images; it is empty for an export of an earlier version.
    `guard` is the share of its test images for which the guard warns. `known` are the images that the model may have
    seen, or None if they are not available; an export then has their digests, `digests_of_known`. `answer` runs the
    model on image files.
    """

    path: Path
    kind: Literal["run", "export"]
    sha256: str
    classes: tuple[str, ...]
    positive: str | None
    internal: TestSummary
    point: OperatingPointEntry | None
    validation: list[RiskCoveragePoint]
    guard: float | None
    known: Known | None
    digests_of_known: frozenset[str]
    answer: Callable[[Sequence[Path], Progress], Answered]


def is_run(path: Path) -> bool:
    """Whether a path is a run rather than an export.

    Raises:
        RunError: the path is neither.
    """
    if (path / IDENTITY).is_file():
        return True
    export = path.parent if path.is_file() else path
    if not (export / VERIFICATION).is_file():
        raise RunError(f"{path} is neither a finished run nor an export; name a folder of `baseline` or `export`.")
    return False


def of_export(path: Path, training_data: Path | None, progress: Progress) -> Candidate:
    """The model of an export folder, or a model file in it; `training_data` is the folder of its training images.

    Raises:
        BusiTuneError: the export differs from the certified one, or `training_data` does not hold its test images.
    """
    folder, name = (path.parent, path.name) if path.is_file() else (path, MODEL)
    certificate = check_folder(folder)
    # `predict_files` uses one thread for each core.
    classifier = open_export(path, threads=1)
    model = certificate["models"][name]
    internal = model.get("test", certificate["test"])
    guard = model.get("guard", certificate["guard"])
    known = None
    if training_data is not None:
        tested = _tested(folder / PREDICTIONS)
        known = known_images(training_listing(training_data, tested, progress), tested, progress)
    return Candidate(
        path=path,
        kind="export",
        sha256=model.get("model_sha256", ""),
        classes=classifier.classes,
        positive=internal.get("positive"),
        internal=internal,
        point=model.get("operating_point", certificate.get("operating_point")),
        validation=certificate.get("validation_risk_coverage", []),
        guard=guard["test"].get("unchanged"),
        known=known,
        digests_of_known=frozenset(certificate.get("seen_images", [])),
        answer=lambda paths, shown: _answered_by_export(classifier, paths, shown),
    )


def _tested(path: Path) -> dict[str, str]:
    """The SHA-256 of each test image of an export, by its path."""
    with files.explained(path, "read"), path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {composed(row["path"]): row["sha256"] for row in csv.DictReader(file)}


def _answered_by_export(classifier: Classifier, paths: Sequence[Path], progress: Progress) -> Answered:
    rows, warnings = [], []
    for done, found in enumerate(predict_files(classifier, paths), start=1):
        if found.error:
            raise _unanswered(Path(found.path), found.error)
        rows.append(found.probabilities)
        warnings.append(found.warning)
        progress.step("answering", done, len(paths))
    progress.close("answering")
    guards = classifier.metadata.guards
    warned = {guard.name: np.array([guard.warning in warning for warning in warnings]) for guard in guards}
    return Answered(np.array(rows, dtype=np.float64), warned)


def of_run(run: Path, dataset: Dataset, progress: Progress) -> Candidate:
    """The best model of a finished run, with the temperature and the guard that its export would have."""
    from busi_tune.export.guard import all_scores
    from busi_tune.export.source import Source, fit
    from busi_tune.training.exportable import ExportableModel, logits_and_features

    source = Source.of(run, dataset, progress)
    fitted, positive = fit(source, None), source.identity.config.positive
    model = fitted.model
    assert isinstance(model, ExportableModel)

    def answered(pixels: images.Pixels) -> Answered:
        logits, features = logits_and_features(model, pixels)
        over = fitted.guard.warned(all_scores(fitted.guard, pixels, features))
        return Answered(softmax(logits), {s.name: over[:, k] for k, s in enumerate(fitted.guard.scores)})

    def answer(paths: Sequence[Path], shown: Progress) -> Answered:
        return joined([answered(pixels) for pixels in _chunks(paths, source.size, shown)])

    test = answered(source.part("test").pixels())
    answers = Answers(source.labels("test"), test.probabilities, source.classes, positive)
    tested = {composed(path) for path in dataset.split.rows("test")["path"]}
    return Candidate(
        path=run,
        kind="run",
        sha256=read(run / METRICS, MetricsFile)["model_sha256"],
        classes=source.classes,
        positive=positive,
        internal={**summarise(answers), **with_intervals(answers, source.groups("test"))},
        point=None,
        validation=fitted.risk_coverage,
        guard=float(np.any(list(test.warned.values()), axis=0).mean()),
        known=known_images(dataset.listing, tested, progress),
        digests_of_known=frozenset(),
        answer=answer,
    )


def joined(parts: Sequence[Answered]) -> Answered:
    """The outputs for several batches of images as one."""
    names = parts[0].warned
    return Answered(
        np.concatenate([part.probabilities for part in parts]),
        {name: np.concatenate([part.warned[name] for part in parts]) for name in names},
    )


def _chunks(paths: Sequence[Path], size: int, progress: Progress) -> Iterator[images.Pixels]:
    """The pixels (n, size, size, 3) of the files, up to `CHUNK` at a time."""
    for start in range(0, len(paths), CHUNK):
        some = paths[start : start + CHUNK]
        yield np.stack([_pixels(path, size) for path in some])
        progress.step("answering", start + len(some), len(paths))
    progress.close("answering")


def _pixels(path: Path, size: int) -> images.Pixels:
    try:
        return images.resized(images.decode(path), size)
    except ImageError as error:
        raise _unanswered(path, str(error)) from error


def _unanswered(path: Path, reason: str) -> DataError:
    """The error for an image that was readable as a thumbnail, but not at the network's size."""
    return DataError(f"{path} cannot be predicted ({reason}); leave it out, or run the same command again.")
