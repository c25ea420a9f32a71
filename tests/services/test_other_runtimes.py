"""Exported models in other runtimes, each in a separate environment: the predictions equal this ONNX Runtime's.

docs/reference/runtimes.md has the whole table; these are the runtimes that install quickly.
"""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import runtimes
from busi_tune import pipeline
from busi_tune.export_options import ExportOptions
from busi_tune.progress import Silent
from exported import Exported

pytest_plugins = ["exported"]
pytestmark = pytest.mark.slow
SCRIPT = Path(runtimes.__file__)
FLOATS = {"model.onnx", "model-32.onnx", "network.onnx"}


@dataclass(frozen=True)
class Row:
    """A row of the table. If there is no difference, the runtime cannot run the file."""

    difference: float | None
    changed: str
    resized: str


def table(printed: str) -> dict[str, Row]:
    """The rows of one runtime, by file."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    return {
        name: Row(None if answer.startswith("no:") else float(answer), changed, resized)
        for _, name, answer, changed, resized in rows
    }


@pytest.fixture(scope="module")
def export(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runtimes") / "export"
    options = ExportOptions(network_only="dynamic")
    pipeline.export(exported.run, place, exported.data, Silent(), options=options)
    return place


@pytest.fixture(scope="module")
def cases(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cases")
    runtimes.prepare(export, place, None)
    return place


def called(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def python_with(place: Path, *packages: str) -> Path:
    """A Python environment with only these packages."""
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    called(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *packages)
    return python


def same(rows: dict[str, Row], files: set[str], most: float) -> None:
    for name in files:
        row = rows[name]
        assert row.difference is not None, name
        assert row.difference <= most, name
        assert row.changed.startswith("0 of "), name
        assert not row.resized or row.resized.startswith("0 of "), name


def test_the_oldest_onnx_runtime(export: Path, cases: Path, tmp_path: Path) -> None:
    python = python_with(tmp_path, "onnxruntime==1.15.0", "numpy<2")
    rows = table(called(python, SCRIPT, export, "--with", cases, "--runtime", "onnxruntime"))
    same(rows, FLOATS, 1e-5)


def test_runtimes_with_python_packages(export: Path, cases: Path, tmp_path: Path) -> None:
    packages = ("openvino==2026.4.1", "opencv-python-headless==5.0.0.93", "tract==0.23.9")
    python = python_with(tmp_path, *packages)
    for name in ("openvino-f32", "opencv", "tract"):
        rows = table(called(python, SCRIPT, export, "--with", cases, "--runtime", name))
        # tract needs shapes that do not depend on the picture's size.
        same(rows, FLOATS - {"model.onnx"} if name == "tract" else FLOATS, 1e-4)


def test_tools_that_simplify(export: Path, cases: Path, tmp_path: Path) -> None:
    python = python_with(tmp_path, "onnxslim==0.1.98", "onnxsim==0.8.1", "onnxruntime")
    for name in ("onnxslim", "onnxsim"):
        rows = table(called(python, SCRIPT, export, "--with", cases, "--runtime", name))
        same(rows, FLOATS, 1e-5)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules folder with ONNX Runtime for node and for browsers."""
    place = tmp_path_factory.mktemp("modules")
    (place / "package.json").write_text("{}")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed; install Node.js 20.9 or newer")
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    called(npm, "install", "--prefix", place, *quiet, "onnxruntime-node", "onnxruntime-web")
    return place / "node_modules"


def test_node(export: Path, cases: Path, modules: Path) -> None:
    same(table(called("node", SCRIPT.with_suffix(".mjs"), export, cases, modules)), FLOATS, 1e-5)


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_browser(provider: str, export: Path, cases: Path, modules: Path) -> None:
    # WebGPU in software is slow.
    file, most = ("*.onnx", 999) if provider == "wasm" else ("model.onnx", 1)
    rows = table("\n".join(runtimes.web_rows(provider, export, cases, modules, file=file, most=most)))
    same(rows, FLOATS & rows.keys(), 1e-4)
    assert "model.onnx" in rows
