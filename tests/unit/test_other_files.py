"""Files in class folders that are ignored or changed on reading, as training, audit and predict report them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune.cli import exit_code
from busi_tune.data.listing import find_images
from image_folders import encoded
from picture_files import png
from small_export import small_model, write_export

DICOM = bytes(128) + b"DICM" + bytes(60)


def drawn(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)
    return Image.fromarray(small).resize((60, 44), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images in each of two classes."""
    for number, name in enumerate([f"{label}/{k}.png" for label in ("benign", "malignant") for k in range(8)]):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(tmp_path / "data" / name)
    return tmp_path / "data"


def training(data: Path) -> list[str]:
    options = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1"]
    return ["baseline", "--data", str(data), "--out", str(data.with_name("run")), *options]


def splitting(data: Path) -> list[str]:
    return ["data", "split", "--data", str(data), "--out", str(data.with_name("split.csv"))]


@pytest.mark.parametrize("command", [training, splitting])
def test_pictures_of_other_formats_stop_a_command(
    command: Callable[[Path], list[str]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("benign/8.dcm", "benign/9.dcm", "malignant/scan"):
        (data / name).write_bytes(DICOM)
    (data / "malignant/clip.GIF").write_bytes(encoded(drawn(20), "GIF"))
    (data / "malignant/9.dat").write_bytes(encoded(drawn(21), "JPEG"))
    (data / "malignant/notes.txt").write_text("none")
    assert exit_code(command(data)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"busi-tune: 5 files in {data} would be left out (.dcm 2, .dat 1, .gif 1, without suffix 1: benign/8.dcm, "
        "benign/9.dcm, malignant/9.dat, malignant/clip.GIF, malignant/scan); convert them to PNG (DICOM: DCMTK's "
        "`dcm2img --write-png IN.dcm OUT.png`), give images their suffix, or move the files away."
    )
    assert not data.with_name("split.csv").exists()


def test_other_files_are_told_with_their_counts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("benign/a.txt", "benign/b.TXT", "malignant/c.csv", "malignant/Thumbs.db", "malignant/.DS_Store"):
        (data / name).write_text("none")
    (data / "readme").write_text("beside the class folders")
    (data / "benign/0_mask.gif").write_bytes(encoded(drawn(0), "GIF"))
    assert exit_code(splitting(data)) == 0
    assert "Other files left out: .txt 2, .csv 1." in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("suffix", "form"), [(".jfif", "JPEG"), (".JPE", "JPEG"), (".apng", "PNG"), (".jpg", "PNG")])
def test_every_suffix_of_a_format_is_listed_whatever_the_content(data: Path, suffix: str, form: str) -> None:
    (data / "benign" / f"more{suffix}").write_bytes(encoded(drawn(30), form))
    assert f"benign/more{suffix}" in [image.path for image in find_images(data).images]


def changed(data: Path) -> dict[str, list[str]]:
    """Adds images to `data` that are changed on reading; returns their paths by the note on the change."""
    deep = np.asarray(drawn(40)).astype(np.uint16)[:, :, None]
    turned = Image.Exif()
    turned[0x0112] = 6
    (data / "benign/deep.png").write_bytes(png(deep * 16, 0))
    (data / "benign/turned.jpg").write_bytes(encoded(drawn(41), "JPEG", exif=turned))
    (data / "malignant/moves.webp").write_bytes(
        encoded(drawn(42), "WEBP", save_all=True, append_images=[drawn(43)], lossless=True)
    )
    return {
        "only the first of several frames is read": ["malignant/moves.webp"],
        "scaled from 12 bits, as its values suggest": ["benign/deep.png"],
        "turned as its orientation tag says": ["benign/turned.jpg"],
    }


def test_images_read_with_a_change_are_told_before_training(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [f"Images read with a change ({text}): 1, {path}." for text, [path] in changed(data).items()]
    # The second command reads these images from the cache.
    for out in ("first.csv", "second.csv"):
        assert exit_code(["data", "split", "--data", str(data), "--out", str(data.with_name(out))]) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "change" in line] == told


def test_an_audit_names_them(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = changed(data)
    (data / "benign/8.dcm").write_bytes(DICOM)
    out = data.with_name("audit")
    assert exit_code(["data", "audit", "--data", str(data), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] == expected
    assert found["other_files"] == {".dcm": 1}
    page = (out / "audit.html").read_text()
    for text, [path] in expected.items():
        assert f"<td>{text}</td><td>{path}</td>" in page


def test_a_turned_copy_with_another_label_is_a_conflict(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6
    copy = drawn(3).transpose(Image.Transpose.ROTATE_90)
    for name, form in (("copy.png", "PNG"), ("copy.webp", "WEBP"), ("copy.jpg", "JPEG"), ("copy.tif", "TIFF")):
        (data / "malignant" / name).write_bytes(encoded(copy, form, exif=upright))
    assert exit_code(splitting(data)) == 0
    table = data.parent / "split.excluded.csv"
    told = f"5 images left out: near-duplicates of them carry another label. {table} lists them."
    assert told in capsys.readouterr().err.splitlines()
    names = ["benign/3.png", *(f"malignant/copy.{suffix}" for suffix in ("jpg", "png", "tif", "webp"))]
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == names


def test_predict_warns_of_doubtful_pictures_and_names_what_it_cannot_read(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(data)
    (data / "benign/8.dcm").write_bytes(DICOM)
    (data / "benign/a.txt").write_text("none")
    export = write_export(data.with_name("export"), {"model.onnx": small_model()})
    assert exit_code(["predict", str(export), str(data), "--jsonl"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 + 3 + 1
    rows = {Path(row["path"]).name: row for row in map(json.loads, lines)}
    assert rows["deep.png"]["warning"].startswith("scaled from 12 bits, as its values suggest")
    assert rows["moves.webp"]["warning"].startswith("only the first of several frames is read")
    assert "turned" not in rows["turned.jpg"].get("warning", "")
    assert rows["8.dcm"]["error"] == (
        "a DICOM file, not a PNG, JPEG, BMP, TIFF, WEBP image; convert it with DCMTK's "
        "`dcm2img --write-png IN.dcm OUT.png`"
    )
