"""The images of a data folder: their paths, classes and contents, and the split that their folders give."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from busi_tune import files, images
from busi_tune.data import digests
from busi_tune.errors import DataError, listed

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
}
# Line ends do not survive every reader of a CSV; surrogates stand for bytes that are not UTF-8.
UNFIT = re.compile("[\r\n\ud800-\udfff]")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageFile:
    """An image: its path relative to the data folder (with `/`), its class, its given split ("" where none)."""

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Listing:
    """All images of a folder, sorted by path, and how many masks were left out."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    masks: int

    @property
    def is_split(self) -> bool:
        """Whether the folder has a subfolder for each split."""
        return bool(self.images[0].split)


@dataclass(frozen=True)
class FolderNames:
    """A folder as its names show it: classes, (path, class, given split) of each image, and the count of masks."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[tuple[Path, str, str], ...]
    masks: int

    def listing(self, sha256s: Mapping[Path, str]) -> Listing:
        """The images that have a SHA-256 in `sha256s`, sorted by path."""
        rows = [
            ImageFile(path.relative_to(self.root).as_posix(), label, split, sha256s[path])
            for path, label, split in self.images
            if path in sha256s
        ]
        return Listing(self.root, self.classes, tuple(sorted(rows, key=lambda row: row.path)), self.masks)


def find_images(root: Path) -> Listing:
    """List the images of a folder of class folders, or of train/val/test folders of class folders.

    Raises:
        DataError: no such folder, no class folders, fewer than two classes, a class without images, or a file that
            cannot be read.
    """
    return hashed(find_names(root))


def hashed(found: FolderNames) -> Listing:
    """The listing of all images in `found`.

    Raises:
        DataError: files that cannot be read.
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


def find_names(root: Path) -> FolderNames:
    """The names in a folder, checked as by `find_images`; no file is opened."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; name the folder that holds one folder of images for each class.")
    if UNFIT.search(str(root)):
        raise DataError(f"The data folder's name, {str(root)!r}, holds characters that no table can hold; rename it.")
    top = _subfolders(root)
    found = {SPLIT_FOLDERS[folder.name.lower()]: folder for folder in top if folder.name.lower() in SPLIT_FOLDERS}
    if found:
        missing = [split for split in SPLITS if split not in found]
        if missing or len(found) != len(top):
            names = ", ".join(folder.name for folder in top)
            raise DataError(
                f"{root} holds {names}: a folder that is already split needs train, val and test and nothing else."
            )
    branches = found or {"": root}
    class_folders = [(split, folder) for split, base in branches.items() for folder in _subfolders(base)]
    classes = tuple(sorted({folder.name for _, folder in class_folders}))
    _check_classes(root, classes, branches)
    files_found = [(path, folder.name, split) for split, folder in class_folders for path in images.walk(folder)]
    kept = [entry for entry in files_found if not images.is_mask(entry[0])]
    _check_images(classes, branches, kept)
    _check_paths([path.relative_to(root).as_posix() for path, _, _ in kept])
    return FolderNames(root, classes, tuple(kept), len(files_found) - len(kept))


def _hash(path: Path) -> str | OSError:
    try:
        return digests.digest(path)
    except OSError as error:
        return error


def _subfolders(folder: Path) -> list[Path]:
    with files.explained(folder, "read"):
        entries = sorted(folder.iterdir())
    return [e for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]


def _check_classes(root: Path, classes: tuple[str, ...], branches: dict[str, Path]) -> None:
    if len(classes) >= 2:
        for base in branches.values():
            absent = [name for name in classes if not (base / name).is_dir()]
            if absent:
                raise DataError(f"{base} has no folder for {', '.join(absent)}; every split needs every class.")
        return
    inner = [folder for folder in _subfolders(root) if len(_subfolders(folder)) >= 2]
    hint = f"did you mean {inner[0]}?" if inner else "it needs one folder of images for each class, at least two."
    raise DataError(f"{root} has {len(classes)} class folders: {hint}")


def _check_images(classes: tuple[str, ...], branches: dict[str, Path], found: list[tuple[Path, str, str]]) -> None:
    for split, base in branches.items():
        present = {label for _, label, side in found if side == split}
        empty = [name for name in classes if name not in present]
        if empty:
            raise DataError(f"{base} has no images of class {', '.join(empty)}; add some or remove the folder.")


def _check_paths(paths: list[str]) -> None:
    odd = sorted(repr(path) for path in paths if UNFIT.search(path))
    if odd:
        raise DataError(f"{len(odd)} paths hold characters that no table can hold: {listed(odd)}; rename them.")
