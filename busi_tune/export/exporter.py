"""Make an export: models that are there only when they passed, their certificate, and the answers behind it."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from busi_tune import files, images, results
from busi_tune.data.dataset import Dataset
from busi_tune.errors import ParityError, RunError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import softmax, summarise
from busi_tune.export import assembly, resize
from busi_tune.export.assembly import Made
from busi_tune.export.calibration import at_threshold, calibration_figures
from busi_tune.export.export_options import ExportOptions
from busi_tune.export.gate import GateError
from busi_tune.export.guard import guard_graph
from busi_tune.export.parity import Reference, Shown, Way, make_reference, verify, ways
from busi_tune.export.source import Fitted, Source, fit
from busi_tune.export.variants import FORMS, guard_rates, make_variant, variant_name
from busi_tune.export.verification import PREDICTIONS, failure, images_sha256
from busi_tune.inference import MODEL, VERIFICATION
from busi_tune.inference.certificate import write_certificate
from busi_tune.progress import Progress
from busi_tune.report.card import CARD, model_card
from busi_tune.results import METRICS, MetricsFile
from busi_tune.training import exportable
from busi_tune.training.hardware import abilities, environment
from busi_tune.training.runs import prediction_rows

Result = dict[str, Any]
# What may be in a folder whose first export was cut off.
FIRST_FILES = frozenset({PREDICTIONS, CARD})
PACKAGES = ("busi-tune", "torch", "torchvision", "onnx", "onnxruntime", "pillow", "numpy")
# What verification.json says of the model that takes pictures as they are, at its top.
HEADLINES = ("passed", "reasons", "images", "max_error", "tolerance", "answers_changed", "model_sha256")


def export_run(run: Path, folder: Path, dataset: Dataset, options: ExportOptions, progress: Progress) -> Result:
    """Export the finished `run` into `folder` and verify it on the test split of `dataset`; the certificate.

    An export of the same run that was asked for the same is not made again. The caller holds the folder's lock.

    Raises:
        RunError: the folder holds an export of another run.
        ParityError: the exported model does not answer as PyTorch does; no model is left behind.
        GateError: an int8 or float16 model does not pass its gate; the others are there.
    """
    origin = results.read(run / METRICS, MetricsFile)["model_sha256"]
    known = _known(folder, origin, options, progress)
    if known is not None:
        return known
    source = Source.of(run, dataset, progress)
    fitted = fit(source, options.sensitivity)
    shown = Shown.of(source.pictures("test"), source.size)
    reference = make_reference(
        lambda *given: exportable.served_answers(source.model, *given)[0], shown, source.labels("test")
    )
    facts = facts_of(source, fitted)
    _write_predictions(folder, source, reference)
    # The way that a graph is run makes no difference before its network, so one is enough for the second of the two.
    plain = dict(list(ways(1).items())[:1])
    made = {}
    for name, front, seen, how in (
        (f"model-{source.size}.onnx", resize.ready(source.size), shown.resized(), plain),
        (MODEL, resize.any_size(source.size), shown, ways(len(shown.pictures))),
    ):
        graph = assembly.assemble(front, fitted.network, guard_graph(fitted.guard))
        made[name] = Made(graph, facts, certify(folder / name, graph, facts, source, seen, reference, how))
    refused: list[GateError] = []
    asked = options.to_dict()
    for form in FORMS:
        try:
            if asked[form]:
                made[variant_name(form)] = make_variant(
                    form, folder, source, fitted.network, options, facts, reference.logits, shown
                )
        except GateError as error:
            refused.append(error)
            # Asked for again, it is made again, and refused again.
            asked[form] = False
    common = {"source_sha256": origin, "options": asked} | _evidence(folder, source, fitted, reference)
    certificate = _publish(folder, source, made, common)
    if refused:
        raise refused[0]
    return certificate


def certify(
    place: Path,
    graph: onnx.ModelProto,
    facts: Mapping[str, Any],
    source: Source,
    shown: Shown,
    reference: Reference,
    how: Mapping[str, Way],
) -> Result:
    """The certificate of `graph`, which is left beside `place` under a temporary name.

    It passes when it answers as PyTorch does (see `parity.verify`) and holds the run's own tensors, bit for bit.
    """
    candidate = files.temporary_for(place)
    files.write_bytes(candidate, assembly.finish(graph, facts))
    result = verify(candidate, shown, source.labels("test"), reference, source.progress, how=how)
    foreign = assembly.foreign_tensors(graph, exportable.tensors(source.model))
    reasons = result.reasons + ([f"tensors are not those of the run: {', '.join(foreign[:3])}"] if foreign else [])
    return result.to_dict() | {
        "passed": not reasons,
        "reasons": reasons,
        "graph_sha256": assembly.graph_sha256(graph),
        "weights_sha256": assembly.weights_sha256(graph),
    }


def _known(folder: Path, origin: str, options: ExportOptions, progress: Progress) -> Result | None:
    """The certificate of an export that is already what is asked for, or None where it is to be made.

    Raises:
        RunError: it is one of another run.
    """
    if not (folder / VERIFICATION).exists():
        return None
    known = files.read_json(folder / VERIFICATION)
    if known.get("source_sha256") != origin:
        raise RunError(f"{folder} holds the export of another run; name another --out, or use --overwrite.")
    if known.get("passed") is True and known.get("options") == options.to_dict():
        hashes = {name: entry["model_sha256"] for name, entry in known["models"].items()} | known["files"]
        if all((folder / name).exists() and files.sha256(folder / name) == sha for name, sha in hashes.items()):
            return known
    progress.notice(f"{folder} holds an export that is not what is asked for, or not whole; it is replaced.")
    return None


def facts_of(source: Source, fitted: Fitted) -> Result:
    """What a model says of itself in its metadata."""
    config = source.identity.config
    facts: Result = {
        "classes": list(source.classes),
        "image_size": str(source.size),
        "input": "images: uint8 RGB, (batch, height, width, 3); resize and normalisation are in the graph",
        "preprocessing": images.DESCRIPTION,
        "preprocessing_version": str(images.VERSION),
        "mean": list(config.mean),
        "std": list(config.std),
        "arch": config.arch,
        "split": source.identity.split,
        "temperature": repr(fitted.temperature),
        "guard": fitted.guard.to_metadata(),
    }
    return facts | ({"operating_point": fitted.point.to_dict()} if fitted.point else {})


def _evidence(folder: Path, source: Source, fitted: Fitted, reference: Reference) -> Result:
    """What the certificates share: what was verified on what, with what, and what it gives on the test split."""
    labels, groups = source.labels("test"), source.groups("test")
    answers = source.answers("test", reference.logits)
    ready = files.temporary_for(folder / f"model-{source.size}.onnx")
    evidence: Result = {
        "split": source.identity.split,
        "test_images_sha256": images_sha256(source.dataset.split.rows("test")),
        "predictions_sha256": files.sha256(folder / PREDICTIONS),
        "probe_logits": np.nan_to_num(reference.probe).tolist(),
        # Of the calibrated probabilities, with which more than argmax changes: the area of one class against the rest.
        "test": {**summarise(answers), **with_intervals(answers, groups)},
        "temperature": fitted.temperature,
        "calibration": {
            "validation": fitted.calibration,
            "test": calibration_figures(
                reference.logits * fitted.temperature, fitted.temperature, labels, source.classes
            ),
        },
        "guard": {"scores": fitted.guard.to_metadata(), "test": guard_rates(ready, fitted.guard, source)},
        "versions": {name: version(name) for name in PACKAGES},
        "machine": environment() | {"abilities": abilities()},
    }
    if fitted.point:
        evidence["operating_point"] = fitted.point.to_dict() | {
            "test": at_threshold(answers, groups, fitted.point.threshold)
        }
    return evidence


def _publish(folder: Path, source: Source, made: Mapping[str, Made], common: Result) -> Result:
    """Write the certificates, and only then the models: none that did not pass, nor one that is not asked for now.

    Raises:
        ParityError: one did not pass.
    """
    passed = all(model.certificate["passed"] for model in made.values())
    models = {}
    for name, model in made.items():
        whole = assembly.finish(model.graph, model.facts | {"certificate": common | model.certificate})
        models[name] = model.certificate | {"model_sha256": files.sha256_bytes(whole)}
        files.write_bytes(files.temporary_for(folder / name), whole)
    certificate = {key: models[MODEL][key] for key in HEADLINES} | common | {"models": models}
    files.write_text(folder / CARD, model_card(source.run, certificate))
    certificate |= {"files": {name: files.sha256(folder / name) for name in (PREDICTIONS, CARD)}, "passed": passed}
    certificate = {**write_certificate(folder, certificate)}
    for old in folder.glob("*.onnx"):
        if old.name not in made or not passed:
            old.unlink()
    for name in made:
        candidate = files.temporary_for(folder / name)
        candidate.replace(folder / name) if passed else candidate.unlink()
    files.sync_folder(folder)
    if not passed:
        reasons = [f"{reason} ({name})" for name, model in models.items() for reason in model["reasons"]]
        raise ParityError(failure(folder, reasons))
    return certificate


def clear(folder: Path) -> None:
    """Delete the export in `folder`, so that it can be made anew; a folder that is no export is left as it is."""
    files.clear_folder(folder, VERIFICATION)


def _write_predictions(folder: Path, source: Source, reference: Reference) -> None:
    """The test split's rows with PyTorch's float64 logits and the files' hashes: all that a later check needs."""
    used = source.dataset.split.used
    digests = dict(zip(used["path"], used["sha256"], strict=True))
    rows = prediction_rows(source.part("test"), softmax(reference.logits), source.classes)
    for row, logits in zip(rows, reference.logits.tolist(), strict=True):
        row |= {f"logit_{name}": value for name, value in zip(source.classes, logits, strict=True)}
        row["sha256"] = digests[str(row["path"])]
    files.write_csv(folder / PREDICTIONS, rows)
