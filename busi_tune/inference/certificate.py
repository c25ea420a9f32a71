"""The certificate of an export, verification.json: the one owner that reads, writes and checks it."""

from collections.abc import Mapping
from pathlib import Path

from busi_tune import files, results
from busi_tune.errors import BusiTuneError, FileError, ParityError
from busi_tune.inference.classifier import Classifier, Optimisation, provider_name
from busi_tune.inference.probe import try_in_a_child
from busi_tune.inference.structure import check_structure
from busi_tune.results import VerificationFile

MODEL = "model.onnx"
VERIFICATION = "verification.json"


def open_export(
    path: Path,
    threads: int = 0,
    *,
    optimisation: Optimisation = "all",
    provider: str = "cpu",
    allow_unverified: bool = False,
) -> Classifier:
    """The classifier of an export folder, or of one model file in it, that is verified and unchanged.

    With `allow_unverified` also of a model file without a certificate: it is loaded and run in a child process first,
    and used if it survives that.

    Raises:
        BusiTuneError: there is no model, it is not the one that passed verification, or it is unfit.
    """
    provider_name(provider)
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        missing = "is no file" if path.exists() else "does not exist"
        reason = f"{path} holds no {MODEL}" if path.is_dir() else f"{path} {missing}"
        raise FileError(f"{reason}; name a folder that `busi-tune export` made, or a model in it.")
    if not allow_unverified:
        check_certificate(model)
    elif not _is_certified(model):
        check_structure(model)
        try_in_a_child(model, optimisation)
    return Classifier(model, threads=threads, optimisation=optimisation, provider=provider)


def read_certificate(folder: Path) -> VerificationFile:
    """The certificate of the export in `folder`.

    Raises:
        FileError: there is none, it is damaged, or of a version that this busi-tune does not know.
    """
    path = folder / VERIFICATION
    if not path.exists():
        raise FileError(f"{folder} holds no {VERIFICATION}; name a folder that `busi-tune export` made.")
    return results.read(path, VerificationFile)


def content_of_any_version(folder: Path) -> dict[str, object]:
    """The content of verification.json in `folder`, whatever version of busi-tune wrote it; nothing in it is checked.

    Raises:
        FileError: it cannot be read, or is no JSON object.
    """
    return dict(files.read_json(folder / VERIFICATION))


def write_certificate(folder: Path, content: Mapping[str, object]) -> VerificationFile:
    """Write the certificate of the export in `folder`, with the key `schema` first; the certificate as written.

    Raises:
        FileError: the file system refuses, or `content` is no certificate, which is a defect of ours.
    """
    path = folder / VERIFICATION
    document = {"schema": results.SCHEMAS[VerificationFile], **content}
    certificate = results.check(document, VerificationFile, str(path))
    files.write_json(path, certificate)
    return certificate


def check_certificate(model: Path) -> None:
    """Refuse a model file that the certificate in its folder does not vouch for.

    Raises:
        BusiTuneError: it has no certificate, did not pass, or is another file than the one that passed.
    """
    path = model.with_name(VERIFICATION)
    if not path.exists():
        raise BusiTuneError(
            f"{model} has no certificate ({path} does not exist); export it again, or use it as it is with "
            "--allow-unverified."
        )
    entry = read_certificate(model.parent)["models"].get(model.name)
    if entry is None:
        raise BusiTuneError(
            f"{model} has no certificate in {path}; export it again, or use it as it is with --allow-unverified."
        )
    if not entry["passed"]:
        raise BusiTuneError(f"{model} did not pass its verification, as {path} says; export it again.")
    if entry.get("model_sha256") != files.sha256(model):
        raise BusiTuneError(f"{model} is not the file that was verified (its SHA-256 differs); export it again.")


def _is_certified(model: Path) -> bool:
    try:
        check_certificate(model)
    except BusiTuneError:
        return False
    return True


def check_folder(folder: Path) -> VerificationFile:
    """The certificate of the export in `folder`, if all files are the certified ones, by their hashes.

    Each model also holds its certificate inside, and the two must say the same.

    Raises:
        FileError: it is no export.
        ParityError: it did not pass, or a file is not the certified one, be it by one byte.
    """
    certificate, path = read_certificate(folder), folder / VERIFICATION
    models = certificate["models"]
    if MODEL not in models:
        raise FileError(f"{path} is no certificate (it does not name {MODEL}); export the model again.")
    if not certificate["passed"]:
        raise ParityError(f"The export in {folder} did not pass its verification; export it again.")
    if path.read_bytes() != files.json_text(certificate).encode():
        raise _foreign(path)
    hashes = {name: entry.get("model_sha256") for name, entry in models.items()} | certificate["files"]
    for name, expected in hashes.items():
        if files.sha256(folder / name) != expected:
            raise _foreign(folder / name)
    # The top of the certificate repeats the entry of one model.
    if any(certificate.get(key, value) != value for key, value in models[MODEL].items()):
        raise ParityError(f"{path} contradicts itself about {MODEL}; export it again.")
    for name in models:
        _check_inside(folder / name, certificate)
    return certificate


def _check_inside(model: Path, certificate: VerificationFile) -> None:
    """Refuse a model whose own certificate is missing, or not the one in its folder."""
    inside = Classifier(model, optimisation="none").metadata.certificate
    said: dict[str, object] = {**certificate, **certificate["models"][model.name]}
    if not inside or any(said.get(key) != value for key, value in inside.items()):
        path = model.with_name(VERIFICATION)
        raise ParityError(f"{path} does not say what the certificate inside {model} says; export it again.")


def _foreign(path: Path) -> ParityError:
    return ParityError(f"{path} is not the file that was certified (it has changed); export it again.")
