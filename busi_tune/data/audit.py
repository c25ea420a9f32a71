"""What should be known of a folder of images before any figure is made of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune import files, images
from busi_tune.data.groups import group_numbers
from busi_tune.data.listing import SPLITS, Found, Listing
from busi_tune.data.split import lost, random, read_split
from busi_tune.data.twins import THUMBNAIL, find_twins, signatures
from busi_tune.errors import DataError, ImageError, listed
from busi_tune.images import ImageInfo, Pixels
from busi_tune.progress import Progress

# A pixel has a colour where its channels are this far apart, and an image where so many of its pixels have.
COLOUR, COLOURED = 24, 0.001
DOCUMENTED = (0.7, 0.15, 0.15)
# A random split's leak is a mean over many, as far as the time for it does not grow beyond that of the rest.
MOST_REPEATS, REPEATED_IMAGES = 20, 20_000

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One image, read once."""

    sha256: str
    facts: ImageInfo
    coloured: bool
    thumbnail: Pixels


def audit(
    found: Found, similarity: float, progress: Progress, *, seed: int = 0, split_file: Path | None = None
) -> dict[str, Any]:
    """Read every image of a folder once and say what was found, as plain values.

    The leak is that of `split_file`, of the folder's own split, or of random splits (the documents') from `seed` on.

    Raises:
        DataError: none of the images can be read.
        FileError: `split_file` cannot be read.
    """
    root = found.root
    given = read_split(split_file) if split_file else None
    seen, unreadable = _read_all(found, progress)
    if not seen:
        names = listed([f"{path} ({reason})" for path, reason in sorted(unreadable.items())])
        raise DataError(f"None of the {len(unreadable)} images in {root} can be read: {names}; restore them.")
    listing = found.listing({path: image.sha256 for path, image in seen.items()})
    if given is not None:
        known = {*given.used["path"], *given.left_out["path"]}
        strangers = [image.path for image in listing.images if image.path not in known]
        if strangers:
            why = lost(split_file) if split_file else ""
            raise DataError(f"{split_file} is not a split of {root}: it lacks {listed(strangers)}{why}; name its own.")
    every = [seen[root / image.path] for image in listing.images]
    thumbnails = np.stack([image.thumbnail for image in every])
    twins = find_twins(thumbnails, [image.sha256 for image in every], similarity)
    group = group_numbers(len(every), twins["first"].to_numpy(), twins["second"].to_numpy())
    paths = [image.path for image in listing.images]
    coloured = [path for path, image in zip(paths, every, strict=True) if image.coloured]
    groups = _groups(listing, group, twins)
    labels = np.array([listing.classes.index(image.label) for image in listing.images])
    split, sides = _sides(listing, labels, group, seed, given.used if given else None, split_file)
    counts = Counter(image.label for image in listing.images)
    return {
        "folder": str(root),
        "similarity": similarity,
        "images": len(every),
        "classes": {label: counts[label] for label in listing.classes},
        "formats": _counts(image.facts.form for image in every),
        "modes": _counts(image.facts.mode for image in every),
        "sizes": _counts(f"{image.facts.width} x {image.facts.height}" for image in every),
        "coloured": coloured,
        "unreadable": [{"path": path, "reason": reason} for path, reason in sorted(unreadable.items())],
        "masks": found.masks,
        "other_files": _counts(path.suffix.lower() or path.name for path in _others(root)),
        "copies": _copies(paths, [image.sha256 for image in every]),
        "groups": groups,
        "conflicts": [entry["images"] for entry in groups if len(entry["classes"]) > 1],
        "images_with_a_twin": len({*twins["first"], *twins["second"]}),
        "leak": _leak(split, sides, labels, group, signatures(thumbnails)),
    }


def _read_all(found: Found, progress: Progress) -> tuple[dict[Path, Seen], dict[str, str]]:
    seen: dict[Path, Seen] = {}
    unreadable: dict[str, str] = {}

    def read(path: Path) -> None:
        try:
            seen[path] = _read(path)
        except ImageError as error:
            unreadable[path.relative_to(found.root).as_posix()] = str(error)
        except OSError as error:
            unreadable[path.relative_to(found.root).as_posix()] = (error.strerror or str(error)).lower()

    with ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(read, (path for path, _, _ in found.images)), start=1):
            progress.step("reading", done, len(found.images))
    progress.close("reading")
    return seen, unreadable


def _read(path: Path) -> Seen:
    data = path.read_bytes()
    facts, image = images.inspect(data)
    pixels = np.asarray(image)
    apart = pixels.max(axis=2) - pixels.min(axis=2)
    coloured = bool((apart > COLOUR).mean() > COLOURED)
    return Seen(files.sha256_bytes(data), facts, coloured, images.resized(image, THUMBNAIL))


def _counts(values: Iterator[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _others(root: Path) -> Iterator[Path]:
    """The files beside the images, below the top, that nothing here reads."""
    for path in root.rglob("*"):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
        if path.is_file() and path.parent != root and not hidden and path.suffix.lower() not in images.SUFFIXES:
            yield path


def _copies(paths: Sequence[str], digests: Sequence[str]) -> list[list[str]]:
    """The sets of files of the same content."""
    same = pd.Series(list(paths)).groupby(list(digests), sort=False).agg(list)
    return sorted(names for names in same if len(names) > 1)


def _groups(listing: Listing, group: Integers, twins: pd.DataFrame) -> list[dict[str, Any]]:
    """The groups of more than one image: conflicts first, then the least similar, which are the doubtful ones."""
    result = []
    pairs = twins.groupby(group[twins["first"].to_numpy()])
    for number, rows in pairs:
        members = [listing.images[row] for row in np.flatnonzero(group == number)]
        result.append(
            {
                "images": [image.path for image in members],
                "classes": sorted({image.label for image in members}),
                "least_similarity": float(rows["similarity"].min()),
                "pairs": [
                    {
                        "first": listing.images[first].path,
                        "second": listing.images[second].path,
                        "similarity": round(similarity, 4),
                        "kind": kind,
                    }
                    for first, second, similarity, kind in zip(
                        *(rows[name].tolist() for name in ("first", "second", "similarity", "kind")), strict=True
                    )
                ],
            }
        )
    return sorted(result, key=lambda entry: (len(entry["classes"]) == 1, entry["least_similarity"], entry["images"]))


def _sides(
    listing: Listing,
    labels: Integers,
    group: Integers,
    seed: int,
    given: pd.DataFrame | None,
    split_file: Path | None,
) -> tuple[str, list[NDArray[np.str_]]]:
    """The splits whose leak is told: what they are, and for each of them the side of every image."""
    if given is not None:
        side_of = dict(zip(given["path"], given["split"], strict=True))
        return str(split_file), [np.array([side_of.get(image.path, "") for image in listing.images])]
    if listing.is_split:
        return "the folder's own", [np.array([image.split for image in listing.images])]
    if len(np.unique(labels)) < 2:
        return "none, all readable images are of one class", []
    repeats = max(1, min(MOST_REPEATS, REPEATED_IMAGES // len(labels)))
    try:
        drawn = [random(labels, group, np.array(DOCUMENTED), seed + number) for number in range(repeats)]
    except DataError:
        return "none, a class has too few images for a random split", []
    return f"random, mean of {repeats}", [np.array(SPLITS)[side] for side in drawn]


def _leak(
    name: str, sides: list[NDArray[np.str_]], labels: Integers, group: Integers, vectors: NDArray[np.float32]
) -> dict[str, Any]:
    """How much of a test split is known from training, and what knowing it is worth to who learns nothing else."""
    flat = vectors.reshape(len(vectors), -1)
    leaked, right = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
    for side in sides:
        train, test = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
        if len(train):
            leaked.append(np.isin(group[test], group[train]))
            blocks = np.array_split(test, len(test) // 512 + 1)
            nearest = np.concatenate([train[(flat[some] @ flat[train].T).argmax(axis=1)] for some in blocks])
            right.append(labels[nearest] == labels[test])
    known, correct = np.concatenate(leaked), np.concatenate(right)
    meter = {"all": correct, "leaked": correct[known], "clean": correct[~known]}
    # With one class, being right means nothing.
    telling = len(np.unique(labels)) > 1
    return {
        "split": name,
        "test_images": len(known) // max(1, len(sides)),
        "leaked": _share(known),
        "nearest_neighbour_accuracy": {name: _share(part) if telling else None for name, part in meter.items()},
    }


def _share(true: NDArray[np.bool_]) -> float | None:
    return float(true.mean()) if len(true) else None
