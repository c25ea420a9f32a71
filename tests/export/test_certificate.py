"""verification.json: one reader, one writer, and a check that any change in the folder fails."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from busi_tune.cli import exit_code
from busi_tune.errors import BusiTuneError, FileError, ParityError
from busi_tune.files import sha256
from busi_tune.inference.certificate import check_certificate, check_folder, read_certificate, write_certificate
from small_export import COMMON, SIZE, rewrite, small_model, write_export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of two verified models."""
    return write_export(
        tmp_path / "export", {"model.onnx": small_model(), f"model-{SIZE}.onnx": small_model(side=SIZE)}
    )


def test_a_certificate_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    certificate = read_certificate(folder)
    written = json.loads((folder / "verification.json").read_text())
    del written["sha256"]
    assert certificate == written
    content = {name: value for name, value in certificate.items() if name != "schema"}
    (tmp_path / "other").mkdir()
    assert write_certificate(tmp_path / "other", content) == certificate
    assert (tmp_path / "other" / "verification.json").read_bytes() == (folder / "verification.json").read_bytes()


def test_what_is_no_certificate_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"verification.json is damaged"):
        write_certificate(tmp_path, {"passed": True})
    with pytest.raises(FileError, match=r"has version busi-tune.verification/9, and this busi-tune reads"):
        write_certificate(tmp_path, {"schema": "busi-tune.verification/9"})
    assert list(tmp_path.iterdir()) == []


def test_a_sound_folder_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_folder(folder) == read_certificate(folder)
    check_certificate(folder / f"model-{SIZE}.onnx")
    assert exit_code(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_certificate(folder)


def model_says(key: str, value: object) -> Callable[[Path], None]:
    """Changes a value in the certificate inside the model; None removes the certificate."""

    def change(folder: Path) -> None:
        path = folder / "model.onnx"
        model = onnx.load(path)
        texts = {entry.key: entry.value for entry in model.metadata_props}
        inside = json.loads(texts.pop("certificate"))
        texts |= {} if value is None else {"certificate": json.dumps(inside | {key: value})}
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
        new = {"model_sha256": sha256(path), "bytes": path.stat().st_size}
        rewrite(folder, lambda content: content.update(model_sha256=new["model_sha256"]))
        rewrite(folder, lambda content: content["models"]["model.onnx"].update(new))

    return change


def certificate_says(key: str, value: object, name: str | None = None) -> Callable[[Path], None]:
    """Changes a value in verification.json, at the top level or in a model's entry."""
    return lambda folder: rewrite(
        folder, lambda content: (content if name is None else content["models"][name]).update({key: value})
    )


def without_own_figures(folder: Path) -> None:
    """Makes an int8 model of a model whose entry has no test figures of its own."""
    for says in (model_says("precision", "int8"), certificate_says("precision", "int8", "model.onnx")):
        says(folder)


def blank(folder: Path) -> None:
    """Adds a space to verification.json."""
    path = folder / "verification.json"
    path.write_bytes(path.read_bytes().replace(b": ", b":  ", 1))


def windows_lines(folder: Path) -> None:
    """Changes the line ends in verification.json."""
    path = folder / "verification.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def other_model(folder: Path) -> None:
    """Replaces one model by the other."""
    (folder / "model.onnx").write_bytes((folder / f"model-{SIZE}.onnx").read_bytes())


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (lambda folder: (folder / "verification.json").unlink(), FileError, "export holds no verification.json; name"),
        (lambda folder: rewrite(folder, dict.clear), FileError, "has the schema None"),
        (certificate_says("schema", "busi-tune.verification/9"), FileError, "has version busi-tune.verification/9"),
        (certificate_says("models", {}), FileError, r"is not a certificate \(it does not name model.onnx\)"),
        (certificate_says("images", "3"), FileError, "is damaged .Expected `int`, got `str`"),
        (certificate_says("passed", False), ParityError, "did not pass its verification"),
        (certificate_says("files", {"README.md": "0"}), FileError, "README.md could not be read"),
        (
            certificate_says("files", {}),
            ParityError,
            "contradicts itself about model.onnx, predictions.csv or seen_ima",
        ),
        (
            certificate_says("seen_images", ["0" * 16]),
            ParityError,
            "contradicts itself about .* or seen_images; export",
        ),
        (blank, ParityError, "verification.json is not the file that was certified"),
        (windows_lines, ParityError, "verification.json is not the file that was certified"),
        (other_model, ParityError, "model.onnx is not the file that was certified"),
        (certificate_says("max_error", 0.0), ParityError, "contradicts itself about model.onnx"),
        (certificate_says("model_sha256", "0"), ParityError, "contradicts itself about model.onnx"),
        (certificate_says("temperature", 2.0), ParityError, "and the certificate inside .* differ"),
        (certificate_says("max_error", 0.0, f"model-{SIZE}.onnx"), ParityError, f"inside .*model-{SIZE}.onnx differ"),
        (certificate_says("test", COMMON["test"], "model.onnx"), ParityError, "and the certificate inside .* differ"),
        (without_own_figures, ParityError, "and the certificate inside .* differ"),
        (model_says("split", "another"), ParityError, "and the certificate inside .* differ"),
        (model_says("split", None), ParityError, "and the certificate inside .* differ"),
    ],
)
def test_a_changed_folder_is_refused(
    damage: Callable[[Path], None],
    error: type[BusiTuneError],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    with pytest.raises(error, match=reason) as caught:
        check_folder(folder)
    assert exit_code(["verify", str(folder)]) == 1
    assert capsys.readouterr() == ("", f"busi-tune: {caught.value}\n")


def test_a_key_of_a_later_writer_does_not_matter(folder: Path) -> None:
    certificate_says("later", 1)(folder)
    assert "later" in check_folder(folder)
    check_certificate(folder / "model.onnx")
    assert COMMON.keys() <= read_certificate(folder).keys()
