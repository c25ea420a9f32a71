"""Prediction and verification on systems without the modules and functions that only Unix has.

Windows is not available here. A fresh interpreter and its child process run without the parts that Windows lacks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune.inference import open_export, predict_files
from busi_tune.inference.certificate import UNSIGNED
from small_export import CLASSES, small_model, write_export

MISSING = """
import os, sys

sys.modules |= dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"])
for name in ("fork", "posix_fallocate", "O_DIRECTORY", "getuid", "geteuid", "register_at_fork"):
    delattr(os, name)
plain_open = os.open


def open_file(path, *arguments, **options):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return plain_open(path, *arguments, **options)


os.open = open_file
with open(os.environ["STARTED"], "a") as file:
    print(*sys.orig_argv, file=file)
"""


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export", {"model.onnx": small_model()})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)).save(path)
    return path


def run(arguments: list[str], tmp_path: Path) -> tuple[str, list[str]]:
    """The output of a command without the Unix modules, and the processes that it started."""
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    started = tmp_path / "started"
    started.unlink(missing_ok=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "busi_tune", *arguments],
        env=os.environ | {"PYTHONPATH": path, "STARTED": str(started)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, started.read_text().splitlines()


@pytest.mark.parametrize("options", [[], ["--allow-unverified"]])
def test_predict(options: list[str], export: Path, image: Path, tmp_path: Path) -> None:
    (expected,) = predict_files(open_export(export, optimisation="none"), [image])
    if options:
        (export / "verification.json").unlink()
    answers = tmp_path / "answers.csv"
    out, started = run(["predict", str(export), str(image), "--jsonl", "--csv", str(answers), *options], tmp_path)
    assert json.loads(out) == expected.to_entry(CLASSES)
    assert answers.read_text().splitlines()[1].startswith(f"{image},{expected.predicted},")
    assert ["busi_tune.inference.probe" in line for line in started] == ([False, True] if options else [False])


def test_verify(export: Path, tmp_path: Path) -> None:
    out, _ = run(["verify", str(export)], tmp_path)
    assert out == f"{export}: the 3 certified files are unchanged.\n{UNSIGNED}\n"
