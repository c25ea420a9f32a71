"""Phantoms that look like breast ultrasound, for trying the whole tool without real images.

An image consists of tissue layers and, except for `normal`, a dark lesion. The lesion of `benign` is a smooth oval.
That of `malignant` is irregular and spiculated, with a shadow. The image is then multiplied by Rayleigh-distributed
speckle (Wagner et al., "Statistics of speckle in ultrasound B-scans", 1983) and log-compressed. Phantoms teach nothing
about real lesions.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from busi_tune import files
from busi_tune.images import Pixels
from busi_tune.progress import Progress

Floats = NDArray[np.float64]
COUNTS = {"benign": 120, "malignant": 75, "normal": 60}
TWINS = 14
PLANTED = "planted.csv"
KINDS = ("resized", "jpeg", "contrast", "caliper", "label", "cropped", "mirrored")


@dataclass(frozen=True)
class Phantom:
    """One phantom: grey pixels (height, width), and the lesion's mask in the same shape (all False for normal)."""

    pixels: Pixels
    mask: NDArray[np.bool_]


def make_phantoms(folder: Path, progress: Progress, counts: dict[str, int] | None = None, seed: int = 0) -> None:
    """Write a data set in the layout of BUSI to `folder`: images, their masks, and planted.csv.

    planted.csv lists the near-duplicates, and the picture with two labels, that an audit should find. The same seed
    gives the same bytes.
    """
    wanted = counts or COUNTS
    total = sum(wanted.values())
    done = 0
    drawn: dict[str, Phantom] = {}
    for number, (label, count) in enumerate(sorted(wanted.items())):
        files.make_folder(folder / label)
        for index in range(1, count + 1):
            phantom = draw(label, np.random.default_rng((seed, number, index)))
            name = f"{label}/{label} ({index}).png"
            drawn[name] = phantom
            _save(folder / name, phantom.pixels)
            _save(folder / name.replace(".png", "_mask.png"), phantom.mask.astype(np.uint8) * 255)
            done += 1
            progress.step("drawing phantoms", done, total)
    progress.close("drawing phantoms")
    _plant(folder, drawn, wanted, seed)


def draw(label: str, generator: np.random.Generator) -> Phantom:
    """Draw one phantom of the class "benign", "malignant" or "normal", in a random size."""
    height, width = (int(n) for n in generator.integers(180, 300, size=2))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    echo = _tissue(y, x, generator)
    mask = np.zeros(echo.shape, dtype=bool)
    if label != "normal":
        mask, shade = _lesion(y, x, label == "malignant", generator)
        echo *= shade
    speckle = generator.rayleigh(1.0, echo.shape)
    speckle = 0.6 * gaussian_filter(speckle, (0.8, 1.4)) + 0.4 * gaussian_filter(speckle, (1.5, 3.0))
    level = np.log1p(60 * echo * speckle / speckle.mean())
    grey = np.clip(255 * level / np.log1p(110) * generator.uniform(0.85, 1.1), 0, 255)
    return Phantom(grey.astype(np.uint8), mask)


def _tissue(y: Floats, x: Floats, generator: np.random.Generator) -> Floats:
    """The echo strength of skin, fat, gland and muscle, with wavy borders and gradual changes of gain."""
    echo = np.full(y.shape, generator.uniform(0.25, 0.6))
    depth = 0.0
    for brightness in (
        1.0,
        generator.uniform(0.15, 0.4),
        generator.uniform(0.5, 0.9),
        generator.uniform(0.1, 0.35),
    ):
        phase, waves, swing = (
            generator.uniform(0, 6.3),
            generator.uniform(2, 12),
            generator.uniform(0.005, 0.04),
        )
        border = depth + swing * np.sin(waves * x + phase) + generator.uniform(-0.15, 0.15) * (x - 0.5)
        echo = np.where(y >= border, brightness, echo)
        depth += generator.uniform(0.03, 0.07) if brightness == 1.0 else generator.uniform(0.12, 0.35)
    patches = gaussian_filter(generator.standard_normal(y.shape), max(y.shape) / generator.uniform(8, 25))
    patches /= patches.std()
    return np.asarray(echo * np.exp(0.45 * patches) * np.exp(-generator.uniform(0.3, 1.5) * y))


def _lesion(y: Floats, x: Floats, malignant: bool, generator: np.random.Generator) -> tuple[NDArray[np.bool_], Floats]:
    """The mask of a lesion, and the factor that changes the echo inside and below the lesion."""
    middle_y = generator.uniform(0.3, 0.6) * y.max()
    middle_x = generator.uniform(0.3, 0.7) * x.max()
    size = generator.uniform(0.09, 0.18)
    flat = generator.uniform(0.9, 1.3) if malignant else generator.uniform(0.5, 0.75)
    down, across = (y - middle_y) / flat, x - middle_x
    radius, angle = np.hypot(down, across), np.arctan2(down, across)
    edge = np.full(y.shape, size)
    if malignant:
        for waves, swing in ((3, 0.14), (7, 0.12), (13, 0.16), (19, 0.12)):
            edge *= 1 + generator.uniform(0.5, 1) * swing * np.sin(waves * angle + generator.uniform(0, 6.3))
    mask = radius < edge
    below = (np.abs(across) < 0.8 * size) & (y > middle_y)
    behind = generator.uniform(0.25, 0.5) if malignant else generator.uniform(1.3, 1.8)
    soft = max(y.shape) * 0.006
    shade = gaussian_filter(np.where(below, behind, 1.0), 3 * soft)
    inside = generator.uniform(0.04, 0.12)
    return mask, gaussian_filter(np.where(mask, inside, shade), soft * (1.5 if malignant else 0.6))


def _plant(folder: Path, drawn: dict[str, Phantom], counts: dict[str, int], seed: int) -> None:
    """Add near-duplicates in the classes of their originals, one copy with another label, and planted.csv."""
    generator = np.random.default_rng((seed, len(counts)))
    names = sorted(drawn)
    rows: list[dict[str, object]] = []
    for index, chosen in enumerate(generator.choice(len(names), size=min(TWINS, len(names)), replace=False)):
        name = names[chosen]
        label = name.partition("/")[0]
        counts = {**counts, label: counts[label] + 1}
        kind = KINDS[index % len(KINDS)]
        suffix = "jpg" if kind == "jpeg" else "png"
        twin = f"{label}/{label} ({counts[label]})"
        phantom = altered(drawn[name], kind, generator)
        _save(folder / f"{twin}.{suffix}", phantom.pixels)
        _save(folder / f"{twin}_mask.png", phantom.mask.astype(np.uint8) * 255)
        rows.append({"path": f"{twin}.{suffix}", "of": name, "kind": kind})
    first, second = sorted(counts)[:2]
    source = next(name for name in names if name.startswith(f"{first}/"))
    conflict = f"{second}/{second} ({counts[second] + 1}).png"
    files.write_bytes(folder / conflict, (folder / source).read_bytes())
    rows.append({"path": conflict, "of": source, "kind": "conflict"})
    files.write_csv(folder / PLANTED, rows)


def altered(phantom: Phantom, kind: str, generator: np.random.Generator) -> Phantom:
    """A near-duplicate of the given `kind`, one of `KINDS`. "jpeg" changes no pixels here; saving does."""
    pixels, mask = phantom.pixels, phantom.mask
    height, width = pixels.shape
    if kind == "resized":
        factor = generator.uniform(0.5, 2)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        smaller = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        return Phantom(np.asarray(smaller), np.asarray(Image.fromarray(mask).resize(size)))
    if kind == "cropped":
        left, right, top, bottom = generator.uniform(0, 0.05, size=4)
        kept = np.s_[
            round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)
        ]
        return Phantom(pixels[kept], mask[kept])
    if kind == "mirrored":
        return Phantom(pixels[:, ::-1], mask[:, ::-1])
    if kind == "contrast":
        middle = pixels.mean()
        changed = (pixels - middle) * generator.uniform(0.8, 1.2) + middle * generator.uniform(0.8, 1.2)
        return Phantom(np.asarray(np.clip(changed, 0, 255), dtype=np.uint8), mask)
    marked = Image.fromarray(pixels)
    draw_on = ImageDraw.Draw(marked)
    row, column = (int(generator.integers(20, side - 40)) for side in (height, width))
    if kind == "caliper":
        draw_on.line((column, row - 5, column, row + 5), fill=255)
        draw_on.line((column - 5, row, column + 5, row), fill=255)
    if kind == "label":
        draw_on.text((column, row), "RT 3", fill=255, font=ImageFont.load_default_imagefont())
    return Phantom(np.asarray(marked), mask)


def _save(path: Path, pixels: Pixels) -> None:
    data = io.BytesIO()
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(data, "JPEG", quality=50)
    else:
        Image.fromarray(pixels).save(data, "PNG")
    files.write_bytes(path, data.getvalue())
