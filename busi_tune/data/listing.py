"""The images of a data folder: their paths, classes and contents, and the masks among them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from busi_tune import images
from busi_tune.data import digests
from busi_tune.data.class_folders import UNFIT, ClassFolders, find_classes
from busi_tune.data.masks import masks_by_name, masks_by_pixels
from busi_tune.errors import DataError, listed
from busi_tune.names import composed, shown


@dataclass(frozen=True)
class ImageFile:
    """An image: its path relative to the data folder (with `/`), its class, and its given split ("" if none).

    The path has the Unicode form of the file system. Splits are compared in the form of `names.composed`.
    """

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Listing:
    """All images of a folder, sorted by path, and the number of masks left out.

    `mask_paths` are the paths of all masks. `drawn_masks` are those that were recognised only by their pixels.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    masks: int
    mask_paths: tuple[str, ...] = ()
    drawn_masks: tuple[str, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether the folder has a subfolder for each split."""
        return bool(self.images[0].split)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each class."""
        return {name: sum(image.label == name for image in self.images) for name in self.classes}


@dataclass(frozen=True)
class FolderNames:
    """The names in a folder: the classes, the (path, class, given split) of each image in order, and the masks."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[tuple[Path, str, str], ...]
    masks: tuple[Path, ...]
    drawn_masks: tuple[Path, ...]

    def listing(self, sha256s: Mapping[Path, str]) -> Listing:
        """The listing of the images that have a SHA-256 in `sha256s`."""
        rows = tuple(
            ImageFile(self.relative(path), label, split, sha256s[path])
            for path, label, split in self.images
            if path in sha256s
        )
        masks, drawn = (tuple(map(self.relative, paths)) for paths in (self.masks, self.drawn_masks))
        return Listing(self.root, self.classes, rows, len(masks), masks, drawn)

    def relative(self, path: Path) -> str:
        """A path relative to the folder, with `/`. A path outside the folder, which a table may name, is kept."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()


def find_images(root: Path) -> Listing:
    """List the images of a folder of class folders, or of train/val/test folders of class folders.

    Raises:
        DataError: the folder does not exist, has fewer than two classes, has a class without images, or has a file
            that cannot be read.
    """
    return hashed(find_names(root))


def hashed(found: FolderNames) -> Listing:
    """The listing of all images in `found`.

    Raises:
        DataError: files cannot be read.
    """
    paths = [path for path, _, _ in found.images]
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip(paths, pool.map(_hash, paths), strict=True))
    unreadable = [
        f"{path.relative_to(found.root)} ({(sha256.strerror or str(sha256)).lower()})"
        for path, sha256 in hashes.items()
        if isinstance(sha256, OSError)
    ]
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(paths)} images in {found.root} cannot be read: {listed(unreadable)}; "
            "restore or remove them."
        )
    return found.listing({path: str(sha256) for path, sha256 in hashes.items()})


def find_names(root: Path, *, fewest: int = 2) -> FolderNames:
    """The names in a folder, with the same checks as `find_images`. Only possible masks are opened (see masks.py).

    The folder must have at least `fewest` classes.
    """
    found = find_classes(root, fewest=fewest)
    kept: list[tuple[Path, str, str]] = []
    masks: set[Path] = set()
    drawn: set[Path] = set()
    for folder in found.folders:
        paths = list(images.walk(folder.path))
        named = masks_by_name(folder.path, paths)
        binary = masks_by_pixels(root, [path for path in paths if path not in named])
        kept += [(path, folder.label, folder.split) for path in paths if path not in named | binary]
        masks |= named | binary
        drawn |= binary
    _check_images(found, kept, masks)
    relative = {path: path.relative_to(root).as_posix() for path, _, _ in kept}
    _check_paths(root, list(relative.values()))
    kept.sort(key=lambda entry: composed(relative[entry[0]]))
    return FolderNames(root, found.classes, tuple(kept), tuple(sorted(masks)), tuple(sorted(drawn)))


def _hash(path: Path) -> str | OSError:
    try:
        return digests.digest(path)
    except OSError as error:
        return error


def _check_images(found: ClassFolders, kept: list[tuple[Path, str, str]], masks: set[Path]) -> None:
    present = {(split, label) for _, label, split in kept}
    for split, base in found.branches.items():
        empty = [folder for folder in found.folders if folder.split == split and (split, folder.label) not in present]
        for folder in empty:
            own = sorted(path.name for path in masks if path.is_relative_to(folder.path))
            if own:
                raise DataError(
                    f"{folder.path} holds only masks, by their names and pixels ({listed(own, most=3)}): "
                    "rename those that are images, or remove the folder."
                )
        if empty:
            names = ", ".join(folder.label for folder in empty)
            raise DataError(f"{base} has no images of class {names}; add some or remove the folder.")


def _check_paths(root: Path, paths: list[str]) -> None:
    odd = sorted(repr(path) for path in paths if UNFIT.search(path))
    if odd:
        raise DataError(f"{len(odd)} paths hold characters that no CSV can hold: {listed(odd)}; rename them.")
    spelt: dict[str, str] = {}
    for path in paths:
        other = spelt.setdefault(composed(path), path)
        if other != path:
            raise DataError(
                f"{root} holds {shown([other, path])}, whose names differ only by their Unicode form: remove one of "
                "them, or rename it."
            )
