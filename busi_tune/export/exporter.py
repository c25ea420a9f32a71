"""The creation of an export: models that are published only if they pass, their certificate, and its evidence."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from busi_tune import files, results
from busi_tune.config import differences
from busi_tune.data.dataset import Dataset
from busi_tune.data.labelled import short_digest
from busi_tune.errors import BusiTuneError, ParityError, RunError
from busi_tune.evaluation.metrics import softmax
from busi_tune.export import assembly, resize
from busi_tune.export.average import check_average
from busi_tune.export.calibration import calibration_figures, evaluated, summary_with_intervals
from busi_tune.export.draft import CARD, Draft, Made, publish, staging_folder
from busi_tune.export.gate import GateError
from busi_tune.export.guard import guard_graph
from busi_tune.export.map_parity import RECORDED, compare_maps
from busi_tune.export.network import NETWORK, make_network
from busi_tune.export.parity import WAYS, Shown, Way, verify
from busi_tune.export.source import Source
from busi_tune.export.usefulness import warnings_about
from busi_tune.export.variants import FORMS, guard_result, make_variant, variant_name
from busi_tune.export.verification import failure, images_sha256
from busi_tune.export_options import ExportOptions
from busi_tune.inference import MODEL, VERIFICATION
from busi_tune.inference.certificate import check_folder, content_of_any_version, sha256_list, write_certificate
from busi_tune.inference.contents import read_contents
from busi_tune.inference.signature import Signer, signature_of
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import (
    LABELS,
    METRICS,
    PREDICTIONS,
    Evidence,
    GuardEntry,
    Json,
    LabelsFile,
    MetricsFile,
    ModelCertificate,
    ModelFigures,
    ModelLabels,
    OperatingPointEntry,
    VerificationFile,
)
from busi_tune.training import class_maps, exportable
from busi_tune.training.hardware import abilities, environment
from busi_tune.training.run_folder import read_identity
from busi_tune.training.runs import prediction_rows

# In the certificate, the value of an option whose model did not pass its gate.
REFUSED = "refused"
Card = Callable[[Path, VerificationFile], str]
# The files in a folder whose first export was killed during publication.
FIRST_FILES = frozenset({PREDICTIONS, LABELS, CARD, signature_of(Path(VERIFICATION)).name})
PACKAGES = ("busi-tune", "torch", "torchvision", "onnx", "onnxruntime", "pillow", "numpy")


def export_run(
    runs: Mapping[Path, Dataset],
    folder: Path,
    options: ExportOptions,
    progress: Progress,
    *,
    card: Card,
    signer: Signer | None = None,
    overwrite: bool = False,
) -> VerificationFile:
    """Export a finished run into `folder`, verify it on the test split of its data, and return the certificate.

    Several `runs` are the folds of a cross-validation. They are exported as the mean of their probabilities, which is
    verified on the first run's test split.

    An intact export of the same run with the same options is reused, unless `overwrite` is set. An existing export in
    `folder` stays until the new one is complete. `card` writes the model card from the run and the certificate.
    `signer` signs the certificate. The caller holds the folder's lock.

    Raises:
        ConfigError: `options` request class activation maps, and the network has none.
        RunError: the folder holds an export of another run or with other options.
        ParityError: the exported model's predictions differ from PyTorch's. No model is left.
        GateError: an int8 or float16 model does not pass its gate. The other models are published.
    """
    models = [results.read(run / METRICS, MetricsFile)["model_sha256"] for run in runs]
    origin = models[0] if len(models) == 1 else files.sha256_bytes("".join(models).encode())
    if options.cam and len(runs) == 1:
        class_maps.check_maps(read_identity(next(iter(runs))).config)
    known = None if overwrite else _known(folder, origin, options, progress)
    if known is not None:
        if signer is None or known.get("signed_by") == signer.public:
            return known
        return write_certificate(folder, known, signer)
    with staging_folder(folder) as staging:
        source = Source.of_all(runs, progress)
        if source.members:
            check_average(source, options)
        elif options.cam:
            source = source.with_maps()
        draft = Draft.begin(staging, source, options)
        made = _float32_models(draft)
        variants, refused = _variants(draft)
        made |= variants
        if options.network_only != "none":
            made[NETWORK] = make_network(draft, static=options.network_only == "static")
        _write_predictions(draft)
        # Record refused forms, so that the next request builds and checks them again.
        asked = _recorded(options) | dict.fromkeys(refused, REFUSED)
        certificate = _certificate(draft, made, _evidence(draft, made, origin, asked), card)
        if signer is not None and certificate["passed"]:
            certificate = write_certificate(staging, certificate, signer)
        publish(staging, folder, passed=certificate["passed"])
    if not certificate["passed"]:
        reasons = [f"{reason} ({name})" for name, model in made.items() for reason in model.certificate["reasons"]]
        raise ParityError(failure(folder, reasons))
    for error in refused.values():
        raise error
    return certificate


def certify(draft: Draft, name: str, graph: onnx.ModelProto, shown: Shown, how: Mapping[str, Way]) -> Made:
    """Write the float32 model `name` of a draft and verify it on `shown`, in each of the ways of `how`.

    The model passes if its predictions match PyTorch's (see `parity.verify`) and its tensors equal the run's, bit for
    bit.
    """
    source, fitted = draft.source, draft.fitted
    facts = draft.facts(graph, fitted.guard, fitted.point)
    path = draft.write(name, graph, facts)
    contents = read_contents(path)
    verified = verify(path, shown, source.labels("test"), draft.reference, source.progress, how=how)
    found = verified.result
    foreign = assembly.foreign_tensors(graph, exportable.tensors(fitted.model))
    figures: ModelFigures = found.entry()
    reasons = found.reasons
    if draft.reference.maps is not None:
        figures["cam"], failures = compare_maps(path, shown, draft.reference, how)
        reasons = reasons + failures
    reasons = reasons + ([f"tensors are not those of the run: {', '.join(foreign[:3])}"] if foreign else [])
    certificate: ModelCertificate = {
        **figures,
        "passed": not reasons,
        "reasons": reasons,
        "graph_sha256": contents.graph_sha256,
        "weights_sha256": contents.weights_sha256,
    }
    return Made(graph, facts, certificate, verified.guard)


def _known(folder: Path, origin: str, options: ExportOptions, progress: Progress) -> VerificationFile | None:
    """The certificate of an intact export in `folder` with the same options, or None.

    Raises:
        RunError: the folder holds an export of another run or with other options.
    """
    if not (folder / VERIFICATION).exists():
        return None
    # An export of another version of busi-tune is replaced, so another schema is accepted here.
    known = content_of_any_version(folder)
    if known.get("source_sha256") != origin:
        raise RunError(f"{folder} holds the export of another run; name another --out, or use --overwrite.")
    refuse_other_options(folder, options)
    try:
        certificate = check_folder(folder)
    except (BusiTuneError, OSError) as error:
        problem = f"differs from the certified one ({str(error).partition(';')[0].rstrip('.')})"
    else:
        problem = _missing_form(certificate, options)
        if not problem:
            return certificate
    progress.notice(f"The export in {folder} {problem}; it is replaced.")
    return None


def refuse_other_options(folder: Path, options: ExportOptions) -> None:
    """Refuse a passed export in `folder` that was made with other options.

    A form that did not pass its gate may be requested again or left out.

    Raises:
        RunError: the folder holds such an export.
    """
    if not (folder / VERIFICATION).exists():
        return
    certificate = content_of_any_version(folder)
    made, asked = certificate.get("options"), _recorded(options)
    if certificate.get("schema") != results.SCHEMAS[VerificationFile] or not certificate.get("passed"):
        return
    if not isinstance(made, dict):
        # The certificate is damaged; the full check of the folder reports that.
        return
    known = {name: asked.get(name) if value == REFUSED else value for name, value in made.items()}
    if not any(made.get(form) is True for form in FORMS):
        # max_drop affects int8 and float16 models only.
        known["max_drop"] = options.max_drop
    different = differences(known, asked)
    if different:
        raise RunError(
            f"{folder} holds an export with other options ({'; '.join(different)}); "
            "name another folder, or replace it with --overwrite."
        )


def _recorded(options: ExportOptions) -> dict[str, Json]:
    """The options for the certificate. `cam` is left out if it is not set, as in versions without this option."""
    return {name: value for name, value in options.to_dict().items() if name != "cam" or value}


def _missing_form(certificate: VerificationFile, options: ExportOptions) -> str:
    missing = [form for form in FORMS if getattr(options, form) and variant_name(form) not in certificate["models"]]
    return f"lacks the {missing[0]} model, which did not pass its gate" if missing else ""


def _float32_models(draft: Draft) -> dict[str, Made]:
    """The two float32 models: for pictures of the network's size, and for pictures of any size."""
    size, network, shown = draft.source.size, draft.fitted.network, draft.shown
    guard = guard_graph(draft.fitted.guard)
    small = assembly.assemble(resize.ready(size), network, guard)
    whole = assembly.assemble(resize.any_size(size), network, guard)
    # This model differs only before the network, where the way to run a graph does not matter. One way is enough.
    first = dict(list(WAYS.items())[:1])
    return {
        ready_name(size): certify(draft, ready_name(size), small, shown.resized(), first),
        MODEL: certify(draft, MODEL, whole, shown, WAYS),
    }


def ready_name(size: int) -> str:
    """The name of the model file for pictures of the network's size."""
    return f"model-{size}.onnx"


def _variants(draft: Draft) -> tuple[dict[str, Made], dict[str, GateError]]:
    """The requested int8 and float16 models by file name, and the errors of those that did not pass their gate."""
    made: dict[str, Made] = {}
    refused: dict[str, GateError] = {}
    for form in (form for form in FORMS if getattr(draft.options, form)):
        try:
            made[variant_name(form)] = make_variant(draft, form)
        except GateError as error:
            refused[form] = error
    return made, refused


def _evidence(draft: Draft, made: Mapping[str, Made], origin: str, asked: dict[str, Json]) -> Evidence:
    """The part of the certificate that all models share: data, versions, and metrics on the test split."""
    source, fitted, reference = draft.source, draft.fitted, draft.reference
    averaged = fitted.averaged
    if averaged:
        before, answers, groups = averaged.before, averaged.after, averaged.groups
    else:
        before, answers = (source.answers("test", each) for each in (draft.uncalibrated, reference.logits))
        groups = source.groups("test")
    calibration = calibration_figures(before, answers)
    evidence: Evidence = {
        "source_sha256": origin,
        "seen_images_sha256": sha256_list(_seen_images(source)),
        "options": asked,
        "split": source.identity.split,
        "test_images_sha256": images_sha256(source.dataset.split.rows("test")),
        "predictions_sha256": files.sha256(draft.staging / PREDICTIONS),
        "probe_logits": np.nan_to_num(reference.probe).tolist(),
        # Metrics of the calibrated probabilities, because the temperature changes one-against-rest areas.
        "test": summary_with_intervals(answers, groups),
        "temperature": fitted.temperature,
        "calibration": {"validation": fitted.calibration, "test": calibration},
        "guard": guard_result(draft.staging / ready_name(source.size), fitted.guard, source, made[MODEL].guard),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {**environment(), "abilities": [*abilities()]},
        "validation_risk_coverage": fitted.risk_coverage,
        "warnings": warnings_about(fitted.temperature, reference, source.classes),
    }
    if averaged:
        evidence["averaged"] = averaged.entry
    if reference.maps:
        evidence["probe_cam"] = np.nan_to_num(reference.maps.probe[-RECORDED:]).tolist()
    if fitted.point:
        evidence["operating_point"] = evaluated(fitted.point, answers, groups)
    return evidence


def _certificate(draft: Draft, made: Mapping[str, Made], evidence: Evidence, card: Card) -> VerificationFile:
    """Write the models with their certificates inside, labels.json, the card and verification.json.

    Returns the content of verification.json.
    """
    models = {name: _sealed(draft, name, model, evidence) for name, model in made.items()}
    headline = models[MODEL]
    document = {
        "schema": results.SCHEMAS[VerificationFile],
        "passed": all(model["passed"] for model in models.values()),
        "reasons": headline["reasons"],
        "images": headline["images"],
        "max_error": headline["max_error"],
        "tolerance": headline["tolerance"],
        "answers_changed": headline["answers_changed"],
        "model_sha256": headline["model_sha256"],
        **evidence,
        "models": models,
        "files": {PREDICTIONS: evidence["predictions_sha256"]},
        "seen_images": _seen_images(draft.source),
    }
    certificate = cast("VerificationFile", document)
    if certificate["passed"]:
        _write_labels(draft, made)
        certificate["files"][LABELS] = files.sha256(draft.staging / LABELS)
    files.write_text(draft.staging / CARD, card(draft.source.run, certificate))
    certificate["files"][CARD] = files.sha256(draft.staging / CARD)
    return write_certificate(draft.staging, certificate)


def _seen_images(source: Source) -> list[str]:
    """Shortened SHA-256 digests of all images except the test images, enough to recognise copies in other folders.

    For an average, all images are included, because some member has seen each of them.
    """
    tested = set() if source.members else set(source.dataset.split.rows("test")["path"])
    return sorted({short_digest(image.sha256) for image in source.dataset.listing.images if image.path not in tested})


def _sealed(draft: Draft, name: str, model: Made, evidence: Evidence) -> ModelCertificate:
    """Write the model with its certificate inside; return the certificate with the file's hash and size."""
    inside: dict[str, object] = {**evidence, **model.certificate}
    path = draft.write(name, model.graph, {**model.facts, "certificate": inside})
    return {**model.certificate, "model_sha256": files.sha256(path), "bytes": path.stat().st_size}


def _write_labels(draft: Draft, made: Mapping[str, Made]) -> None:
    """Write labels.json: the values that a program needs to interpret the outputs of each model."""
    config = draft.source.identity.config
    document: LabelsFile = {
        "schema": results.SCHEMAS[LabelsFile],
        "classes": list(draft.source.classes),
        "image_size": config.image_size,
        "mean": list(config.mean),
        "std": list(config.std),
        "models": {name: _labels(model) for name, model in made.items() if "guard" in model.facts},
    }
    results.write(draft.staging / LABELS, document)


def _labels(model: Made) -> ModelLabels:
    labels: ModelLabels = {"guard": cast("list[GuardEntry]", model.facts["guard"])}
    if "operating_point" in model.facts:
        point = cast("OperatingPointEntry", model.facts["operating_point"])
        labels |= {"positive": point["class"], "threshold": point["threshold"]}
    return labels


def _write_predictions(draft: Draft) -> None:
    """Write predictions.csv: the test images with PyTorch's float64 logits and the files' hashes, for later checks."""
    source, reference = draft.source, draft.reference
    used = source.dataset.split.used
    digests = dict(zip(map(composed, used["path"]), used["sha256"], strict=True))
    rows = prediction_rows(source.part("test"), softmax(reference.logits), source.classes)
    for row, logits in zip(rows, reference.logits.tolist(), strict=True):
        row |= {f"logit_{name}": value for name, value in zip(source.classes, logits, strict=True)}
        row["sha256"] = digests[str(row["path"])]
    files.write_csv(draft.staging / PREDICTIONS, rows)
