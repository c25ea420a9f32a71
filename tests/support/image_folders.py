"""Folders of test pictures, and the path of the real images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BUSI = Path(__file__).resolve().parents[3] / "shared" / "busi-256"
# The repository does not contain the images.
NO_REAL_IMAGES = f"the real images are not in {BUSI}"
needs_busi = pytest.mark.skipif(not BUSI.exists(), reason=NO_REAL_IMAGES)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of an image file in one of Pillow's formats."""
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def picture(seed: int, side: int = 24) -> Image.Image:
    """A noise picture that depends on the seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def folder_of(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        save(picture(seed), root / name)
    return root
