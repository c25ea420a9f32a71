"""Repeat the check of an export anywhere, from what it recorded of PyTorch; needs no PyTorch itself."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from busi_tune import files, images
from busi_tune.data.find import find_images
from busi_tune.errors import DataError, FileError, ParityError, listed
from busi_tune.export.parity import Reference, Verification, verify
from busi_tune.images import Pixels
from busi_tune.inference import MODEL, VERIFICATION, Classifier
from busi_tune.progress import Progress

PREDICTIONS = "predictions.csv"
RECORDED = (
    "model_sha256",
    "predictions_sha256",
    "pytorch_float32_error",
    "probe_logits",
    "probe_float32_error",
    "confusion_matrix",
)


def read_all(root: Path, paths: tuple[str, ...], size: int) -> Pixels:
    """Decode the files anew: (len(paths), size, size, 3)."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda path: images.read(root / path, size), paths)))


def failure(folder: Path, result: Verification) -> str:
    """The sentence for an export that did not pass."""
    return f"The export in {folder} does not answer as its PyTorch model does: {'; '.join(result.reasons)}."


def check_again(folder: Path, root: Path, progress: Progress) -> dict[str, Any]:
    """Repeat the check of an export on the same test images, wherever they lie now; without PyTorch.

    The reference is what the export recorded of PyTorch: its float64 logits of every test image.

    Raises:
        ParityError: it does not pass, or a file of the export is not what was certified.
        DataError: a test image is missing or has changed.
    """
    certificate = files.read_json(folder / VERIFICATION)
    if not (folder / MODEL).exists():
        raise FileError(f"{folder} holds no {MODEL}; name a folder that `busi-tune export` made.")
    missing = [key for key in RECORDED if key not in certificate]
    if missing:
        raise FileError(f"{folder / VERIFICATION} is no certificate (it lacks {missing[0]}); export the model again.")
    for name, key in ((MODEL, "model_sha256"), (PREDICTIONS, "predictions_sha256")):
        if files.sha256(folder / name) != certificate[key]:
            raise ParityError(
                f"{folder / name} is not the file that was certified (its SHA-256 differs); export again."
            )
    table = pd.read_csv(folder / PREDICTIONS, dtype={"path": str, "class": str}, keep_default_na=False)
    _check_files(root, table)
    classes = [name.removeprefix("logit_") for name in table.columns if name.startswith("logit_")]
    labels = table["class"].map({name: number for number, name in enumerate(classes)}).to_numpy().astype(np.int64)
    reference = Reference(
        logits=table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64),
        float32_error=certificate["pytorch_float32_error"],
        probe=np.array(certificate["probe_logits"]),
        probe_float32_error=certificate["probe_float32_error"],
        confusion_matrix=certificate["confusion_matrix"]["pytorch"],
    )
    size = Classifier(folder / MODEL).image_size
    result = verify(folder / MODEL, read_all(root, tuple(table["path"]), size), labels, reference, progress)
    if not result.passed:
        raise ParityError(failure(folder, result))
    return certificate | result.to_dict()


def _check_files(root: Path, table: pd.DataFrame) -> None:
    now = {image.path: image.sha256 for image in find_images(root).images}
    wrong = [path for path, digest in zip(table["path"], table["sha256"], strict=True) if now.get(path) != digest]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(table)} test images in {root} are missing or have changed: {listed(wrong)}; "
            "name the folder that the model was evaluated on."
        )
