"""Reading of a data folder for an audit: the facts, thumbnail and preview of each image, and the unreadable files."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from busi_tune import images
from busi_tune.data import digests
from busi_tune.data.listing import FolderNames, Listing
from busi_tune.data.twins import THUMBNAIL
from busi_tune.errors import DataError, ImageError, listed
from busi_tune.images import ImageInfo, Pixels
from busi_tune.progress import Progress

# A pixel is coloured if its channels differ by more than COLOUR. An image is coloured if more than COLOURED of its
# pixels are.
COLOUR, COLOURED = 24, 0.001
# The longest side of a preview, in pixels.
PREVIEW = 160


@dataclass(frozen=True)
class ImageReading:
    """One image: SHA-256, facts, colour, a (64, 64, 3) thumbnail, and a JPEG of at most 160 x 160 pixels."""

    sha256: str
    facts: ImageInfo
    coloured: bool
    thumbnail: Pixels
    preview: bytes


@dataclass(frozen=True)
class FolderReading:
    """The readable images of a folder, by relative path, and the reason for each unreadable file."""

    names: FolderNames
    images: Mapping[str, ImageReading]
    unreadable: Mapping[str, str]

    def listing(self) -> Listing:
        """The readable images, sorted by path."""
        root = self.names.root
        return self.names.listing({root / path: image.sha256 for path, image in self.images.items()})


def read_folder(names: FolderNames, progress: Progress) -> FolderReading:
    """Read each image of a folder once.

    Raises:
        DataError: none of the images can be read.
    """
    found: dict[str, ImageReading] = {}
    unreadable: dict[str, str] = {}

    def read(path: Path) -> None:
        name = names.relative(path)
        try:
            found[name] = _read(path)
        except ImageError as error:
            unreadable[name] = str(error)
        except OSError as error:
            unreadable[name] = (error.strerror or str(error)).lower()

    with ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(read, (path for path, _, _ in names.images)), start=1):
            progress.step("reading", done, len(names.images))
    progress.close("reading")
    unreadable = dict(sorted(unreadable.items()))
    if not found:
        reasons = listed([f"{path} ({reason})" for path, reason in unreadable.items()])
        raise DataError(f"None of the {len(unreadable)} images in {names.root} can be read: {reasons}; restore them.")
    return FolderReading(names, dict(sorted(found.items())), unreadable)


def _read(path: Path) -> ImageReading:
    data, sha256 = digests.content(path)
    facts, image = images.inspect(data)
    pixels = np.asarray(image)
    apart = pixels.max(axis=2) - pixels.min(axis=2)
    coloured = bool((apart > COLOUR).mean() > COLOURED)
    thumbnail = images.resized(image, THUMBNAIL)
    return ImageReading(sha256, facts, coloured, thumbnail, images.preview(image, PREVIEW))
