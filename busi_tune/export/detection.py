"""Warning rates of the input guard on test images and on pictures that the network should not see."""

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.datasets import load_sample_images

from busi_tune.export.guard import Floats, Guard, pixel_scores
from busi_tune.images import Pixels

WINDOWS = 40
# The maximum number of altered test images of each kind.
MOST = 200
UNCHANGED = "unchanged"


def detection_rates(
    scores_of: Callable[[Pixels], Floats], guard: Guard, test_pixels: Pixels, unchanged: Floats
) -> dict[str, float]:
    """The share of images with a warning, for each kind: test images, altered test images and unrelated pictures.

    The test images are (n, size, size, 3), and `unchanged` has the guard's scores (n, k) of them. `scores_of` runs the
    exported model and returns its output `guard`. The network is slow, so the model runs only on images for which the
    pixel scores raise no warning.
    """
    rates = {UNCHANGED: float(guard.warned(unchanged).any(axis=1).mean())}
    kinds = strange_images(test_pixels[:: -(-len(test_pixels) // MOST)])
    for kind, pixels in (given for given in kinds if given[0] != UNCHANGED):
        left = pixels[~guard.warned(pixel_scores(guard, pixels)).any(axis=1)]
        silent = (~guard.warned(scores_of(left)).any(axis=1)).sum() if len(left) else 0
        rates[kind] = 1 - float(silent) / len(pixels)
    return rates


def strange_images(pixels: Pixels) -> Iterator[tuple[str, Pixels]]:
    """The images (n, size, size, 3) unchanged, altered in several ways, and pictures of other things, by name."""
    generator = np.random.default_rng(0)
    yield UNCHANGED, pixels
    yield "inverted", 255 - pixels
    yield "rotated by 90 degrees", np.concatenate([np.rot90(pixels, turns, axes=(1, 2)) for turns in (1, 3)])
    yield "upside down", pixels[:, ::-1]
    yield "gamma 0.5", _with_gamma(pixels, 0.5)
    yield "gamma 2", _with_gamma(pixels, 2)
    yield "coloured", _with_doppler(pixels)
    yield "blank", np.stack([np.full(pixels.shape[1:], level, dtype=np.uint8) for level in range(0, 256, 5)])
    yield "noise", _grey(generator.integers(0, 256, size=pixels.shape[:3], dtype=np.uint8))
    photographs = _photographs(pixels.shape[1], generator)
    yield "photographs", photographs
    yield "grey photographs", _grey(np.rint(photographs.mean(axis=-1)).astype(np.uint8))


def _grey(levels: Pixels) -> Pixels:
    return np.repeat(levels[..., None], 3, axis=-1)


def _with_gamma(pixels: Pixels, gamma: float) -> Pixels:
    """Change the brightness like another gain of the scanner: brighter for `gamma` below 1, darker above."""
    levels = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return levels[pixels]


def _with_doppler(pixels: Pixels) -> Pixels:
    """Colour a box of a third of the height and width red or blue, like Doppler images of blood flow."""
    size = pixels.shape[1]
    box = slice(size // 3, 2 * size // 3)
    coloured = pixels.copy()
    coloured[:, box, box, 1] = 0
    coloured[0::2, box, box, 0] = 0
    coloured[1::2, box, box, 2] = 0
    return coloured


def _photographs(size: int, generator: np.random.Generator) -> Pixels:
    """Windows of scikit-learn's two photographs (a temple and a flower), reduced or enlarged by a whole number."""
    scenes = load_sample_images().images
    windows = []
    for number in range(WINDOWS):
        scene = scenes[number % len(scenes)]
        enlargement = -(-size // min(scene.shape[:2]))
        scene = scene.repeat(enlargement, axis=0).repeat(enlargement, axis=1)
        reduction = int(generator.integers(1, min(scene.shape[:2]) // size + 1))
        side = size * reduction
        top, left = (int(generator.integers(0, length - side + 1)) for length in scene.shape[:2])
        tiles = scene[top : top + side, left : left + side].reshape(size, reduction, size, reduction, 3)
        windows.append(np.rint(tiles.mean(axis=(1, 3))).astype(np.uint8))
    return np.stack(windows)
