"""`predict --explain` and the overlays that it writes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from busi_tune.cli import exit_code
from busi_tune.cli.overlay_files import overlay_name
from busi_tune.errors import FileError
from busi_tune.inference import Classifier, predict
from busi_tune.overlays import COLOURS, SIDE, overlay
from small_export import CLASSES, SIZE, small_model, write_export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("mapped") / "export", {"model.onnx": small_model(maps=True)})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two images with the same name, a wide image, one with an awkward name, and a file that is not an image."""
    folder = tmp_path / "scans"
    generator = np.random.default_rng(0)
    for name, shape in (("a/scan.png", (40, 50)), ("b/scan.png", (40, 50)), ("wide.jpg", (30, 90))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    Image.fromarray(generator.integers(0, 256, (1300, 20), dtype=np.uint8)).save(folder / "- =cmd; 'ü' <b>.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (2, 0), (2, 3), (1, 2)])
def test_the_colours_lie_where_the_map_is_high(row: int, column: int) -> None:
    cam = np.full((3, 4), -2.0, dtype=np.float32)
    cam[row, column] = 5.0
    picture = Image.new("RGB", (120, 60), (100, 100, 100))
    found = np.asarray(overlay(picture, cam)).astype(int)
    changed = np.abs(found - 100).sum(axis=2)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    # The cell covers 30 x 20 pixels of the picture.
    assert (y // 20, x // 30) == (row, column)
    # Far from the cell, the picture is unchanged.
    assert changed[59 - 59 * (row // 2) if row != 1 else 0, 119 - 119 * (column // 2)] == 0
    brightest = 0.4 * 100 + 0.6 * COLOURS[-1]
    assert np.abs(found[y, x] - brightest).max() < 25


def test_a_map_of_equal_values_has_no_colours() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for value in (0.0, -3.5, 1e30):
        assert overlay(picture, np.full((2, 2), value, dtype=np.float32)).tobytes() == picture.tobytes()


def test_the_overlay_is_of_the_predicted_class_and_of_the_seen_picture(export: Path, scans: Path) -> None:
    paths = [scans / "a/scan.png", scans / "wide.jpg", scans / "- =cmd; 'ü' <b>.png"]
    classifier = Classifier(export / "model.onnx")
    for found, path in zip(predict(export, paths, explain=True), paths, strict=True):
        assert found.explanation is not None
        image = Image.open(path).convert("RGB")
        small = image.resize((SIZE, image.height), Image.Resampling.BILINEAR)
        seen = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        assert (found.explanation.seen == seen).all()
        maps = classifier.run(seen[None], maps=True).maps
        assert maps is not None
        np.testing.assert_allclose(found.explanation.cam, maps[0, CLASSES.index(found.predicted)], rtol=1e-4)
        drawn = found.explanation.picture()
        assert max(drawn.size) == SIDE
        assert drawn.width / drawn.height == pytest.approx(image.width / image.height, rel=0.1)


def test_predict_writes_an_overlay_for_each_picture(
    export: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "new" / "overlays", tmp_path / "answers.csv"
    arguments = ["predict", str(export), str(scans), "--explain", str(folder)]
    assert exit_code([*arguments, "--csv", str(table), "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    named = {answer["path"]: answer["overlay"] for answer in answers if "error" not in answer}
    assert len(set(named.values())) == len(named) == 4
    assert sorted(str(path) for path in folder.iterdir()) == sorted(named.values())
    assert [answer.get("overlay") for answer in answers if "error" in answer] == [None]
    with table.open(newline="") as file:
        assert {row["path"]: row["overlay"] for row in csv.DictReader(file) if not row["error"]} == named
    for answer in (answer for answer in answers if "error" not in answer):
        path = Path(answer["overlay"])
        assert path.name == overlay_name(answer["path"])
        assert path.name.isprintable()
        assert not set(path.name) & set("/\\<>:\"|?*' ;=")
        assert not path.name.startswith((".", "-"))
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            title = f"{answer['predicted']} {answer['probabilities'][answer['predicted']]:.4f}"
            assert image.info["Title"] == title
            assert image.info["Source"] == answer["path"]
    # Neither the order nor the number of images changes a name.
    alone = tmp_path / "alone"
    assert exit_code(["predict", str(export), str(scans / "b/scan.png"), "--explain", str(alone)]) == 0
    (only,) = alone.iterdir()
    assert only.name == Path(named[str(scans / "b/scan.png")]).name


def test_pictures_are_replaced_only_on_request(
    export: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, image = tmp_path / "overlays", str(scans / "a/scan.png")
    arguments = ["predict", str(export), image, "--explain", str(folder)]
    # A path that is given twice has one overlay.
    assert exit_code([*arguments[:3], image, *arguments[3:]]) == 0
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(b"mine")
    capsys.readouterr()
    assert exit_code(arguments) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{folder} is not empty (it holds {path.name}); name another folder for --explain" in message
    table = str(tmp_path / "answers.csv")
    assert exit_code([*arguments, "--csv", table, "--append"]) == 1
    assert f"{path} exists; name another folder for --explain, or add --overwrite." in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
    assert exit_code([*arguments, "--overwrite"]) == 0
    assert path.read_bytes() == whole


def test_an_interrupted_command_goes_on(export: Path, scans: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "overlays", tmp_path / "answers.csv"
    images = [str(scans / name) for name in ("a/scan.png", "b/scan.png", "wide.jpg")]
    whole = ["predict", str(export), *images, "--csv", str(table), "--explain", str(folder)]
    assert exit_code(whole) == 0
    expected = table.read_bytes()
    # The row of the second image is lost, but its overlay is kept.
    table.rename(f"{table}.partial")
    partial = Path(f"{table}.partial")
    partial.write_bytes(b"".join(expected.splitlines(keepends=True)[:2]))
    (folder / overlay_name(images[2])).unlink()
    assert exit_code([*whole, "--resume"]) == 0
    assert table.read_bytes() == expected
    assert len(list(folder.iterdir())) == 3


def test_what_cannot_be_explained_is_one_sentence(
    export: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_export(tmp_path / "plain", {"model.onnx": small_model()})
    model = plain / "model.onnx"
    (tmp_path / "file").write_text("")
    cases = [
        (plain, 2, tmp_path / "new", f"{model} has no output cam to explain its predictions with; name a model.onnx "),
        (export, 1, scans / "overlays", f"is inside {scans}, so its overlays would be classified"),
        (export, 1, tmp_path / "file", "is a file; name a folder"),
    ]
    for name, code, folder, words in cases:
        assert exit_code(["predict", str(name), str(scans), "--explain", str(folder)]) == code
        shown = capsys.readouterr()
        assert words in shown.err
        assert shown.err.count("\n") == 1
        assert not folder.is_dir()


def broken(change: str) -> onnx.ModelProto:
    """A model with a wrong output `cam`."""
    model = small_model(maps=True)
    (output,) = (value for value in model.graph.output if value.name == "cam")
    last = next(node for node in model.graph.node if "cam" in node.output)
    if change == "of other classes":
        last.output[:] = ["four"]
        model.graph.node.append(onnx.helper.make_node("Concat", ["four", "four"], ["cam"], axis=1))
    elif change == "too large":
        last.output[:] = ["few"]
        model.graph.node.append(onnx.helper.make_node("Tile", ["few", "times"], ["cam"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 50, 50]), "times"))
    else:
        last.output[:] = ["finite"]
        model.graph.node.append(onnx.helper.make_node("Div", ["finite", "zero"], ["cam"]))
    output.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("change", ["of other classes", "too large", "not finite"])
def test_maps_that_are_none_are_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(broken(change).SerializeToString())
    classifier = Classifier(path)
    pixels = np.full((2, 20, 30, 3), 99, dtype=np.uint8)
    assert classifier.run(pixels).maps is None
    with pytest.raises(FileError, match=r"must have a map for each class|its cam are not finite numbers"):
        classifier.run(pixels, maps=True)


def test_a_model_without_certificate_is_tried_with_its_maps(export: Path, scans: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(broken("too large").SerializeToString())
    with pytest.raises(FileError, match="must have a map for each class"):
        predict(model, [scans / "wide.jpg"], allow_unverified=True)
    model.write_bytes((export / "model.onnx").read_bytes())
    (found,) = predict(model, [scans / "wide.jpg"], allow_unverified=True, explain=True)
    assert found.explanation is not None


def test_it_needs_neither_pytorch_nor_matplotlib(export: Path, scans: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(export), str(scans / "wide.jpg"), "--explain", str(tmp_path / "overlays")]
    script = f"import sys; from busi_tune.cli import exit_code; assert exit_code({arguments}) == 0;"
    script += "print([m for m in ('torch', 'matplotlib', 'pandas', 'onnx', 'captum', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(list((tmp_path / "overlays").iterdir())) == 1
