"""Pytest fixtures: one run on coloured phantoms and its export, made once a session. PYTEST_DONT_REWRITE"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune import images, pipeline
from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.results import VerificationFile

MODELS = {"model.onnx", "model-32.onnx"}
EXPORT_FILES = MODELS | {"README.md", "labels.json", "predictions.csv", "verification.json"}


@dataclass(frozen=True)
class Exported:
    """The folders of the data, the finished run and its export, and the certificate; tests must not change them."""

    data: Path
    run: Path
    folder: Path
    certificate: VerificationFile


@pytest.fixture(scope="session")
def coloured(phantoms: Path, session_folder: Path) -> Path:
    """Phantoms, each with its own tint, because on grey images BGR and RGB are the same."""
    folder = session_folder / "coloured/data"
    shutil.copytree(phantoms, folder)
    generator = np.random.default_rng(0)
    for path in images.walk(folder):
        if not images.is_mask(path):
            tint = generator.uniform(0.6, 1.0, size=3)
            pixels = np.asarray(images.decode(path)) * tint
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def exported(coloured: Path, tiny: Config, session_folder: Path) -> Exported:
    """A run of `tiny`, trained and exported."""
    place = session_folder / "exported"
    place.mkdir()
    pipeline.baseline(coloured, place / "run", tiny, Silent())
    certificate = pipeline.export(place / "run", place / "export", coloured, Silent())
    return Exported(coloured, place / "run", place / "export", certificate)


def linked(source: Path, target: Path) -> Path:
    """Copies a folder with hard links. Replace the files of the copy; never write into them."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def replace(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by a new file with `data`."""
    path.unlink()
    path.write_bytes(data)


def flip_a_bit(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))


def names(folder: Path) -> set[str]:
    """The names of a folder's entries."""
    return {entry.name for entry in folder.iterdir()}
