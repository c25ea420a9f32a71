"""Labelled images from another source, in folders or a table: their classes in the model, their groups and twins."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune.data.dataset import tell_masks
from busi_tune.data.groups import given_pairs, group_numbers, path_table
from busi_tune.data.listing import FolderNames, Listing, find_names
from busi_tune.data.other_files import check_other_files
from busi_tune.data.pixel_cache import decoded, find_decoded
from busi_tune.data.reading import FolderReading, read_folder
from busi_tune.data.twins import THUMBNAIL, find_twins
from busi_tune.errors import ConfigError, DataError, listed
from busi_tune.names import composed, same_name
from busi_tune.progress import Progress
from busi_tune.results import LeftOutImage

TWO_LABELS, TRAINED_ON = "its group carries two labels", "a twin is in the training data"
SAME_FILE = "the same file is in the training data"
OTHER_LABEL = "a twin in the training data has another label"


@dataclass(frozen=True)
class Labelled:
    """The readable images of `reading`, in its order, with the model's class of each image as its label.

    `given` holds the given groups as pairs of rows. `renamed` maps each label in the data to its class in the model.
    """

    reading: FolderReading
    labels: tuple[str, ...]
    given: tuple[NDArray[np.int64], NDArray[np.int64]]
    renamed: Mapping[str, str]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the images, relative to the folder or to the table's folder if they are inside it."""
        return tuple(self.reading.images)


@dataclass(frozen=True)
class Known:
    """Images that a model may have seen in training: the path, class, SHA-256 and thumbnail (64, 64, 3) of each."""

    root: Path
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    sha256s: tuple[str, ...]
    thumbnails: NDArray[np.uint8]


@dataclass(frozen=True)
class Judged:
    """The images to judge: their rows in a `Labelled`, the group of each, and the images left out."""

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    left_out: list[LeftOutImage]


def short_digest(sha256: str) -> str:
    """The part of an image's SHA-256 by which an export identifies the image."""
    return sha256[:16]


def read_mapping(text: str | None, classes: Sequence[str]) -> dict[str, str]:
    """Parse a mapping such as "benign=B,malignant=M" to the class, one of `classes`, of each label.

    Raises:
        ConfigError: the text has another form, an unknown class, or a label twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        name, sign, label = (piece.strip() for piece in part.partition("="))
        if not (name and sign and label):
            raise ConfigError(f"map must be CLASS=LABEL pairs, as in benign=B,malignant=M, not {text!r}.")
        known = same_name(classes, name)
        if known is None:
            raise ConfigError(f"map names the class {name!r}, and the model has {', '.join(classes)}.")
        if composed(label) in found:
            raise ConfigError(f"map gives the label {label!r} two classes; give it one.")
        found[composed(label)] = known
    return found


def read_labelled(
    data: Path, mapping: Mapping[str, str], classes: Sequence[str], progress: Progress, *, groups: Path | None = None
) -> Labelled:
    """Read the images of a folder of class folders, or of a table with the columns path and label.

    `mapping` gives the class of a label; other labels must be names of the model's `classes`. Images of one group in
    the CSV `groups` belong together. Unreadable images are left out and reported.

    Raises:
        DataError: no image can be read, a label is no class, or the folder or table cannot be used.
        ConfigError: the mapping names labels that the data does not have.
    """
    if data.is_file():
        names = _listed(data)
    else:
        names = find_names(data, fewest=1)
        check_other_files(data, progress)
    renamed = _classes_of(data, names, mapping, classes)
    # The file of groups is checked first, because reading the images is slow.
    pairs = given_pairs(groups, [names.relative(path) for path, _, _ in names.images]) if groups else None
    reading = read_folder(names, progress)
    tell_masks(reading.listing(), progress)
    if reading.unreadable:
        progress.notice(
            f"{len(reading.unreadable)} of {len(names.images)} images in {data} cannot be read and are left out: "
            f"{listed([f'{path} ({reason})' for path, reason in reading.unreadable.items()])}."
        )
    label_of = {names.relative(path): renamed[label] for path, label, _ in names.images}
    return Labelled(
        reading,
        tuple(label_of[path] for path in reading.images),
        _readable_pairs(names, reading, pairs),
        renamed,
    )


def _listed(table: Path) -> FolderNames:
    """The images that a table lists. Paths are relative to the folder of the table.

    Raises:
        DataError: the table lacks a column or a value, is empty, or names an image twice.
    """
    rows = path_table(table, "label")
    if rows.empty or rows[["path", "label"]].isin([""]).to_numpy().any():
        raise DataError(f"{table} must have a path and a label in every row, and at least one row.")
    paths = [table.parent / path for path in rows["path"]]
    places = pd.Series([os.path.normpath(path) for path in paths])
    if places.duplicated().any():
        twice = list(rows["path"][places.duplicated()])
        raise DataError(f"{table} names {len(twice)} images twice: {listed(twice)}; give each one row.")
    labels = [composed(label).strip() for label in rows["label"]]
    found = sorted(zip(paths, labels, [""] * len(paths), strict=True), key=lambda entry: composed(entry[0].as_posix()))
    return FolderNames(table.parent, tuple(sorted(set(labels))), tuple(found), (), ())


def _classes_of(data: Path, names: FolderNames, mapping: Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    """The model's class of each label in `names`."""
    absent = [label for label in mapping if label not in names.classes]
    if absent:
        raise ConfigError(f"map names the label {absent[0]!r}, and {data} has {', '.join(names.classes)}.")
    found = {label: mapping.get(label) or same_name(classes, label) for label in names.classes}
    unknown = [label for label, name in found.items() if name is None]
    if unknown:
        raise DataError(
            f"{data} has the label {unknown[0]!r}, which is not a class of the model ({', '.join(classes)}); name its "
            f"class with --map CLASS={unknown[0]}, or remove these images."
        )
    return {label: name for label, name in found.items() if name is not None}


def _readable_pairs(
    names: FolderNames, reading: FolderReading, pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Convert pairs of rows of all images to pairs of rows of the readable images. Groups stay together."""
    if pairs is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    number = {path: row for row, path in enumerate(reading.images)}
    row_of = [number.get(names.relative(path), -1) for path, _, _ in names.images]
    leaders: dict[int, int] = {}
    found = [
        (leaders.setdefault(int(first), row_of[second]), row_of[second])
        for first, second in zip(*pairs, strict=True)
        if row_of[second] >= 0
    ]
    table = np.array(found, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def to_judge(
    images: Labelled,
    known: Known | None,
    similarity: float,
    *,
    digests_of_known: Collection[str] = (),
    leave_out_conflicts: bool = False,
) -> Judged:
    """Choose the images to judge: those without a twin in `known`, and whose twins all have the same label.

    If `known` is None, files whose `short_digest` is in `digests_of_known` are left out instead.

    Raises:
        DataError: a twin in `known` has another label and `leave_out_conflicts` is false, or no image remains.
    """
    own = list(images.reading.images.values())
    thumbnails, digests = np.stack([image.thumbnail for image in own]), [image.sha256 for image in own]
    if known is not None:
        thumbnails, digests = np.concatenate([known.thumbnails, thumbnails]), [*known.sha256s, *digests]
    offset = len(thumbnails) - len(own)
    twins = find_twins(thumbnails, digests, similarity)
    across = twins[(twins["first"] < offset) & (twins["second"] >= offset)]
    seen = _seen(images, known, across, offset) if known else _copies(images, digests_of_known)
    wrong = [image for image in seen.values() if image["reason"] == OTHER_LABEL]
    if wrong and known is not None and not leave_out_conflicts:
        shown = [f"{one['path']} ({one['class']}) and {one.get('twin')} ({one.get('twin_class')})" for one in wrong]
        raise DataError(
            f"{len(wrong)} images of {images.reading.names.root} have a near-duplicate with another label in the "
            f"training data, {known.root}: {listed(shown, most=5)}; check --map and the labels, or leave these images "
            "out with --leave-out-conflicts."
        )
    inner = twins[twins["first"] >= offset]
    first, second = inner["first"].to_numpy() - offset, inner["second"].to_numpy() - offset
    pictures = pd.Series(group_numbers(len(own), first, second))
    mixed = pd.Series(images.labels).groupby(pictures).transform("nunique") > 1
    left_out = dict(seen)
    for row in np.flatnonzero(mixed).tolist():
        left_out.setdefault(row, {"path": images.paths[row], "class": images.labels[row], "reason": TWO_LABELS})
    if len(left_out) == len(own):
        reasons = pd.Series([image["reason"] for image in left_out.values()]).value_counts()
        counts = ", ".join(f"{count} because {reason}" for reason, count in reasons.items())
        raise DataError(f"No image of {images.reading.names.root} is left to evaluate ({counts}); name other images.")
    rows = np.array([row for row in range(len(own)) if row not in left_out], dtype=np.int64)
    given = images.given
    groups = group_numbers(len(own), np.concatenate([first, given[0]]), np.concatenate([second, given[1]]))
    return Judged(rows, groups[rows], [left_out[row] for row in sorted(left_out)])


def _copies(images: Labelled, digests_of_known: Collection[str]) -> dict[int, LeftOutImage]:
    """The images whose files are in the training data, by row."""
    return {
        row: {"path": images.paths[row], "class": images.labels[row], "reason": SAME_FILE}
        for row, image in enumerate(images.reading.images.values())
        if short_digest(image.sha256) in digests_of_known
    }


def _seen(images: Labelled, known: Known, across: pd.DataFrame, offset: int) -> dict[int, LeftOutImage]:
    """The images with a twin in `known`, by row, each with its most similar twin, if possible of the same label."""
    found: dict[int, LeftOutImage] = {}
    for twin in across.sort_values("similarity", ascending=False, kind="stable").itertuples():
        row, other = int(str(twin.second)) - offset, int(str(twin.first))
        same = images.labels[row] == known.labels[other]
        if row not in found or (same and found[row]["reason"] == OTHER_LABEL):
            found[row] = {
                "path": images.paths[row],
                "class": images.labels[row],
                "reason": TRAINED_ON if same else OTHER_LABEL,
                "twin": known.paths[other],
                "twin_class": known.labels[other],
                "similarity": float(str(twin.similarity)),
            }
    return found


def known_images(listing: Listing, tested: Collection[str], progress: Progress) -> Known:
    """The images of a training folder that a model may have seen: all except those whose paths are in `tested`."""
    thumbnails = decoded(listing, THUMBNAIL, progress)
    rows = [row for row, image in enumerate(listing.images) if composed(image.path) not in tested]
    some = [listing.images[row] for row in rows]
    return Known(
        listing.root,
        tuple(image.path for image in some),
        tuple(image.label for image in some),
        tuple(image.sha256 for image in some),
        thumbnails[rows],
    )


def training_listing(root: Path, tested: Mapping[str, str], progress: Progress) -> Listing:
    """The images of the folder that a model was trained on. `tested` maps the path of each test image to its SHA-256.

    Raises:
        DataError: test images are missing or have changed.
    """
    listing = find_decoded(root, [THUMBNAIL], progress)
    now = {composed(image.path): image.sha256 for image in listing.images}
    wrong = sorted(path for path, sha256 in tested.items() if now.get(path) != sha256)
    if wrong:
        raise DataError(
            f"{root} is not the folder that the model was trained on: {len(wrong)} of its {len(tested)} test images "
            f"are missing or have changed ({listed(wrong, most=3)}); name another --training-data."
        )
    return listing
