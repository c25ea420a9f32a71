"""Which model of an export is used: one that its certificate vouches for, or on request another, once tried."""

from pathlib import Path
from typing import Any

from busi_tune import files
from busi_tune.errors import BusiTuneError, FileError
from busi_tune.inference.classifier import Classifier, provider_name
from busi_tune.inference.probe import try_in_a_child
from busi_tune.inference.structure import check_structure

MODEL = "model.onnx"
VERIFICATION = "verification.json"


def open_export(
    path: Path,
    threads: int = 0,
    *,
    optimisation: str = "all",
    provider: str = "cpu",
    allow_unverified: bool = False,
) -> Classifier:
    """The classifier of an export folder, or of one model file in it, that is verified and unchanged.

    With `allow_unverified` also of a model file without a certificate: it is loaded and run in a process of its own
    first, and used where it survives that.

    Raises:
        BusiTuneError: there is no model, it is not the one that passed verification, or it is unfit.
    """
    provider_name(provider)
    model = path / MODEL if path.is_dir() else path
    if not model.exists():
        what = f"{path} holds no {MODEL}" if path.is_dir() else f"{path} does not exist"
        raise FileError(f"{what}; name a folder that `busi-tune export` made, or a model in it.")
    if not allow_unverified:
        check_certificate(model)
    elif not _is_certified(model):
        check_structure(model)
        try_in_a_child(model, optimisation)
    return Classifier(model, threads=threads, optimisation=optimisation, provider=provider)


def check_certificate(model: Path) -> None:
    """Refuse a model that the `verification.json` beside it does not vouch for.

    Raises:
        BusiTuneError: it has no certificate, did not pass, or is another file than the one that passed.
    """
    file = model.with_name(VERIFICATION)
    if not file.exists():
        raise BusiTuneError(
            f"{model} has no certificate ({file} does not exist); export it again, or use it as it is with "
            "--allow-unverified."
        )
    certificate = certificate_of(files.read_json(file), model.name)
    if certificate is None:
        raise BusiTuneError(
            f"{model} has no certificate in {file}; export it again, or use it as it is with --allow-unverified."
        )
    if certificate.get("passed") is not True:
        raise BusiTuneError(f"{model} did not pass its verification, as {file} says; export it again.")
    if certificate.get("model_sha256") != files.sha256(model):
        raise BusiTuneError(f"{model} is not the file that was verified (its SHA-256 differs); export it again.")


def certificate_of(verification: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The certificate of the model file `name` in the content of `verification.json`, where it has one."""
    models = verification.get("models")
    found = models.get(name) if isinstance(models, dict) else None
    return found if isinstance(found, dict) else None


def _is_certified(model: Path) -> bool:
    try:
        check_certificate(model)
    except BusiTuneError:
        return False
    return True
