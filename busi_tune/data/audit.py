"""The audit of a data folder: formats, copies, near-duplicates, conflicting labels, and the leak of a split."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune.data.class_folders import SPLITS
from busi_tune.data.groups import group_numbers
from busi_tune.data.listing import Listing
from busi_tune.data.other_files import other_files
from busi_tune.data.reading import FolderReading
from busi_tune.data.split import Split, missing_exclusions, random, read_split
from busi_tune.data.twins import find_twins, signatures
from busi_tune.errors import DataError, listed
from busi_tune.images import Pixels
from busi_tune.names import composed
from busi_tune.results import SCHEMAS, AuditFile, Leak, NearestNeighbour, TwinGroup, TwinPair

# An image is blank if no channel of its thumbnail varies by more than this. It is similar to no other image.
BLANK = 4
DOCUMENTED = (0.7, 0.15, 0.15)
# The leak of a random split is a mean over several splits, and over fewer splits if the folder is large.
MOST_REPEATS, REPEATED_IMAGES = 20, 20_000

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class GivenSplit:
    """A split and the file that it was read from."""

    file: Path
    split: Split

    @classmethod
    def read(cls, file: Path) -> "GivenSplit":
        """Read a split.

        Raises:
            FileError: see `read_split`.
        """
        return cls(file, read_split(file))

    def check(self, listing: Listing) -> None:
        """Check that the split has every image of a listing.

        Raises:
            DataError: the split lacks images.
        """
        known = {composed(path) for table in (self.split.used, self.split.left_out) for path in table["path"]}
        unknown = [image.path for image in listing.images if composed(image.path) not in known]
        if unknown:
            raise DataError(
                f"{self.file} is not a split of {listing.root}: it lacks {listed(unknown)}"
                f"{missing_exclusions(self.file)}; name its own."
            )


@dataclass(frozen=True)
class AuditedSplits:
    """The splits whose mean leak is reported: their description, and for each split the side of every image."""

    name: str
    sides: Sequence[NDArray[np.str_]]


def audit(folder: FolderReading, similarity: float, *, seed: int = 0, given: GivenSplit | None = None) -> AuditFile:
    """Audit the readable images of a folder. Images with at least this `similarity`, a cosine, are near-duplicates.

    The leak is that of the split `given`, of the folder's own split, or the mean over random splits. The seeds of these
    start at `seed`.

    Raises:
        DataError: `given` lacks images of the folder.
    """
    listing = folder.listing()
    if given is not None:
        given.check(listing)
    every = list(folder.images.values())
    paths = list(folder.images)
    digests = [image.sha256 for image in every]
    thumbnails = np.stack([image.thumbnail for image in every])
    twins = find_twins(thumbnails, digests, similarity)
    group = group_numbers(len(every), twins["first"].to_numpy(), twins["second"].to_numpy())
    groups = _groups(listing, group, twins)
    labels = np.array([listing.classes.index(image.label) for image in listing.images])
    splits = _splits(listing, labels, group, seed=seed, given=given)
    counts = Counter(image.label for image in listing.images)
    return {
        "schema": SCHEMAS[AuditFile],
        "folder": str(listing.root),
        "similarity": similarity,
        "images": len(every),
        "classes": {label: counts[label] for label in listing.classes},
        "formats": _counts(image.facts.form for image in every),
        "modes": _counts(image.facts.mode for image in every),
        "sizes": _counts(f"{image.facts.width} x {image.facts.height}" for image in every),
        "changed": _changed(folder),
        "coloured": [path for path, image in folder.images.items() if image.coloured],
        "blank": _blank(listing, thumbnails),
        "unreadable": [{"path": path, "reason": reason} for path, reason in folder.unreadable.items()],
        "masks": listing.masks,
        "other_files": _counts(path.suffix.lower() or path.name for path in other_files(listing.root)),
        "copies": _copies(paths, digests),
        "groups": groups,
        "conflicts": [entry["images"] for entry in groups if len(entry["classes"]) > 1],
        "images_with_a_twin": len({*twins["first"], *twins["second"]}),
        "leak": _leak(splits, labels, group, signatures(thumbnails)),
    }


def _counts(values: Iterator[str]) -> dict[str, int]:
    """The number of times that each value occurs, the most frequent value first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _changed(folder: FolderReading) -> dict[str, list[str]]:
    """The paths of the images that were changed in reading, for each kind of change."""
    changed: dict[str, list[str]] = {}
    for path, image in folder.images.items():
        for note in image.facts.notes:
            changed.setdefault(note.text, []).append(path)
    return dict(sorted(changed.items()))


def _blank(listing: Listing, thumbnails: Pixels) -> dict[str, list[str]]:
    """The paths of the blank images, for each class that has any."""
    apart = np.ptp(thumbnails, axis=(1, 2)).max(axis=1)
    blank: dict[str, list[str]] = {}
    for image, most in zip(listing.images, apart, strict=True):
        if most <= BLANK:
            blank.setdefault(image.label, []).append(image.path)
    return dict(sorted(blank.items()))


def _copies(paths: Sequence[str], digests: Sequence[str]) -> list[list[str]]:
    """The sets of files with the same content."""
    same = pd.Series(list(paths)).groupby(list(digests), sort=False).agg(list)
    return sorted(names for names in same if len(names) > 1)


def _groups(listing: Listing, group: Integers, twins: pd.DataFrame) -> list[TwinGroup]:
    """The groups of more than one image. Conflicts come first, then the least similar groups, which are doubtful."""
    result: list[TwinGroup] = []
    for number, rows in twins.groupby(group[twins["first"].to_numpy()]):
        members = [listing.images[row] for row in np.flatnonzero(group == number)]
        result.append(
            {
                "images": [image.path for image in members],
                "classes": sorted({image.label for image in members}),
                "least_similarity": float(rows["similarity"].min()),
                "pairs": _pairs(listing, rows),
            }
        )
    return sorted(result, key=lambda entry: (len(entry["classes"]) == 1, entry["least_similarity"], entry["images"]))


def _pairs(listing: Listing, twins: pd.DataFrame) -> list[TwinPair]:
    columns = (twins[name].tolist() for name in ("first", "second", "similarity", "kind"))
    return [
        {
            "first": listing.images[first].path,
            "second": listing.images[second].path,
            "similarity": round(similarity, 4),
            "kind": kind,
        }
        for first, second, similarity, kind in zip(*columns, strict=True)
    ]


def _splits(
    listing: Listing, labels: Integers, group: Integers, *, seed: int, given: GivenSplit | None
) -> AuditedSplits:
    """The split `given`, the folder's own split, or random splits; no split if a random split is not possible."""
    if given is not None:
        used = given.split.fitted(listing).used
        side_of = dict(zip(used["path"], used["split"], strict=True))
        return AuditedSplits(str(given.file), [np.array([side_of.get(image.path, "") for image in listing.images])])
    if listing.is_split:
        return AuditedSplits("the folder's own", [np.array([image.split for image in listing.images])])
    if len(np.unique(labels)) < 2:
        return AuditedSplits("none, all readable images are of one class", [])
    repeats = max(1, min(MOST_REPEATS, REPEATED_IMAGES // len(labels)))
    try:
        drawn = [random(labels, group, np.array(DOCUMENTED), seed + number) for number in range(repeats)]
    except DataError:
        return AuditedSplits("none, a class has too few images for a random split", [])
    return AuditedSplits(f"random, mean of {repeats}", [np.array(SPLITS)[side] for side in drawn])


def _leak(splits: AuditedSplits, labels: Integers, group: Integers, vectors: NDArray[np.float32]) -> Leak:
    """The share of test images with a near-duplicate in training, and the accuracy of the nearest-neighbour rule."""
    flat = vectors.reshape(len(vectors), -1)
    leaked, right = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
    for side in splits.sides:
        train, test = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
        if len(train):
            leaked.append(np.isin(group[test], group[train]))
            right.append(labels[_nearest(flat, train, test)] == labels[test])
    known, correct = np.concatenate(leaked), np.concatenate(right)
    meter: NearestNeighbour = {"all": None, "leaked": None, "clean": None}
    # With one class, every prediction is correct.
    if len(np.unique(labels)) > 1:
        meter = {"all": _share(correct), "leaked": _share(correct[known]), "clean": _share(correct[~known])}
    return {
        "split": splits.name,
        "test_images": len(known) // max(1, len(splits.sides)),
        "leaked": _share(known),
        "nearest_neighbour_accuracy": meter,
    }


def _nearest(flat: NDArray[np.float32], train: Integers, test: Integers) -> Integers:
    """For each test image, the row number of the training image with the largest cosine: (len(test),)."""
    blocks = np.array_split(test, len(test) // 512 + 1)
    return np.concatenate([train[(flat[some] @ flat[train].T).argmax(axis=1)] for some in blocks])


def _share(true: Booleans) -> float | None:
    return float(true.mean()) if len(true) else None
