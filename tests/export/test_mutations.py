"""`verify` notices every change in an export, and with a public key also every forgery."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from busi_tune.cli import exit_code
from busi_tune.errors import ConfigError
from busi_tune.inference.certificate import check_folder, read_certificate, uncertified, write_certificate
from busi_tune.inference.signature import Signer, read_public_key
from mutations import applied, forge_model, is_noticed, is_refused_by_predict, mutations_of
from small_export import SIZE, rewrite, small_model, write_export

pytestmark = pytest.mark.slow

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
SPKI, OPEN = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.NoEncryption()
SWAPPED = json.dumps(["malignant", "benign", "normal"])


def write_keys(place: Path, name: str = "key") -> tuple[Path, Path]:
    """Writes a private and a public key in the formats of openssl."""
    key = Ed25519PrivateKey.generate()
    private, public = place / f"{name}.pem", place / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, PKCS8, OPEN))
    public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_export(
        tmp_path / "export", {"model.onnx": small_model(), f"model-{SIZE}.onnx": small_model(side=SIZE)}
    )


@pytest.fixture
def signed(folder: Path, keys: tuple[Path, Path]) -> Path:
    write_certificate(folder, read_certificate(folder), Signer(keys[0]))
    return folder


def test_every_change_is_noticed(signed: Path) -> None:
    assert not is_noticed(signed)
    kinds: Counter[str] = Counter()
    for edit in mutations_of(signed):
        kinds[Path(edit.path).name] += 1
        with applied(edit, signed.parent):
            assert is_noticed(signed), edit
            if edit.path.endswith(("model.onnx", "verification.json")) and "with its SHA-256" not in edit.what:
                assert is_refused_by_predict(signed / "model.onnx"), edit
    assert not is_noticed(signed)
    # The file has fewer values; each of them is changed in several ways.
    assert kinds["verification.json"] > 500
    assert {"model.onnx", f"model-{SIZE}.onnx", "predictions.csv", "model2.onnx", ".hidden"} <= set(kinds)


@pytest.mark.parametrize("name", ["model.onnx", f"model-{SIZE}.onnx"])
@pytest.mark.parametrize("what", [{"tensor": "fc.weight"}, {"facts": {"classes": SWAPPED}}], ids=["weights", "classes"])
def test_a_forged_model_is_noticed_unless_its_whole_certificate_is_forged(
    name: str, what: dict[str, object], signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    public = read_public_key(keys[1])
    for depth in range(4):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        changed = Path(shutil.copytree(signed, tmp_path / "copy"))
        forge_model(changed, name, depth=depth, **what)  # type: ignore[arg-type]
        assert is_noticed(changed), depth
        assert is_refused_by_predict(changed / name) == (depth < 3)
        assert is_refused_by_predict(changed / name, public)
        # The forger also removes the signature.
        (changed / "verification.json.sig").unlink()
        rewrite(changed, lambda content: content.pop("signed_by"))
        assert is_noticed(changed) == (depth < 3)
        assert is_noticed(changed, public)


def test_what_is_not_certified_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model2.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (folder / ".hidden").write_text("")
    assert uncertified(folder, check_folder(folder)) == [".hidden", "model2.onnx"]
    for extra in ([], ["--json"]):
        assert exit_code(["verify", str(folder), *extra]) == 0
        shown = capsys.readouterr()
        assert shown.err == f"{folder} holds files that are not certified: .hidden, model2.onnx.\n"
    assert json.loads(shown.out) == read_certificate(folder)


def test_verify_says_what_a_certificate_without_a_key_is_worth(
    folder: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["verify", str(folder)]) == 0
    unsigned = capsys.readouterr().out
    assert unsigned.startswith(f"{folder}: the 4 certified files are unchanged.\n")
    assert "finds damaged and mixed-up files, but not an attack" in unsigned
    write_certificate(folder, read_certificate(folder), Signer(keys[0]))
    public = read_public_key(keys[1])
    assert exit_code(["verify", str(folder)]) == 0
    assert f"They are signed by the key {public}; --key checks" in capsys.readouterr().out
    assert exit_code(["verify", str(folder), "--key", str(keys[1])]) == 0
    assert capsys.readouterr().out == (
        f"{folder}: the 4 certified files are unchanged, and signed by the key {public}.\n"
    )


@pytest.mark.parametrize("command", ["verify", "predict"])
def test_a_key_refuses_what_its_owner_has_not_signed(
    command: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(key: Path) -> str:
        rest = [__file__] if command == "predict" else []
        assert exit_code([command, str(signed), *rest, "--key", str(key)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err

    assert "was signed by the key" in refusal(write_keys(tmp_path, "other")[1])
    signature = signed / "verification.json.sig"
    whole = signature.read_bytes()
    assert len(whole) == 64
    for wrong in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        signature.write_bytes(wrong)
        assert "is not a signature of" in refusal(keys[1])
    signature.unlink()
    assert "was signed, and" in refusal(keys[1])
    rewrite(signed, lambda content: content.pop("signed_by"))
    assert "is not signed; get the export from its signer" in refusal(keys[1])


def test_what_is_no_key_is_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    files = {
        "other.pem": curve.private_bytes(PEM, PKCS8, OPEN),
        "text.pem": b"key",
        "empty.pem": b"",
        "public.pem": keys[1].read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"holds no Ed25519 private key in PEM; make one with openssl genpkey"):
            Signer(tmp_path / name)
    locked = Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"word"))
    (tmp_path / "locked.pem").write_bytes(locked)
    with pytest.raises(ConfigError, match=r"is protected by a passphrase, which --sign cannot ask for"):
        Signer(tmp_path / "locked.pem")
    with pytest.raises(ConfigError, match=r"holds no Ed25519 public key in PEM; make one with openssl pkey"):
        read_public_key(keys[0])


def test_leftovers_of_a_killed_export_go_with_the_next_command(folder: Path) -> None:
    for name in (".export.1-a.busi-tune.tmp", ".model.onnx.1-a.busi-tune.tmp"):
        (folder / name).write_bytes(b"half")
    check_folder(folder)
    assert uncertified(folder, read_certificate(folder)) == []
