"""Make an export: a model that is there only when it passed, its certificate, and the answers behind it."""

import json
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from busi_tune import files, images
from busi_tune.data.dataset import Dataset, Part
from busi_tune.errors import ParityError, RunError
from busi_tune.export.check import PREDICTIONS, failure, read_all
from busi_tune.export.parity import Reference, make_reference, verify
from busi_tune.inference import MODEL, VERIFICATION
from busi_tune.metrics import softmax
from busi_tune.progress import Progress
from busi_tune.training import serving
from busi_tune.training.folder import METRICS, Identity, read_identity
from busi_tune.training.run import prediction_rows

IR_VERSION = 10


def export_run(run: Path, folder: Path, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Export the finished `run` into `folder` and verify it on the test split of `dataset`; the certificate.

    An export of the same run that is already there is not made again. The caller holds the folder's lock.

    Raises:
        RunError: the folder holds an export of another run, or something that is no export.
        ParityError: the exported model does not answer as PyTorch does; no model is left behind.
    """
    source = files.read_json(run / METRICS)["model_sha256"]
    if (folder / VERIFICATION).exists():
        known = files.read_json(folder / VERIFICATION)
        if known.get("source_sha256") != source:
            raise RunError(f"{folder} holds the export of another run; name another --out, or use --overwrite.")
        model_file = folder / MODEL
        if known.get("passed") and model_file.exists() and files.sha256(model_file) == known.get("model_sha256"):
            return known
    else:
        files.refuse_foreign(folder, "an export", {PREDICTIONS})
    identity = read_identity(run)
    model = serving.served(run, identity)
    part = dataset.part("test", identity.config.image_size, progress)
    candidate = files.temporary_for(folder / MODEL)
    files.write_bytes(candidate, finish_graph(serving.to_onnx(model, identity.config.image_size), identity))
    pixels = part.pixels()
    reference = make_reference(partial(serving.served_logits, model), pixels, part.labels)
    digests = dict(zip(dataset.split.used["path"], dataset.split.used["sha256"], strict=True))
    _write_predictions(folder, part, reference, identity.classes, digests)
    # From the files once more, not from the array that PyTorch saw: decoding is part of what is verified.
    again = read_all(dataset.listing.root, part.paths, identity.config.image_size)
    result = verify(candidate, again, part.labels, reference, progress)
    certificate = result.to_dict() | {
        "source_sha256": source,
        "split": identity.split,
        "probe_logits": np.nan_to_num(reference.probe).tolist(),
        "predictions_sha256": files.sha256(folder / PREDICTIONS),
        "preprocessing": images.DESCRIPTION,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "pillow", "busi-tune")},
    }
    files.write_json(folder / VERIFICATION, certificate)
    if not result.passed:
        candidate.unlink()
        (folder / MODEL).unlink(missing_ok=True)
        raise ParityError(failure(folder, result))
    candidate.replace(folder / MODEL)
    files.sync_folder(folder)
    return certificate


def clear(folder: Path) -> None:
    """Delete the export in `folder`, so that it can be made anew; a folder that is no export is left as it is."""
    files.clear_folder(folder, VERIFICATION)


def finish_graph(graph: bytes, identity: Identity) -> bytes:
    """Put what a consumer needs to know into the graph's metadata, take out paths of this machine, and check it."""
    model = onnx.load_from_string(graph)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "busi-tune", version("busi-tune")
    config = identity.config
    facts = {
        "classes": json.dumps(identity.classes),
        "image_size": str(config.image_size),
        "input": "images: uint8 RGB, (batch, height, width, 3); normalisation is in the graph",
        "preprocessing": images.DESCRIPTION,
        "preprocessing_version": str(images.VERSION),
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
        "arch": config.arch,
        "split": identity.split,
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _write_predictions(
    folder: Path, part: Part, reference: Reference, classes: tuple[str, ...], digests: Mapping[str, str]
) -> None:
    """The test split's rows with PyTorch's float64 logits and the files' hashes: all that a later check needs."""
    rows = prediction_rows(part, softmax(reference.logits), classes)
    for row, logits in zip(rows, reference.logits.tolist(), strict=True):
        row |= {f"logit_{name}": value for name, value in zip(classes, logits, strict=True)}
        row["sha256"] = digests[str(row["path"])]
    files.write_csv(folder / PREDICTIONS, rows)
