"""Similarity of two thumbnails if one is a crop of the other, by up to 5 % at each side."""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

Floats = NDArray[np.float32]

SIDE = 64
LOW = 16
COARSE = (0.0, 0.05)
FINE = (0.0, 0.0125, 0.025, 0.0375, 0.05)


def _window(before: float, after: float) -> Floats:
    """A (64, 64) matrix that crops 64 samples by the shares `before` and `after`, and interpolates the rest to 64."""
    place = np.clip(SIDE * (before + (1 - before - after) * (np.arange(SIDE) + 0.5) / SIDE) - 0.5, 0, SIDE - 1)
    left = np.minimum(place.astype(np.int64), SIDE - 2)
    share = place - left
    matrix = np.zeros((SIDE, SIDE), dtype=np.float32)
    matrix[np.arange(SIDE), left] = 1 - share
    matrix[np.arange(SIDE), left + 1] += share
    return matrix


FREQUENCIES = dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:LOW]
COARSE_WINDOWS = list(product(COARSE, repeat=2))
COARSE_LOW = np.stack([FREQUENCIES @ _window(*cut) for cut in COARSE_WINDOWS])
FINE_CUTS = list(product(FINE, repeat=2))
FINE_WINDOWS = np.stack([_window(*cut) for cut in FINE_CUTS])
FINE_DOWN = FINE_WINDOWS.reshape(-1, SIDE)
FINE_ACROSS = np.ascontiguousarray(FINE_DOWN.T)


def low_frequencies(images: Floats) -> Floats:
    """The 16 x 16 lowest frequencies of images (..., 64, 64), from an orthonormal cosine transform: (..., 16, 16)."""
    return np.asarray(FREQUENCIES @ images @ FREQUENCIES.T)


def unit_low(low: Floats) -> Floats:
    """Low frequencies (..., 16, 16) without the mean, as unit vectors (..., 256)."""
    flat = low.reshape(*low.shape[:-2], LOW * LOW).copy()
    flat[..., 0] = 0
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6))


def coarse_crops(image: Floats) -> Floats:
    """The low frequencies of 16 crops of a (64, 64) image, as unit vectors: (16, 256)."""
    rows = COARSE_LOW @ image
    crops = rows[:, None] @ COARSE_LOW.swapaxes(1, 2)[None]
    return unit_low(crops.reshape(-1, LOW, LOW))


def aligned(image: Floats, other: Floats, crop: int) -> float:
    """The largest cosine of `other` with a crop of `image`.

    The search starts at the coarse crop number `crop`, and refines the crop first in width, then in height. A second
    round adds at most 0.002 (measured on 413 pairs of BUSI), and nothing for most pairs.
    """
    down, across = (FINE_CUTS.index(COARSE_WINDOWS[side]) for side in divmod(crop, len(COARSE_WINDOWS)))
    narrow = (FINE_WINDOWS[down] @ image) @ FINE_ACROSS
    across, _ = _nearest(narrow.reshape(SIDE, -1, SIDE).swapaxes(0, 1), other)
    low = FINE_DOWN @ (image @ FINE_WINDOWS[across].T)
    return _nearest(low.reshape(-1, SIDE, SIDE), other)[1]


def _nearest(crops: Floats, other: Floats) -> tuple[int, float]:
    """The number of the crop with the largest cosine to the centred unit image `other`, and that cosine."""
    flat = crops.reshape(len(crops), -1)
    variance = np.einsum("ij,ij->i", flat, flat) - flat.sum(axis=1) ** 2 / flat.shape[1]
    likeness = flat @ other.reshape(-1) / np.sqrt(np.maximum(variance, 1e-12))
    return int(likeness.argmax()), float(likeness.max())
