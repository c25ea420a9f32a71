"""The class folders of a data folder: found by name, checked, and compared with the classes in the options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from busi_tune import files, images
from busi_tune.errors import DataError
from busi_tune.names import composed, folded, is_mask_class, near_names, same_name, shown

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
# Characters that a CSV cannot hold safely: line ends, and surrogates, which stand for bytes that are not UTF-8.
UNFIT = re.compile("[\r\n\ud800-\udfff]")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ClassFolder:
    """The folder of a class, its split ("" if the data folder is not split), and the name of its class."""

    split: str
    path: Path
    label: str


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a data folder. `branches` has the parent folder for each split ("" without splits)."""

    root: Path
    branches: Mapping[str, Path]
    folders: tuple[ClassFolder, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(sorted({folder.label for folder in self.folders}))


def find_classes(root: Path, *, fewest: int = 2) -> ClassFolders:
    """Find the class folders in `root`, by their names. No file is opened.

    Raises:
        DataError: the folder does not exist, has fewer than `fewest` classes, or has an incomplete split; or a class
            name is that of masks, or is spelt in several ways.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; name the folder that holds one folder of images for each class.")
    if UNFIT.search(str(root)):
        raise DataError(f"The data folder's name, {str(root)!r}, holds characters that no CSV can hold; rename it.")
    top = _subfolders(root)
    sides = {SPLIT_FOLDERS[folder.name.lower()]: folder for folder in top if folder.name.lower() in SPLIT_FOLDERS}
    if sides:
        _check_sides(root, top, sides)
    branches = sides or {"": root}
    folders = tuple(
        ClassFolder(split, path, composed(path.name)) for split, base in branches.items() for path in _subfolders(base)
    )
    found = ClassFolders(root, branches, folders)
    _check_spelling(found)
    _check_masks(found)
    _check_classes(found, fewest)
    return found


def check_class_names(found: ClassFolders, stated: str | None) -> None:
    """Compare the classes with `stated`, as in "A,B,C". If it is None, refuse similar names instead.

    Raises:
        DataError: a class is missing or not stated, or a name may be a misspelling of another name.
    """
    classes = found.classes
    if stated is None:
        near = near_names(classes)
        if near is not None:
            raise DataError(
                f"{found.root} has the classes {near[0]!r} and {near[1]!r}, one of which may be misspelt: rename "
                f"the wrong folder, or state all classes with --classes {','.join(classes)}."
            )
        return
    wanted = stated.split(",")
    extra = [name for name in classes if same_name(wanted, name) is None]
    missing = [name for name in wanted if same_name(classes, name) is None]
    if extra or missing:
        kinds = {"has a folder for": extra, "has no folder for": missing}
        problem = " and ".join(f"{words} {', '.join(names)}" for words, names in kinds.items() if names)
        raise DataError(f"{found.root} {problem}, and --classes states {stated}; correct the folders or the option.")


def _subfolders(folder: Path) -> list[Path]:
    with files.explained(folder, "read"):
        entries = sorted(folder.iterdir())
    return [entry for entry in entries if entry.is_dir() and not images.holds_no_data(entry.name)]


def _check_sides(root: Path, top: list[Path], sides: Mapping[str, Path]) -> None:
    """Check that a folder which is already split has a subfolder for each split, and no other subfolders."""
    missing = [split for split in SPLITS if split not in sides]
    extra = [folder.name for folder in top if folder.name.lower() not in SPLIT_FOLDERS]
    if not missing and len(sides) == len(top):
        return
    if extra:
        way = f"move {', '.join(extra)} elsewhere"
    elif missing:
        way = (
            f"move some images of each class into {root / missing[0]}, with the same class folders, or put all images "
            "of a class into one folder and let busi-tune split them"
        )
    else:
        way = "join the folders that mean the same"
    names = ", ".join(folder.name for folder in top)
    raise DataError(
        f"{root} holds {names}: a folder that is already split needs train, val and test and nothing else; {way}."
    )


def _check_spelling(found: ClassFolders) -> None:
    """Refuse class folders whose names differ only by case, blanks or Unicode form: people mean one class."""
    spelt: dict[str, dict[str, Path]] = {}
    for folder in found.folders:
        spelt.setdefault(folded(folder.path.name), {}).setdefault(folder.path.name, folder.path)
    for spellings in spelt.values():
        if len(spellings) > 1:
            both = shown([path.relative_to(found.root).as_posix() for path in spellings.values()])
            raise DataError(
                f"{found.root} holds the class folders {both}, whose names differ only by case, blanks or Unicode "
                "form: give them one name, or join them."
            )


def _check_masks(found: ClassFolders) -> None:
    for folder in found.folders:
        others = [other.label for other in found.folders if other.split == folder.split and other != folder]
        if is_mask_class(folder.label, others):
            beside = [base for base in _subfolders(folder.path.parent) if len(_subfolders(base)) >= 2]
            way = f"did you mean {beside[0]}?" if beside else "move it out of the data folder."
            raise DataError(f"{folder.path} is a folder of masks by its name, and masks cannot be a class: {way}")


def _check_classes(found: ClassFolders, fewest: int) -> None:
    root, classes = found.root, found.classes
    if len(classes) < fewest:
        meant = _usable_below(root) if _subfolders(root) else _usable_above(root)
        needed = "it needs one folder of images for each class" + (", at least two." if fewest > 1 else ".")
        hint = f"did you mean {meant}?" if meant else needed
        raise DataError(f"{root} has {len(classes)} class folders: {hint}")
    for split, base in found.branches.items():
        own = [folder.label for folder in found.folders if folder.split == split]
        absent = [name for name in classes if name not in own]
        if absent:
            near = near_names([*absent[:1], *own])
            wrong = f"; is {near[1]} one of them, misspelt?" if near and near[0] == absent[0] else "."
            raise DataError(f"{base} has no folder for {', '.join(absent)}; every split needs every class{wrong}")


def _usable_above(root: Path) -> Path | None:
    """The parent of `root` if `root` looks like the folder of one class among several, else None."""
    above = root.absolute().parent
    is_class = next(images.walk(root), None) is not None and len(_subfolders(above)) >= 2
    return root.parent if is_class and root.name else None


def _usable_below(root: Path) -> Path | None:
    """The first folder inside `root`, at most four levels deep, with two or more subfolders; None if there is none."""
    level = [root]
    for _ in range(4):
        level = [inner for folder in level for inner in _subfolders(folder)]
        for folder in level:
            if len(_subfolders(folder)) >= 2:
                return folder
    return None
