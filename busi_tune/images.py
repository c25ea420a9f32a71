"""One file in, one uint8 array out: the only decode-and-resize there is, for training and prediction alike."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from busi_tune.errors import DataError, ImageError

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MASK = re.compile(r".*_mask(_\d+)?", re.IGNORECASE)
MOST_PIXELS = 50_000_000
TO_8_BITS = np.rint(np.arange(2**16) / 257).astype(np.uint8)
# Any change that alters a single output pixel gets a new version: caches and exports carry it.
VERSION = 1
DESCRIPTION = "RGB; Pillow bilinear (triangle filter scaled by the reduction), width first, then height"


def is_mask(path: Path) -> bool:
    """Whether the name is that of a BUSI mask: `benign (1)_mask.png`, `benign (1)_mask_1.png`."""
    return MASK.fullmatch(path.stem) is not None


def walk(folder: Path) -> Iterator[Path]:
    """The files with an image's suffix in `folder` and below, sorted, hidden and system ones left out.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} could not be listed: {error.strerror}; mend its permissions.")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            path = Path(parent, name)
            # A pipe or a device has no end; a broken link is named when it is read.
            regular = path.is_file() or path.is_symlink()
            if regular and not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def read(path: Path, size: int) -> Pixels:
    """Decode `path` and resize it to (size, size, 3), uint8 RGB.

    The resize is Pillow's bilinear one, which is also torchvision's `Resize` of an image. The two axes are
    resized one after the other, because Pillow's own order of them depends on its version.

    Raises:
        ImageError: with the bare reason.
    """
    image = decode(path)
    if size * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels are too narrow to be resized to {size} x {size}")
    wide = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR))


def decode(path: Path) -> Image.Image:
    """Decode `path` to an 8-bit RGB image of its own size.

    Raises:
        ImageError: empty, truncated, not an image, of another format, or of more than 50 million pixels.
    """
    try:
        # Pillow warns of large images below our limit, and of odd but harmless metadata.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS:,} that are read"
                )
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError:
        reason = "empty" if path.stat().st_size == 0 else f"not a {', '.join(FORMATS)} image"
        raise ImageError(reason) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than the {MOST_PIXELS:,} pixels that are read") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ImageError(str(error.strerror).lower()) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"damaged or unreadable ({str(error).strip() or type(error).__name__})") from error


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
