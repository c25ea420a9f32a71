"""All possible changes in an export's folder, one at a time, and checks whether `verify` notices them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from busi_tune import files
from busi_tune.errors import BusiTuneError
from busi_tune.inference.certificate import check_certificate, check_folder, uncertified
from edits import Edit, edits_of, forged, rehashed
from small_export import parts, rewrite

ADDED = ("model2.onnx", ".hidden", ".hidden.onnx", "notes.txt", "verification.json.sig", "__pycache__/a.pyc")


def mutations_of(folder: Path) -> Iterator[Edit]:
    """Every file removed and edited, every value of the JSON files changed, and files added.

    JSON files are also changed as by a forger: without the SHA-256 of their content, and with the new one.
    """
    for edit in edits_of(folder.parent, folder.name):
        tries = [edit, forged(edit), rehashed(edit)] if edit.path.endswith(".json") else [edit]
        whole = (folder.parent / edit.path).read_bytes()
        yield from (one for one in tries if one is not None and one.content != whole)
    for name in ADDED:
        if not (folder / name).exists():
            yield Edit(f"{folder.name}/{name}", "added", b"something")


def is_noticed(folder: Path, key: str = "") -> bool:
    """Whether `verify` refuses a folder or reports an uncertified file in it."""
    try:
        certificate = check_folder(folder, key)
    except BusiTuneError:
        return True
    return bool(uncertified(folder, certificate))


def is_refused_by_predict(model: Path, key: str = "") -> bool:
    """Whether `predict` refuses a model."""
    try:
        check_certificate(model, key)
    except BusiTuneError:
        return True
    return False


@contextmanager
def applied(edit: Edit, place: Path) -> Iterator[None]:
    """Applies the edit for the length of the block."""
    path = place / edit.path
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if edit.content is not None:
        path.write_bytes(edit.content)
    yield
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)
    elif not any(path.parent.iterdir()):
        path.parent.rmdir()


def forge_model(folder: Path, name: str, *, tensor: str = "", facts: dict[str, str] | None = None, depth: int) -> None:
    """Exchanges two rows of a tensor or replaces metadata in a model, and hides the change.

    `depth` says which hashes are renewed, each step including the last:
    0: none; 1: the file's hash in verification.json; 2: the hashes of the model's parts there; 3: those in the model's
    inner certificate, which makes all certificates consistent.
    """
    path = folder / name
    model = onnx.load(path)
    for held in (held for held in model.graph.initializer if held.name == tensor):
        rows = numpy_helper.to_array(held).copy()
        rows[[0, 1]] = rows[[1, 0]]
        held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rows), tensor))
    texts = {entry.key: entry.value for entry in model.metadata_props} | (facts or {})
    onnx.helper.set_model_props(model, texts)
    files.write_bytes(path, model.SerializeToString())
    hashes = parts(path)
    if depth == 3:
        texts["certificate"] = json.dumps(json.loads(texts["certificate"]) | hashes)
        onnx.helper.set_model_props(model, texts)
        files.write_bytes(path, model.SerializeToString())
    entry: dict[str, object] = {"model_sha256": files.sha256(path), "bytes": path.stat().st_size}
    if depth:
        rewrite(folder, lambda content: content["models"][name].update(entry | (hashes if depth > 1 else {})))
    if depth and name == "model.onnx":
        rewrite(folder, lambda content: content.update(model_sha256=entry["model_sha256"]))
