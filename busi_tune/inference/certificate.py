"""The certificate of an export, verification.json. Only this module reads, writes and checks it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from busi_tune import files, results
from busi_tune.errors import BusiTuneError, ConfigError, FileError, ParityError
from busi_tune.inference.classifier import Classifier, Optimisation, provider_name
from busi_tune.inference.contents import read_contents
from busi_tune.inference.metadata import certificate_inside
from busi_tune.inference.probe import try_in_a_child
from busi_tune.inference.signature import Signer, check_signature, signature_of
from busi_tune.inference.structure import check_structure
from busi_tune.results import PREDICTIONS, Evidence, ModelCertificate, ModelFigures, VerificationFile

MODEL = "model.onnx"
VERIFICATION = "verification.json"
# A model file cannot contain its own hash and size.
OUTSIDE = {"model_sha256", "bytes"}
# What all models of an export share. An int8 or float16 model has figures of its own for the names in OWN.
SHARED = Evidence.__required_keys__ | Evidence.__optional_keys__
OWN = SHARED & (ModelFigures.__required_keys__ | ModelFigures.__optional_keys__)
# The warning for everyone who relies on a certificate without a key.
UNSIGNED = (
    "Without --key, verify finds damaged and mixed-up files, but not an attack; against attacks, use a signature "
    "(export --sign, verify --key)."
)


def open_export(
    path: Path,
    threads: int = 0,
    *,
    optimisation: Optimisation = "all",
    provider: str = "cpu",
    allow_unverified: bool = False,
    key: str = "",
) -> Classifier:
    """Open the model of an export folder, or one model file in it, if the model is verified and unchanged.

    With a public `key`, the owner of the key must have signed the export. With `allow_unverified`, a model without a
    valid certificate is accepted, too, if it loads and runs in a child process first.

    Raises:
        BusiTuneError: the model does not exist, is not the one that passed verification, or cannot be used.
        ConfigError: `key` and `allow_unverified` are given together.
    """
    if key and allow_unverified:
        raise ConfigError("key requires a signed certificate, and allow_unverified requires none; remove one of them.")
    provider_name(provider)
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        missing = "is no file" if path.exists() else "does not exist"
        reason = f"{path} holds no {MODEL}" if path.is_dir() else f"{path} {missing}"
        raise FileError(f"{reason}; name a folder that `busi-tune export` made, or a model in it.")
    remove_leftovers(model.parent)
    if not allow_unverified:
        check_certificate(model, key)
    elif not _is_certified(model):
        check_structure(model)
        try_in_a_child(model, optimisation)
    return Classifier(model, threads=threads, optimisation=optimisation, provider=provider)


def read_certificate(folder: Path) -> VerificationFile:
    """The certificate of the export in `folder`, exactly as it was written.

    Raises:
        FileError: the certificate is missing, its content has changed, or this busi-tune does not know its version.
        ParityError: the bytes of the certificate have changed.
    """
    path = folder / VERIFICATION
    if not path.exists():
        raise FileError(f"{folder} holds no {VERIFICATION}; name a folder that `busi-tune export` made.")
    certificate = results.read(path, VerificationFile)
    with files.explained(path, "read"):
        content = path.read_bytes()
    if content != results.text(certificate).encode():
        raise ParityError(f"{path} is not the file that was certified (its bytes differ); export it again.")
    return certificate


def content_of_any_version(folder: Path) -> dict[str, object]:
    """The content of verification.json in `folder`, written by any version of busi-tune. The content is not checked.

    Raises:
        FileError: the file cannot be read, or does not hold a JSON object.
    """
    return dict(files.read_json(folder / VERIFICATION))


def write_certificate(folder: Path, content: Mapping[str, object], signer: Signer | None = None) -> VerificationFile:
    """Write the certificate of the export in `folder`, with the entry `schema` first, and return it.

    With a `signer`, the certificate names the public key, and the signature is written to a second file.

    Raises:
        FileError: the file system refuses, or `content` is not a certificate, which would be a bug.
    """
    path = folder / VERIFICATION
    document = {"schema": results.SCHEMAS[VerificationFile], **content}
    if signer is not None:
        document["signed_by"] = signer.public
    certificate = results.check(document, VerificationFile, str(path))
    results.write(path, document)
    if signer is not None:
        signer.sign(path)
    return certificate


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a killed export in `folder`. Those of a running export stay."""
    left = list(folder.glob(f".*{files.TEMPORARY}"))
    if not left or not os.access(folder, os.W_OK):
        return
    from busi_tune import locks

    lock = locks.take(folder / locks.RUN, wait=False)
    if lock is None:
        return
    try:
        files.remove_leftovers(left)
    finally:
        lock.release()


def check_certificate(model: Path, key: str = "") -> VerificationFile:
    """Check a model file against the certificate in its folder, and return the certificate.

    With a public `key`, the owner of the key must have signed the certificate.

    Raises:
        BusiTuneError: the model has no certificate, did not pass verification, or is not the file that passed.
    """
    path = model.with_name(VERIFICATION)
    if not path.exists():
        raise BusiTuneError(
            f"{model} has no certificate ({path} does not exist); export it again, or use it as it is with "
            "--allow-unverified."
        )
    certificate = read_certificate(model.parent)
    _check_key(path, certificate, key)
    if model.name not in certificate["models"]:
        raise BusiTuneError(
            f"{model} has no certificate in {path}; export it again, or use it as it is with --allow-unverified."
        )
    _check_model(model, certificate)
    return certificate


def _is_certified(model: Path) -> bool:
    try:
        check_certificate(model)
    except BusiTuneError:
        return False
    return True


def check_folder(folder: Path, key: str = "") -> VerificationFile:
    """Check the hashes of all files that the certificate of the export in `folder` names, and return the certificate.

    Each model also contains a certificate, and the two must agree. With a public `key`, the owner of the key must have
    signed the certificate. `uncertified` lists all other files.

    Raises:
        FileError: the folder is not an export.
        ParityError: the export did not pass verification, or a file is not the certified file, byte for byte.
    """
    certificate, path = read_certificate(folder), folder / VERIFICATION
    remove_leftovers(folder)
    models = certificate["models"]
    if MODEL not in models:
        raise FileError(f"{path} is not a certificate (it does not name {MODEL}); export the model again.")
    if not certificate["passed"]:
        raise ParityError(f"The export in {folder} did not pass its verification; export it again.")
    if signed_by := certificate.get("signed_by"):
        check_signature(path, signed_by)
    _check_key(path, certificate, key)
    for name, expected in certificate["files"].items():
        if files.sha256(folder / name) != expected:
            raise _foreign(folder / name)
    # The top level of the certificate repeats the entry of MODEL and two hashes. Earlier versions lack the second one.
    repeated = {
        **models[MODEL],
        "predictions_sha256": certificate["files"].get(PREDICTIONS),
        "seen_images_sha256": sha256_list(certificate.get("seen_images", [])),
    }
    if any(certificate.get(key, value) != value for key, value in repeated.items()):
        raise ParityError(f"{path} contradicts itself about {MODEL}, {PREDICTIONS} or seen_images; export it again.")
    for name in models:
        _check_model(folder / name, certificate)
    return certificate


def sha256_list(texts: Sequence[str]) -> str:
    """The SHA-256 of a list of texts, written as JSON."""
    return files.sha256_bytes(json.dumps(texts).encode())


def uncertified(folder: Path, certificate: VerificationFile) -> list[str]:
    """The names in an export's folder, including hidden ones, that its certificate does not cover."""
    known = {VERIFICATION, files.LOCK, *certificate["models"], *certificate["files"]}
    if "signed_by" in certificate:
        known.add(signature_of(folder / VERIFICATION).name)
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def _check_key(path: Path, certificate: VerificationFile, key: str) -> None:
    """Refuse a certificate that the owner of the public `key` has not signed. Without a key, accept any certificate."""
    if not key:
        return
    signed_by = certificate.get("signed_by")
    if signed_by is None:
        raise ParityError(f"{path} is not signed; get the export from its signer, or leave out --key.")
    if signed_by != key:
        raise ParityError(f"{path} was signed by the key {signed_by}, not by {key}; name its signer's key.")
    check_signature(path, key)


def _check_model(model: Path, certificate: VerificationFile) -> None:
    """Refuse a model file that did not pass, or that differs from its certificate or the certificate inside it."""
    entry, path = certificate["models"][model.name], model.with_name(VERIFICATION)
    if not entry["passed"]:
        raise ParityError(f"{model} did not pass its verification, as {path} says; export it again.")
    if entry.get("model_sha256") != files.sha256(model) or entry.get("bytes") != model.stat().st_size:
        raise _foreign(model)
    check_structure(model)
    contents = read_contents(model)
    found = {"weights": contents.weights_sha256, "graph": contents.graph_sha256}
    expected = {"weights": entry["weights_sha256"], "graph": entry["graph_sha256"]}
    for part in (part for part in found if found[part] != expected[part]):
        raise ParityError(f"The {part} of {model} is not what was certified, whatever its hash; export it again.")
    if certificate_inside(contents.metadata) != _said(certificate, entry) or not _has_own_figures(certificate, entry):
        raise ParityError(f"{path} and the certificate inside {model} differ; export it again.")


def _said(certificate: VerificationFile, entry: ModelCertificate) -> dict[str, object]:
    """The content that the certificate inside a model must have: the export's evidence, and the model's entry."""
    evidence = {name: value for name, value in certificate.items() if name in SHARED}
    return evidence | {name: value for name, value in entry.items() if name not in OUTSIDE}


def _has_own_figures(certificate: VerificationFile, entry: ModelCertificate) -> bool:
    """Whether an int8 or float16 entry has all figures that its model's certificate holds in place of the float32 ones.

    If the two are equal, the certificate inside the model does not show whether the entry has its own.
    """
    expected = OWN & certificate.keys() if "precision" in entry else set()
    return OWN & entry.keys() == expected


def _foreign(path: Path) -> ParityError:
    return ParityError(f"{path} is not the file that was certified (it has changed); export it again.")
