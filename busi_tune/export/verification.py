"""Repeat the check of an export anywhere, from what it recorded of PyTorch; needs no PyTorch itself."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

from busi_tune import images
from busi_tune.data.listing import find_images
from busi_tune.errors import DataError, ParityError, listed
from busi_tune.export import assembly
from busi_tune.export.parity import Reference, Shown, verify
from busi_tune.inference import MODEL, Classifier
from busi_tune.inference.certificate import check_folder
from busi_tune.progress import Progress

PREDICTIONS = "predictions.csv"


def failure(folder: Path, reasons: Sequence[str]) -> str:
    """The sentence for an export that did not pass."""
    return f"The export in {folder} does not answer as its PyTorch model does: {'; '.join(reasons)}."


def images_sha256(table: pd.DataFrame) -> str:
    """The SHA-256 of which images these are: their paths and the hashes of their contents."""
    lines = sorted(f"{path}\n{digest}\n" for path, digest in zip(table["path"], table["sha256"], strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def check_again(folder: Path, root: Path, progress: Progress) -> dict[str, Any]:
    """Repeat the check of an export on the same test images, wherever they lie now; without PyTorch.

    The reference is what the export recorded of PyTorch: its float64 logits of every test image.

    Raises:
        ParityError: it does not pass, or a file of the export is not what was certified.
        DataError: a test image is missing or has changed.
    """
    certificate: dict[str, Any] = {**check_folder(folder)}
    table = pd.read_csv(folder / PREDICTIONS, dtype={"path": str, "class": str}, keep_default_na=False)
    _check_files(root, table)
    reasons = _foreign_graph(folder / MODEL, certificate)
    if images_sha256(table) != certificate["test_images_sha256"]:
        reasons.append("the certificate is of other test images")
    classes = [name.removeprefix("logit_") for name in table.columns if name.startswith("logit_")]
    labels = table["class"].map({name: number for number, name in enumerate(classes)}).to_numpy().astype(np.int64)
    recorded = certificate["models"][MODEL]
    reference = Reference(
        logits=table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64),
        float32_error=recorded["pytorch_float32_error"],
        probe=np.array(certificate["probe_logits"]),
        probe_float32_error=recorded["probe_float32_error"],
        confusion_matrix=recorded["confusion_matrix"]["pytorch"],
    )
    size = Classifier(folder / MODEL).image_size
    shown = Shown.of([images.picture(root / path) for path in table["path"]], size)
    result = verify(folder / MODEL, shown, labels, reference, progress)
    reasons += result.reasons
    if reasons:
        raise ParityError(failure(folder, reasons))
    found = result.to_dict()
    models = certificate["models"] | {MODEL: recorded | found}
    return certificate | {key: found[key] for key in certificate if key in found} | {"models": models}


def _foreign_graph(path: Path, certificate: dict[str, Any]) -> list[str]:
    """Where the graph or its constants are not those that the certificate was made for."""
    model = onnx.load(path, load_external_data=False)
    found = {"graph": assembly.graph_sha256(model), "weights": assembly.weights_sha256(model)}
    recorded = certificate["models"][path.name]
    return [f"the {what} is not what was certified" for what, sha in found.items() if recorded[f"{what}_sha256"] != sha]


def _check_files(root: Path, table: pd.DataFrame) -> None:
    now = {image.path: image.sha256 for image in find_images(root).images}
    wrong = [path for path, digest in zip(table["path"], table["sha256"], strict=True) if now.get(path) != digest]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(table)} test images in {root} are missing or have changed: {listed(wrong)}; "
            "name the folder that the model was evaluated on."
        )
