"""A plain installation without the training packages: it predicts, and other commands name the packages they need."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune.cli.extras import TRAINING
from busi_tune.inference.certificate import UNSIGNED
from exported import Exported, flip_a_bit, linked
from small_export import CLASSES, small_model, write_export

pytest_plugins = ["exported"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `busi-tune` in a new environment, installed with pip and without extras."""
    place = tmp_path_factory.mktemp("installed")
    source, environment = place / "source", place / "environment"
    source.mkdir()
    # A copy, because a build writes files into the source folder.
    shutil.copytree(ROOT / "busi_tune", source / "busi_tune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    command = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install the package here: {done.stderr[-300:]}")
    return environment / "bin" / "busi-tune"


def run(command: Path, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the installed command without this checkout on the import path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(command), *arguments], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


def test_what_prediction_needs_is_installed_and_no_more(installed: Path) -> None:
    code = (
        "import sys; from importlib.util import find_spec; print(*(name for name in sys.argv[1:] if find_spec(name)))"
    )
    plain = ["click", "filelock", "msgspec", "numpy", "onnxruntime", "PIL", "rich"]
    command = [str(installed.with_name("python")), "-c", code, *plain, *sorted(TRAINING)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == plain


@pytest.mark.parametrize("options", [[], ["--allow-unverified"]])
def test_predict_works(installed: Path, options: list[str], tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", {"model.onnx": small_model()})
    if options:
        (export / "verification.json").unlink()
    Image.fromarray(np.full((30, 40), 99, np.uint8)).save(tmp_path / "image.png")
    done = run(installed, ["predict", str(export), "image.png", "--jsonl", *options], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["predicted"] in CLASSES


@pytest.mark.parametrize(
    "arguments",
    [
        ["baseline", "--data", "."],
        ["search", "--data", ".", "--out", "s"],
        ["export", ".", "--out", "e"],
        ["verify", ".", "--data", "."],
        ["run", "--demo"],
        ["data", "audit", "--data", "."],
        ["data", "split", "--data", ".", "--out", "split.csv"],
        ["data", "demo", "--out", "d"],
    ],
    ids=" ".join,
)
def test_another_command_says_what_to_install(installed: Path, arguments: list[str], tmp_path: Path) -> None:
    done = run(installed, arguments, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("busi-tune: This command needs ")
    assert line.endswith(", which is not installed; pip install '/path/to/busi-tune[train]' installs all it takes.")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_says_what_an_export_needs(installed: Path, tmp_path: Path) -> None:
    done = run(installed, ["evaluate", ".", "--data", ".", "--out", "e"], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(", which is not installed; pip install '/path/to/busi-tune[evaluate]' installs all it takes.")
    assert list(tmp_path.iterdir()) == []


def test_verify_without_data_works(installed: Path, exported: Exported, tmp_path: Path) -> None:
    done = run(installed, ["verify", str(exported.folder)], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{exported.folder}: the 6 certified files are unchanged.\n{UNSIGNED}\n"
    folder = linked(exported.folder, tmp_path / "export")
    flip_a_bit(folder / "model.onnx")
    done = run(installed, ["verify", str(folder)], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("model.onnx is not the file that was certified (it has changed); export it again.\n")


def test_help_works(installed: Path, tmp_path: Path) -> None:
    for command in ("", "baseline", "predict", "verify"):
        done = run(installed, [*command.split(), "--help"], tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: busi-tune")
