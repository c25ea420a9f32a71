"""Decoding and resizing of image files to uint8 arrays. Training and prediction share this code."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from busi_tune import decoding, files, names
from busi_tune.decoding import Note
from busi_tune.errors import DataError, ImageError

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"})
DICOM, TO_CONVERT_DICOM = "a DICOM file", "DCMTK's `dcm2img --write-png IN.dcm OUT.png`"
# Formats that are often mistaken for readable images: name, offset and bytes. An error names the format it finds.
SIGNATURES = (
    ("a GIF file", 0, b"GIF8"),
    (DICOM, 128, b"DICM"),
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
OWN_SIGNATURES = (
    ("a PNG", 0, b"\x89PNG"),
    ("a WebP", 8, b"WEBP"),
    # JPEG and TIFF have variants that Pillow does not recognise.
    ("a JPEG", 0, b"\xff\xd8\xff"),
    ("a TIFF", 0, b"II*\0"),
    ("a TIFF", 0, b"MM\0*"),
    ("a TIFF", 0, b"II+\0"),
    ("a TIFF", 0, b"MM\0+"),
)
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# The suffixes of other picture, volume and video formats.
OTHER_SUFFIXES = DICOM_SUFFIXES | {
    ".gif",
    ".jp2",
    ".j2k",
    ".jpx",
    ".jxl",
    ".avif",
    ".heic",
    ".heif",
    ".pdf",
    ".psd",
    ".svg",
    ".eps",
    ".ico",
    ".tga",
    ".pgm",
    ".ppm",
    ".pnm",
    ".exr",
    ".dng",
    ".raw",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".npy",
    ".npz",
    ".mat",
    ".mp4",
    ".avi",
    ".mov",
    ".wmv",
    ".mkv",
}
MOST_PIXELS = 50_000_000
# The longest side of a JPEG.
MOST_SIDE = 65_535
# The version of the resize. Any change that alters an output pixel needs a new version. Exports contain the resize and
# record its version.
VERSION = 1
# The version of the decoding, by the same rule. The cache of decoded images depends on both versions. All versions
# decode images of 8 bits without transparency and orientation in the same way.
DECODING = 2
DESCRIPTION = "RGB; Pillow bilinear (triangle filter scaled by the reduction), width first, then height"


def is_mask(path: Path) -> bool:
    """Whether the name is that of a mask: `benign (1)_mask_1.png`, or `x_tumor.png` in a folder with an image `x`."""
    if names.is_mask_name(path.stem):
        return True
    image = names.masked_image(path.stem)
    return image is not None and any(path.with_name(image + suffix).exists() for suffix in (path.suffix, *SUFFIXES))


def is_mask_in(folder: Path, path: Path) -> bool:
    """Whether a file in `folder` is a mask by its name, or by the name of a subfolder of `folder` that holds it."""
    return is_mask(path) or any(map(names.is_mask_folder, path.relative_to(folder).parts[:-1]))


def holds_no_data(name: str) -> bool:
    """Whether a folder of this name is hidden, private, or left by an operating system."""
    return name.startswith((".", "__")) or files.is_system(name)


def walk(folder: Path, *, others: bool = False) -> Iterator[Path]:
    """The files with an image suffix in `folder` and its subfolders, sorted, without hidden and system files.

    With `others`, the files with another suffix or none instead.

    Links to folders are followed. A folder that can be reached in several ways is visited once, by the first name.

    Raises:
        DataError: a folder cannot be listed, or a link leads to a folder that contains the link.
    """
    places: dict[Path, Path] = {}
    seen: set[Path] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} could not be listed: {error.strerror}; change its permissions.")

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
        folders[:] = sorted(name for name in folders if not holds_no_data(name))
        for name in sorted(found):
            path = parent / name
            # Pipes and devices have no end, so they are skipped. A broken link gives an error when it is read.
            regular = path.is_file() or not path.exists()
            hidden = name.startswith(".") or files.is_system(name)
            if regular and not hidden and (path.suffix.lower() in SUFFIXES) != others:
                yield path


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or its first bytes."""
    try:
        return path.suffix.lower() in DICOM_SUFFIXES or _start(path)[128:] == b"DICM"
    except OSError:
        return False


def is_foreign(path: Path) -> bool:
    """Whether a file without an image suffix may be a picture, by its suffix, a missing suffix, or its first bytes."""
    if not path.suffix or path.suffix.lower() in OTHER_SUFFIXES:
        return True
    try:
        start = _start(path)
    except OSError:
        return False
    return any(start[place:].startswith(mark) for _, place, mark in (*SIGNATURES, *OWN_SIGNATURES))


@dataclass(frozen=True)
class ImageInfo:
    """An image file: its format, its mode in Pillow, its decoded size in pixels, and the changes made by decoding."""

    form: str
    mode: str
    width: int
    height: int
    notes: tuple[Note, ...] = ()


def inspect(source: Path | bytes) -> tuple[ImageInfo, Image.Image]:
    """Decode an image file, given as its path or its content.

    Returns its facts, and the image as 8-bit RGB without a resize.

    Raises:
        ImageError: the file is empty, truncated, not an image, of an unsupported format or kind, or has more than
            50 million pixels.
    """
    with _opened(source) as (image, file):
        form, mode = str(image.format), image.mode
        picture, notes = decoding.to_rgb(image, file)
        return ImageInfo(form, mode, *picture.size, notes), picture


def read(path: Path, size: int) -> Pixels:
    """Decode `path` and resize it to (size, size, 3), uint8 RGB.

    Raises:
        ImageError: see `inspect`.
    """
    return resized(decode(path), size)


def picture(path: Path) -> Pixels:
    """Decode `path` to (height, width, 3), uint8 RGB, without a resize.

    Raises:
        ImageError: see `inspect`.
    """
    return np.asarray(decode(path))


def resize(pixels: Pixels, size: int) -> Pixels:
    """Resize pixels (height, width, 3) to (size, size, 3), uint8 RGB, in the same way as `read`."""
    return resized(Image.fromarray(pixels), size)


def resized(image: Image.Image, size: int) -> Pixels:
    """Resize an RGB image to (size, size, 3), uint8.

    The resize is Pillow's bilinear one, which torchvision's `Resize` also uses for images. The width is resized first
    and then the height, because Pillow's order depends on its version.

    Raises:
        ImageError: the image is so narrow that the intermediate image would have more than 50 million pixels.
    """
    if size * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels are too narrow to be resized to {size} x {size}")
    wide = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR))


def decode(path: Path) -> Image.Image:
    """Decode `path` to an 8-bit RGB image, without a resize.

    Raises:
        ImageError: see `inspect`.
    """
    return inspect(path)[1]


def preview(image: Image.Image, side: int) -> bytes:
    """A small JPEG of an RGB image for web pages, at most `side` pixels wide and high."""
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    smaller.save(data, "JPEG", quality=80)
    return data.getvalue()


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO]]:
    """Open an image and read its header. Errors here and inside the block become an ImageError."""
    try:
        # Pillow warns about large images below our limit, and about unusual but harmless metadata.
        with (
            warnings.catch_warnings(action="ignore"),
            source.open("rb") if isinstance(source, Path) else nullcontext(io.BytesIO(source)) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            assert isinstance(image, ImageFile.ImageFile)
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS:,} that are read"
                )
            if max(image.width, image.height) > MOST_SIDE:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are longer than the {MOST_SIDE:,} that are read"
                )
            yield image, file
    except UnidentifiedImageError:
        raise ImageError(_foreign(source)) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than the {MOST_PIXELS:,} pixels that are read") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ImageError(str(error.strerror).lower()) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"damaged or unreadable ({str(error).strip() or type(error).__name__})") from error


def _foreign(source: Path | bytes) -> str:
    """The reason why a file cannot be read, with its format if the first bytes show it."""
    start = source[:132] if isinstance(source, bytes) else _start(source)
    own = next((name for name, _, mark in OWN_SIGNATURES if start.startswith(mark)), "")
    if own in {"a TIFF", "a JPEG"}:
        return f"{own} file that is damaged or of a kind that is not read; save it as grey or RGB with 8 or 16 bits"
    known = next((name for name, place, mark in SIGNATURES if start[place:].startswith(mark)), "")
    convert = f"; convert it with {TO_CONVERT_DICOM}" if known == DICOM else ""
    reason = f"not a {', '.join(FORMATS)} image{convert}"
    return (f"{known}, {reason}" if known else reason) if start else "empty"


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)
