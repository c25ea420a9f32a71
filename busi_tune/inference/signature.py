"""The signature of an export: Ed25519 (RFC 8032) over verification.json, which holds the hash of every other file."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from busi_tune import files
from busi_tune.errors import ConfigError, FileError, ParityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# The file holds only the 64 bytes of the signature, as openssl writes and reads them.
SUFFIX = ".sig"


class Signer:
    """A private key in a PEM file, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        ConfigError: the file holds no such key, or the package cryptography is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.key = _private_key(path)
        self.public = _text(self.key.public_key())

    def sign(self, document: Path) -> None:
        """Write the signature of `document` to `signature_of(document)`."""
        with files.explained(document, "read"):
            content = document.read_bytes()
        files.write_bytes(signature_of(document), self.key.sign(content))


def signature_of(document: Path) -> Path:
    """The file that holds the signature of a document."""
    return document.with_name(document.name + SUFFIX)


def read_public_key(path: Path) -> str:
    """The public key in a PEM file, in the form that certificates use: its 32 bytes in base64.

    Raises:
        ConfigError: the file holds no Ed25519 public key.
    """
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    with files.explained(path, "read"):
        content = path.read_bytes()
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            f"{path} holds no Ed25519 public key in PEM; make one with openssl pkey -in KEY.pem -pubout -out PUB.pem."
        )
    return _text(key)


def check_signature(document: Path, public: str) -> None:
    """Refuse a document whose current content the owner of the key `public` has not signed.

    Raises:
        ParityError: the signature is missing, or is of another content or by another key.
        FileError: `public` is not a key.
        ConfigError: the package cryptography is not installed.
    """
    _require()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = signature_of(document)
    if not signature.is_file():
        raise ParityError(f"{document} was signed, and {signature} is missing; get the export again from its signer.")
    with files.explained(document, "read"):
        content, signed = document.read_bytes(), signature.read_bytes()
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True)).verify(signed, content)
    except ValueError:
        raise FileError(f"{document} names an invalid key ({public[:60]!r}); export the model again.") from None
    except InvalidSignature:
        raise ParityError(
            f"{signature} is not a signature of {document} by the key {public}; get the export again from its signer."
        ) from None


def _private_key(path: Path) -> "Ed25519PrivateKey":
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with files.explained(path, "read"):
        content = path.read_bytes()
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigError(
            f"{path} is protected by a passphrase, which --sign cannot ask for; name a key without one."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds no Ed25519 private key in PEM; make one with openssl genpkey -algorithm ed25519 -out {path}."
        )
    return key


def _text(key: "Ed25519PublicKey") -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def _require() -> None:
    """Raise a ConfigError if the package cryptography is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "A signature needs cryptography, which is not installed; pip install '/path/to/busi-tune[sign]'."
        ) from None
