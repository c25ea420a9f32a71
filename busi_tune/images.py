"""Image files decoded and resized to uint8 arrays, in the one way that training and prediction share."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from busi_tune import files, names
from busi_tune.errors import DataError, ImageError

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
# Formats that people take for images, told apart by (offset, first bytes), so that a refusal can name them.
SIGNATURES = (
    ("a GIF file", 0, b"GIF8"),
    ("a DICOM file", 128, b"DICM"),
    ("a PDF file", 0, b"%PDF"),
    ("a JPEG 2000 file", 0, b"\x00\x00\x00\x0cjP  "),
    ("a JPEG XL file", 0, b"\xff\x0a"),
    ("an AVIF file", 4, b"ftypavif"),
    ("a HEIC file", 4, b"ftypheic"),
    ("a Photoshop file", 0, b"8BPS"),
    ("a numpy file", 0, b"\x93NUMPY"),
    ("a gzip file", 0, b"\x1f\x8b"),
    ("a zip file", 0, b"PK\x03\x04"),
)
MOST_PIXELS = 50_000_000
# A JPEG's longest side.
MOST_SIDE = 65_535
TO_8_BITS = np.rint(np.arange(2**16) / 257).astype(np.uint8)
# Any change that alters a single output pixel gets a new version: caches and exports carry it.
VERSION = 1
DESCRIPTION = "RGB; Pillow bilinear (triangle filter scaled by the reduction), width first, then height"


def is_mask(path: Path) -> bool:
    """Whether the name is that of a mask: `benign (1)_mask_1.png`, or `x_tumor.png` beside an image `x`."""
    if names.is_mask_name(path.stem):
        return True
    image = names.masked_image(path.stem)
    return image is not None and any(path.with_name(image + suffix).exists() for suffix in (path.suffix, *SUFFIXES))


def walk(folder: Path) -> Iterator[Path]:
    """The files with an image's suffix in `folder` and below, sorted, hidden and system ones left out.

    Links are followed, to each folder once: where several lead to one, by the first in the order of names.

    Raises:
        DataError: a folder cannot be listed, or a link leads back to a folder that it is in.
    """
    places: dict[Path, Path] = {}
    seen: set[Path] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} could not be listed: {error.strerror}; mend its permissions.")

    for name_of_parent, folders, found in os.walk(folder, onerror=refuse, followlinks=True):
        parent = Path(name_of_parent)
        place = places[parent] = parent.resolve()
        above = next((other for other in parent.parents if places.get(other) == place), None)
        if above is not None:
            raise DataError(f"{parent} is {above} again, by way of a link; remove the link.")
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and not files.is_system(name))
        for name in sorted(found):
            path = parent / name
            # A pipe or a device has no end; a broken link is named when it is read.
            regular = path.is_file() or not path.exists()
            if regular and not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


@dataclass(frozen=True)
class ImageInfo:
    """The header of an image file: its format, Pillow's mode, and its size in pixels."""

    form: str
    mode: str
    width: int
    height: int


def inspect(data: bytes) -> tuple[ImageInfo, Image.Image]:
    """The header of a file whose content is `data`, and the image that `decode` makes of it.

    Raises:
        ImageError: as `decode`.
    """
    with _opened(io.BytesIO(data)) as image:
        info = ImageInfo(str(image.format), image.mode, image.width, image.height)
        image.load()
        return info, to_rgb(image)


def read(path: Path, size: int) -> Pixels:
    """Decode `path` and resize it to (size, size, 3), uint8 RGB.

    Raises:
        ImageError: with the bare reason.
    """
    return resized(decode(path), size)


def picture(path: Path) -> Pixels:
    """Decode `path` to its pixels as they are: (height, width, 3), uint8 RGB.

    Raises:
        ImageError: with the bare reason.
    """
    return np.asarray(decode(path))


def resize(pixels: Pixels, size: int) -> Pixels:
    """A picture (height, width, 3) as `read` would resize it."""
    return resized(Image.fromarray(pixels), size)


def resized(image: Image.Image, size: int) -> Pixels:
    """An RGB image as (size, size, 3), uint8.

    The resize is Pillow's bilinear one, which is also torchvision's `Resize` of an image. The two axes are
    resized one after the other, because Pillow's own order of them depends on its version.

    Raises:
        ImageError: the image is too narrow.
    """
    if size * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels are too narrow to be resized to {size} x {size}")
    wide = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR))


def decode(path: Path) -> Image.Image:
    """Decode `path` to an 8-bit RGB image of its own size.

    Raises:
        ImageError: empty, truncated, not an image, of another format, or of more than 50 million pixels.
    """
    with _opened(path) as image:
        image.load()
        return to_rgb(image)


def preview(image: Image.Image, side: int) -> bytes:
    """A JPEG of an RGB image for a page, at most `side` pixels wide and high."""
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    smaller.save(data, "JPEG", quality=80)
    return data.getvalue()


@contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """An image whose header has been read; an error here or inside the block becomes an ImageError."""
    try:
        # Pillow warns of large images below our limit, and of odd but harmless metadata.
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS:,} that are read"
                )
            if max(image.width, image.height) > MOST_SIDE:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are longer than the {MOST_SIDE:,} that are read"
                )
            yield image
    except UnidentifiedImageError:
        raise ImageError(_foreign(source)) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than the {MOST_PIXELS:,} pixels that are read") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ImageError(str(error.strerror).lower()) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"damaged or unreadable ({str(error).strip() or type(error).__name__})") from error


def _foreign(source: Path | io.BytesIO) -> str:
    """The kind of a file that no decoder of ours knows."""
    if isinstance(source, io.BytesIO):
        start = source.getvalue()[:132]
    else:
        with source.open("rb") as file:
            start = file.read(132)
    known = next((f"{name}, " for name, place, mark in SIGNATURES if start[place:].startswith(mark)), "")
    return f"{known}not a {', '.join(FORMATS)} image" if start else "empty"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB; 16-bit grey is scaled, not clipped.

    Raises:
        ImageError: 32-bit pixels, which have no agreed range.
    """
    if image.mode in ("I", "F"):
        raise ImageError("32-bit pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray(TO_8_BITS[np.asarray(image, dtype=np.uint16)]).convert("RGB")
    return image.convert("RGB")
