"""Is an export folder what was certified? By its hashes and the certificates inside its models alone."""

import json
from pathlib import Path
from typing import cast

from busi_tune import files
from busi_tune.errors import FileError, ParityError
from busi_tune.inference.certificate import MODEL, VERIFICATION
from busi_tune.inference.classifier import Classifier
from busi_tune.results import VerificationFile

CERTIFICATE = "certificate"


def check_folder(folder: Path) -> VerificationFile:
    """The content of verification.json, where all files of the export are the ones that it was written for.

    Raises:
        FileError: it is no export.
        ParityError: it did not pass, or a file is not what was certified, be it by one byte.
    """
    path = folder / VERIFICATION
    if not path.exists():
        raise FileError(f"{folder} holds no {VERIFICATION}; name a folder that `busi-tune export` made.")
    verification = files.read_json(path)
    models, others = verification.get("models"), verification.get("files")
    if not isinstance(models, dict) or not isinstance(others, dict) or MODEL not in models:
        raise FileError(f"{path} is no certificate (it names no models and files); export the model again.")
    if verification.get("passed") is not True:
        raise ParityError(f"The export in {folder} did not pass its verification; export it again.")
    if path.read_text() != files.json_text(verification):
        raise _foreign(path)
    hashes = {name: entry.get("model_sha256") for name, entry in models.items()} | others
    for name, expected in hashes.items():
        if files.sha256(folder / name) != expected:
            raise _foreign(folder / name)
    for name, entry in models.items():
        inside = Classifier(folder / name, optimisation="none").metadata.get(CERTIFICATE, "{}")
        said = verification | entry
        if any(said.get(key) != value for key, value in json.loads(inside).items()):
            raise ParityError(f"{path} does not say what the certificate inside {folder / name} says; export it again.")
    return cast("VerificationFile", verification)


def _foreign(path: Path) -> ParityError:
    return ParityError(f"{path} is not the file that was certified (it has changed); export it again.")
