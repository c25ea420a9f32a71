"""One evaluation on images of another source, from its checks to the files in its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from busi_tune import files, locks, results
from busi_tune.data.labelled import Judged, Labelled, read_labelled, read_mapping, to_judge
from busi_tune.data.reading import ImageReading
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, summarise
from busi_tune.external import figures
from busi_tune.external.candidates import Answered, Candidate
from busi_tune.names import composed, positive_word
from busi_tune.progress import Progress
from busi_tune.report import plots
from busi_tune.results import EVALUATION, PREDICTIONS, EvaluationFile

OWN_FILES = frozenset({PREDICTIONS, results.CONFUSION, results.RISK_COVERAGE, results.RELIABILITY})


@dataclass(frozen=True)
class Elsewhere:
    """Labelled images of another source: a folder or a table, and how to read it.

    `mapping` assigns the source's labels to classes, as in "benign=B,malignant=M". `groups` is a CSV of images that
    belong together. Images at least as similar as `similarity` count as near-duplicates. An image whose near-duplicate
    in the training data has another label is refused, or left out with `leave_out_conflicts`.
    """

    data: Path
    mapping: str | None = None
    groups: Path | None = None
    similarity: float = 0.93
    leave_out_conflicts: bool = False


def check_place(folder: Path, data: Path) -> None:
    """Refuse an evaluation folder that holds something else or is inside the folder of the images.

    Raises:
        RunError: the folder is not usable.
    """
    if data.is_dir():
        files.refuse_inside(folder, data)
    files.refuse_foreign(folder, "an evaluation", EVALUATION, OWN_FILES)


def judge(candidate: Candidate, elsewhere: Elsewhere, folder: Path, progress: Progress) -> EvaluationFile:
    """Evaluate a model on `elsewhere`, write the evaluation into `folder`, and return its document.

    Nothing is written before all metrics are computed.

    Raises:
        BusiTuneError: the images cannot be used.
    """
    mapping = read_mapping(elsewhere.mapping, candidate.classes)
    labelled = read_labelled(elsewhere.data, mapping, candidate.classes, progress, groups=elsewhere.groups)
    judged = to_judge(
        labelled,
        candidate.known,
        elsewhere.similarity,
        digests_of_known=candidate.digests_of_known,
        leave_out_conflicts=elsewhere.leave_out_conflicts,
    )
    paths = [labelled.paths[row] for row in judged.rows]
    answered = candidate.answer([labelled.reading.names.root / path for path in paths], progress)
    labels = np.array([candidate.classes.index(labelled.labels[row]) for row in judged.rows], dtype=np.int64)
    answers = Answers(labels, answered.probabilities, candidate.classes, candidate.positive)
    document = _document(candidate, elsewhere, labelled, judged, answers=answers, answered=answered)
    _tell(document, progress)
    with locks.only_writer(folder):
        with files.explained(folder / EVALUATION, "deleted"):
            (folder / EVALUATION).unlink(missing_ok=True)
        rows = _rows(candidate, judged, paths, labelled.reading.images, answers=answers, answered=answered)
        files.write_csv(folder / PREDICTIONS, rows)
        plots.plot_evaluation(folder, document, answers)
        document["files"] = {name: files.sha256(folder / name) for name in sorted(OWN_FILES)}
        results.write(folder / EVALUATION, document)
    return document


def _document(
    candidate: Candidate,
    elsewhere: Elsewhere,
    labelled: Labelled,
    judged: Judged,
    *,
    answers: Answers,
    answered: Answered,
) -> EvaluationFile:
    external: results.TestSummary = {**summarise(answers), **with_intervals(answers, judged.groups)}
    counts = {name: int((answers.labels == k).sum()) for k, name in enumerate(candidate.classes)}
    document: EvaluationFile = {
        "schema": results.SCHEMAS[EvaluationFile],
        "model": str(candidate.path),
        "kind": candidate.kind,
        "model_sha256": candidate.sha256,
        "data": str(elsewhere.data),
        "labels": dict(labelled.renamed),
        "images": counts,
        "absent_classes": [name for name, count in counts.items() if not count],
        "unreadable": [{"path": path, "reason": why} for path, why in labelled.reading.unreadable.items()],
        "left_out": judged.left_out,
        "similarity": elsewhere.similarity,
        "training_data": str(candidate.known.root) if candidate.known else None,
        "twins_checked": _twins_checked(candidate, elsewhere.similarity),
        "external": external,
        "internal": candidate.internal,
        "differences": figures.differences(candidate.internal, external),
        "calibration": figures.calibration(candidate.internal, external, answers),
        "files": {},
    }
    if candidate.point is not None:
        document["operating_point"] = figures.point_there(candidate.point, answers, judged.groups)
    if candidate.guard is not None and answered.warned:
        document["guard"] = {
            "internal": candidate.guard,
            "external": float(np.any(list(answered.warned.values()), axis=0).mean()),
            "scores": {name: float(flags.mean()) for name, flags in answered.warned.items()},
        }
    confidence = figures.confidence_there(candidate.validation, answers)
    if confidence is not None:
        document["min_confidence"] = confidence
    return document


def _twins_checked(candidate: Candidate, similarity: float) -> str:
    if candidate.known is None and candidate.digests_of_known:
        return (
            f"Compared with the SHA-256 of {len(candidate.digests_of_known)} images in the certificate, which finds "
            "only identical files; name the folder of the training images with --training-data DIR to find "
            "near-duplicates."
        )
    if candidate.known is None:
        return (
            f"{candidate.path} does not name its training images, so near-duplicates of them were not left out; name "
            "their folder with --training-data DIR."
        )
    return (
        f"Compared with {len(candidate.known.paths)} images of {candidate.known.root}, all but its test images, at a "
        f"similarity of {similarity:g}."
    )


def _tell(document: EvaluationFile, progress: Progress) -> None:
    if document["training_data"] is None:
        progress.notice(document["twins_checked"])
    if document["absent_classes"]:
        progress.notice(
            f"{document['data']} has no image of class {', '.join(document['absent_classes'])} to judge: figures of "
            "that class, and the macro figures, are not defined there."
        )


def _rows(
    candidate: Candidate,
    judged: Judged,
    paths: Sequence[str],
    images: Mapping[str, ImageReading],
    *,
    answers: Answers,
    answered: Answered,
) -> list[dict[str, object]]:
    """The rows of predictions.csv."""
    classes, point = candidate.classes, candidate.point
    rows: list[dict[str, object]] = []
    for row, (path, probabilities) in enumerate(zip(paths, answers.probabilities.tolist(), strict=True)):
        entry: dict[str, object] = {
            "path": composed(path),
            "class": classes[answers.labels[row]],
            "predicted": classes[answers.predicted[row]],
            **{f"p_{name}": value for name, value in zip(classes, probabilities, strict=True)},
            "group": int(judged.groups[row]),
            "sha256": images[path].sha256,
        }
        if point is not None:
            flagged = probabilities[classes.index(point["class"])] >= point["threshold"]
            entry[positive_word(point["class"])] = flagged
        entry["warning"] = ", ".join(name for name, flags in answered.warned.items() if flags[row])
        rows.append(entry)
    return rows
