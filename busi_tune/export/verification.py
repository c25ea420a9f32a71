"""The repeated check of an export against its record of PyTorch's logits. PyTorch itself is not needed."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from busi_tune import images
from busi_tune.data.listing import find_images
from busi_tune.errors import DataError, ParityError, listed
from busi_tune.export.map_parity import compare_recorded
from busi_tune.export.parity import Logits, Reference, Shown, verify
from busi_tune.inference import MODEL, Classifier
from busi_tune.inference.certificate import check_folder
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import PREDICTIONS, ModelCertificate, VerificationFile


def failure(folder: Path, reasons: Sequence[str]) -> str:
    """The sentence for an export that did not pass."""
    return f"The export in {folder} does not predict as its PyTorch model does: {'; '.join(reasons)}."


def images_sha256(table: pd.DataFrame) -> str:
    """The SHA-256 of the images' paths and content hashes."""
    lines = sorted(f"{composed(path)}\n{digest}\n" for path, digest in zip(table["path"], table["sha256"], strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def check_again(folder: Path, root: Path, progress: Progress, key: str = "") -> VerificationFile:
    """Repeat the check of an export on the same test images in `root`, without PyTorch.

    The reference is PyTorch's float64 logits of every test image, which the export recorded. If a public `key` is
    given, the export must be signed by its owner.

    Raises:
        ParityError: the check fails, or a file of the export differs from the certified one.
        DataError: a test image is missing or has changed.
    """
    certificate = check_folder(folder, key)
    table = pd.read_csv(folder / PREDICTIONS, dtype={"path": str, "class": str}, keep_default_na=False)
    paths = _same_files(root, table)
    same = images_sha256(table) == certificate["test_images_sha256"]
    reasons = [] if same else ["the certificate is of other test images"]
    classes = [name.removeprefix("logit_") for name in table.columns if name.startswith("logit_")]
    labels = table["class"].map({name: number for number, name in enumerate(classes)}).to_numpy().astype(np.int64)
    size = Classifier(folder / MODEL).image_size
    shown = Shown.of([images.picture(root / path) for path in paths], size)
    logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64)
    result = verify(folder / MODEL, shown, labels, _recorded(certificate, logits), progress).result
    reasons += result.reasons
    recorded = certificate["models"][MODEL]
    if "cam" in recorded:
        reasons += compare_recorded(folder / MODEL, shown, logits, recorded["cam"], certificate["probe_cam"])
    if reasons:
        raise ParityError(failure(folder, reasons))
    entry: ModelCertificate = {**recorded, **result.entry()}
    return {
        **certificate,
        "max_error": entry["max_error"],
        "answers_changed": entry["answers_changed"],
        "models": certificate["models"] | {MODEL: entry},
    }


def _recorded(certificate: VerificationFile, logits: Logits) -> Reference:
    """The reference that an export recorded; `logits` (n, classes) are those of its predictions.csv."""
    entry = certificate["models"][MODEL]
    return Reference(
        logits=logits,
        float32_error=_number(entry.get("pytorch_float32_error")),
        step_error=_number(entry.get("float32_step_error")),
        probe=np.array(certificate["probe_logits"]),
        probe_float32_error=_number(entry.get("probe_float32_error")),
        confusion_matrix=entry["confusion_matrix"]["pytorch"],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _same_files(root: Path, table: pd.DataFrame) -> list[str]:
    """The paths of the test images as spelt in `root`.

    Raises:
        DataError: a test image is missing or has changed.
    """
    now = {(composed(image.path), image.sha256): image.path for image in find_images(root).images}
    rows = [(composed(path), digest) for path, digest in zip(table["path"], table["sha256"], strict=True)]
    wrong = [row[0] for row in rows if row not in now]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(table)} test images in {root} are missing or have changed: {listed(wrong)}; "
            "name the folder that the model was evaluated on."
        )
    return [now[row] for row in rows]
