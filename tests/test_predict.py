"""Predictions with ONNX Runtime alone are those of the run; a bad file is a row, and PyTorch is never loaded."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from busi_tune import images
from busi_tune.cli import exit_code
from busi_tune.inference import image_paths, open_export, predict_files
from exported import Exported, flip_a_bit, linked, replace

pytest_plugins = ["exported"]

CLASSES = ["benign", "malignant", "normal"]
COLUMNS = [f"p_{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def answers(exported: Exported) -> pd.DataFrame:
    """What the run itself answered on its test split."""
    return pd.read_csv(exported.run / "predictions.csv")


@pytest.fixture
def spoilt(exported: Exported, answers: pd.DataFrame, tmp_path: Path) -> list[Path]:
    """Five files in a folder: the first, third and last are good, the others are not images."""
    good = [exported.data / path for path in answers["path"][:3]]
    contents = [
        good[0].read_bytes(),
        good[1].read_bytes()[:400],
        good[1].read_bytes(),
        b"hello\n",
        good[2].read_bytes(),
    ]
    folder = tmp_path / "spoilt"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def predict_json(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    """What `predict --json` prints."""
    assert exit_code(["predict", *arguments, "--json"]) == code
    answers = json.loads(capsys.readouterr().out)
    assert isinstance(answers, list)
    return answers


@pytest.mark.parametrize("batch_size", ["1", "5", "32"])
def test_answers_are_those_of_the_run(
    batch_size: str, exported: Exported, answers: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    # Backwards, so that an answer that goes with the sorted files shows.
    expected = answers[::-1]
    paths = [str(exported.data / path) for path in expected["path"]]
    given = predict_json([str(exported.folder), *paths, "--batch-size", batch_size], capsys)
    assert [entry["path"] for entry in given] == paths
    assert [entry["class"] for entry in given] == list(expected["predicted"])
    assert all(list(entry) == ["path", "class", "probabilities"] for entry in given)
    assert all(list(entry["probabilities"]) == CLASSES for entry in given)
    probabilities = [list(entry["probabilities"].values()) for entry in given]
    np.testing.assert_allclose(probabilities, expected[COLUMNS], atol=1e-4)


def test_the_confusion_matrix_is_the_runs(exported: Exported, answers: pd.DataFrame) -> None:
    classifier = open_export(exported.folder)
    assert list(classifier.classes) == CLASSES
    given = [p.predicted for p in predict_files(classifier, [exported.data / path for path in answers["path"]])]
    matrix = np.zeros((3, 3), dtype=int)
    for truth, predicted in zip(answers["class"], given, strict=True):
        matrix[CLASSES.index(truth), CLASSES.index(predicted)] += 1
    figures = json.loads((exported.run / "metrics.json").read_text())
    assert matrix.tolist() == figures["test"]["confusion_matrix"]


def test_a_table_by_default(
    exported: Exported, answers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported.data)
    assert exit_code(["predict", str(exported.folder), *answers["path"]]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    header, *rows = [line.split() for line in shown.out.splitlines() if "─" not in line and line.strip()]
    assert header == ["file", "predicted", *(f"p({name})" for name in CLASSES)]
    # A path holds a blank: `normal/normal (1).png`.
    assert [" ".join(row[:2]) for row in rows] == list(answers["path"])
    assert [row[2] for row in rows] == list(answers["predicted"])
    np.testing.assert_allclose([[float(cell) for cell in row[3:]] for row in rows], answers[COLUMNS], atol=2e-4)


@pytest.mark.parametrize("batch_size", ["1", "2", "32"])
def test_an_unreadable_file_is_a_row(
    batch_size: str,
    exported: Exported,
    answers: pd.DataFrame,
    spoilt: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(exported.folder), *map(str, spoilt), "--batch-size", batch_size]
    given = predict_json(arguments, capsys, code=1)
    assert [entry["path"] for entry in given] == [str(path) for path in spoilt]
    good = [entry for entry in given if "error" not in entry]
    assert good == [given[0], given[2], given[4]]
    assert [entry["class"] for entry in good] == list(answers["predicted"][:3])
    assert [list(entry) for entry in given if "error" in entry] == [["path", "error"]] * 2
    assert given[1]["error"].startswith("damaged or unreadable")
    assert given[3]["error"] == "not a PNG, JPEG, BMP, TIFF, WEBP image"


def test_only_unreadable_files(exported: Exported, spoilt: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["predict", str(exported.folder), str(spoilt[3])]) == 1
    assert "not a PNG" in capsys.readouterr().out


def test_csv(exported: Exported, spoilt: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "answers.csv"
    given = predict_json([str(exported.folder), str(spoilt[0].parent), "--csv", str(target)], capsys, code=1)
    with target.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["path", "class", *COLUMNS, "error"]
    assert [row["path"] for row in rows] == [str(path) for path in spoilt]
    for row, entry in zip(rows, given, strict=True):
        assert row["error"] == entry.get("error", "")
        assert row["class"] == entry.get("class", "")
        expected = entry.get("probabilities", {})
        assert [row[column] for column in COLUMNS] == [repr(expected[n]) if expected else "" for n in CLASSES]


def test_folders_leave_masks_out(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported.data / "benign"
    given = [entry["path"] for entry in predict_json([str(exported.folder), str(folder)], capsys)]
    assert any(images.is_mask(path) for path in folder.iterdir())
    assert given == sorted(str(path) for path in folder.iterdir() if not images.is_mask(path))


def test_folders_and_files_keep_their_order(exported: Exported) -> None:
    mask = exported.data / "benign" / "benign (1)_mask.png"
    found = image_paths([exported.data / "normal", mask, exported.data / "benign"])
    of_normal = [path for path in found if path.parent.name == "normal"]
    assert found[: len(of_normal)] == of_normal
    # Whoever names a mask himself gets it.
    assert found[len(of_normal)] == mask
    assert not any(images.is_mask(path) for path in found[len(of_normal) + 1 :])


def spoil_model(folder: Path) -> None:
    """One bit of the model."""
    flip_a_bit(folder / "model.onnx")


def drop_model(folder: Path) -> None:
    """No model."""
    (folder / "model.onnx").unlink()


def drop_certificate(folder: Path) -> None:
    """No certificate."""
    (folder / "verification.json").unlink()


def break_certificate(folder: Path) -> None:
    """Half a certificate."""
    path = folder / "verification.json"
    replace(path, path.read_bytes()[:100])


def fail_certificate(folder: Path) -> None:
    """A certificate that says no."""
    path = folder / "verification.json"
    replace(path, json.dumps(json.loads(path.read_text()) | {"passed": False}).encode())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (spoil_model, "is not the file that was verified"),
        (drop_model, "holds no model.onnx"),
        (drop_certificate, "verification.json could not be read"),
        (break_certificate, "verification.json is not valid JSON"),
        (fail_certificate, "did not pass its verification"),
    ],
)
def test_an_export_that_is_not_certified_is_refused(
    damage: Callable[[Path], None],
    reason: str,
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = linked(exported.folder, tmp_path / "export")
    damage(folder)
    assert exit_code(["predict", str(folder), str(exported.data / "benign")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("busi-tune: ")
    assert reason in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{empty}", "{image}"], 1, "holds no model.onnx"),
        (["{missing}", "{image}"], 1, "holds no model.onnx"),
        (["{export}", "{missing}"], 1, "does not exist"),
        (["{export}", "{empty}"], 1, "holds no image"),
        (["{export}", "{image}", "--csv", "{empty}"], 1, "is a folder"),
        (["{export}", "{image}", "--csv", "{missing}/a.csv"], 1, "could not be written"),
        (["{export}"], 2, "Missing argument"),
        (["{export}", "{image}", "--batch-size", "0"], 2, "--batch-size"),
        (["{export}", "{image}", "--threads", "-1"], 2, "--threads"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    code: int,
    reason: str,
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {
        "empty": str(tmp_path),
        "missing": str(tmp_path / "missing"),
        "export": str(exported.folder),
        "image": str(exported.data / "benign" / "benign (1).png"),
    }
    assert exit_code(["predict", *(argument.format(**places) for argument in arguments)]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert reason in shown.err
    assert list(tmp_path.iterdir()) == []


PREDICT = """
import sys
from collections.abc import Callable
from busi_tune.cli import exit_code
code = exit_code(["predict", *sys.argv[1:], "--json"])
heavy = {"torch", "torchvision", "optuna", "pandas", "sklearn", "matplotlib", "onnx"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


def test_nothing_heavy_is_loaded(exported: Exported, answers: pd.DataFrame) -> None:
    image = str(exported.data / answers["path"][0])
    command = [sys.executable, "-c", PREDICT, str(exported.folder), image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (given,) = json.loads(done.stdout)
    assert given["class"] == answers["predicted"][0]
