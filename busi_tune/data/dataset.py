"""A data folder with its split and its decoded images, for training, search and export."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune.config import Config
from busi_tune.data import groups
from busi_tune.data.class_folders import check_class_names, find_classes
from busi_tune.data.listing import Listing, find_images
from busi_tune.data.other_files import check_other_files
from busi_tune.data.pixel_cache import (
    check_decoding,
    decoded,
    decoded_in_memory,
    decoding_changes,
    find_decoded,
)
from busi_tune.data.split import (
    Conflicts,
    Split,
    Strategy,
    changes,
    excluded_file,
    make_split,
    missing_exclusions,
    read_split,
)
from busi_tune.data.twins import THUMBNAIL, find_twins
from busi_tune.errors import ConfigError, DataError, listed
from busi_tune.images import Pixels
from busi_tune.names import positive_class
from busi_tune.progress import Progress


@dataclass(frozen=True)
class Part:
    """The images of one split: `images[rows]`, with `images` (all, size, size, 3). `labels` (n,) are class numbers."""

    images: Pixels
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    paths: tuple[str, ...]

    def pixels(self) -> Pixels:
        """A copy of the images of this split: (len(rows), size, size, 3)."""
        return self.images[self.rows]


@dataclass(frozen=True)
class Dataset:
    """A listing with its split. Images are decoded when `part` needs them in a size."""

    listing: Listing
    split: Split

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted. A label is an index into them."""
        return self.listing.classes

    def part(self, name: str, size: int, progress: Progress) -> Part:
        """The images of split `name` ("train", "validation" or "test") at `size` pixels."""
        images = decoded(self.listing, size, progress)
        number = {image.path: row for row, image in enumerate(self.listing.images)}
        rows = self.split.rows(name)
        return Part(
            images=images,
            rows=np.array([number[path] for path in rows["path"]], dtype=np.int64),
            labels=self.labels(name),
            paths=tuple(rows["path"]),
        )

    def labels(self, name: str) -> NDArray[np.int64]:
        """The class numbers of split `name`, in the order of its images."""
        return np.array([self.classes.index(label) for label in self.split.rows(name)["class"]], dtype=np.int64)


def open_dataset(
    root: Path,
    config: Config,
    progress: Progress,
    *,
    saved: Split | None = None,
    split_file: Path | None = None,
    written_to: Path = Path("split.csv"),
    decode: bool = True,
    write: bool = True,
) -> Dataset:
    """Find the images of `root` and split them by `config`, or use the split `saved` or the split in `split_file`.

    Without a saved split, classes are compared with `config.classes`. Each file is read once. The same pass decodes
    images at `config.image_size`, and thumbnails for a new split, unless the cache has them. Without `decode`, the
    files are only hashed, which is enough to check a finished run. Without `write`, images are checked, but not cached.
    `written_to` is the file to which the caller writes the split. A notice names the list of left-out images, which is
    written next to it.

    Raises:
        DataError: the folder cannot be used, its images are not those of the split, or the two splits differ.
        ConfigError: no class has the name of the disease in `config`.
    """
    given = read_split(split_file) if split_file else None
    if saved is None and given is None:
        check_strategy(config)
    folders = find_classes(root)
    positive_class(folders.classes, config.positive)
    if saved is None:
        check_class_names(folders, config.classes)
        check_other_files(root, progress)
    if decode and write:
        thumbnails = [THUMBNAIL] if saved is None and given is None else []
        listing = find_decoded(root, [*thumbnails, config.image_size], progress)
    else:
        listing = find_images(root)
    if saved is None:
        tell_changes(listing, config.image_size, progress)
    if given is not None and split_file is not None:
        _check_given(given, listing, split_file)
    if saved is not None:
        _check_changes(saved, listing, "restore the files, or start over with --overwrite")
        if given is not None and given.fingerprint() != saved.fingerprint():
            raise DataError(
                f"{split_file} is not the split that the folder began with; name another --out, "
                "or start over with --overwrite."
            )
        return _checked(Dataset(listing, saved.fitted(listing)), config, progress, check=decode and not write)
    tell_classes(listing, config, progress)
    if given is not None:
        dataset = Dataset(listing, given.fitted(listing))
        _checked(dataset, config, progress, check=decode and not write)
        tell_masks(listing, progress)
        _tell_absent(dataset, progress)
    else:
        dataset = split_images(listing, config, progress, write=write)
        tell_left_out(dataset, written_to if write else None, progress)
    _tell_leak(dataset.split, progress)
    return dataset


def _checked(dataset: Dataset, config: Config, progress: Progress, *, check: bool) -> Dataset:
    if check:
        check_decoding(dataset.listing, config.image_size, progress)
    return dataset


def _check_given(given: Split, listing: Listing, file: Path) -> None:
    _check_changes(given, listing, f"restore the files, or make a new split instead of {file}", file)
    untrained = sorted(set(listing.classes) - set(given.rows("train")["class"]))
    if untrained:
        raise DataError(f"{file} has no training image of class {', '.join(untrained)}; give each class some.")


def check_strategy(config: Config) -> None:
    """Check that the strategy of `config` works without a split file.

    Raises:
        ConfigError: the strategy is "file".
    """
    if config.strategy == "file":
        raise ConfigError("strategy is file, which needs a split; name it with --split FILE.csv.")


def split_images(
    listing: Listing, config: Config, progress: Progress, *, patients: Path | None = None, write: bool = True
) -> Dataset:
    """Split a listing by `config`. Images of one group in the CSV `patients` are grouped, in the same way as twins.

    Without `write`, thumbnails that the cache lacks are made in memory.

    Raises:
        DataError: a class is too small, or `patients` cannot be used.
    """
    twins = twins_of(listing, config.similarity, progress, write=write)
    first, second = twins["first"].to_numpy(), twins["second"].to_numpy()
    pictures = groups.group_numbers(len(listing.images), first, second)
    if patients is not None:
        more = groups.given_pairs(patients, [image.path for image in listing.images])
        first, second = np.concatenate([first, more[0]]), np.concatenate([second, more[1]])
    strategy: Strategy = "random" if config.strategy == "random" else "grouped"
    conflicts: Conflicts = "keep" if config.conflicts == "keep" else "exclude"
    split = make_split(
        listing,
        groups.group_numbers(len(listing.images), first, second),
        strategy=strategy,
        fractions=config.fractions,
        conflicts=conflicts,
        seed=config.split_seed,
        twin_groups=pictures,
    )
    return Dataset(listing, split)


def twins_of(listing: Listing, similarity: float, progress: Progress, *, write: bool = True) -> pd.DataFrame:
    """The pairs of near-duplicates among the images of `listing`; see twins.py and `split_images`."""
    thumbnails = (decoded if write else decoded_in_memory)(listing, THUMBNAIL, progress)
    return find_twins(thumbnails, [image.sha256 for image in listing.images], similarity)


def _check_changes(split: Split, listing: Listing, remedy: str, file: Path | None = None) -> None:
    different = changes(split, listing)
    if different:
        appeared = any(change.endswith(" appeared") for change in different)
        why = missing_exclusions(file) if file and appeared else ""
        raise DataError(f"{listing.root} does not have the images of the split: {listed(different)}{why}; {remedy}.")


def tell_classes(listing: Listing, config: Config, progress: Progress) -> None:
    """Report the number of images of each class. If no class is the disease, report that binary metrics are missing."""
    progress.notice(f"Classes: {', '.join(f'{name} {count}' for name, count in listing.counts.items())}.")
    if positive_class(listing.classes, config.positive) is None:
        progress.notice(
            "No class is called malignant, so there will be no sensitivity and specificity; name the class of the "
            "disease with --positive NAME."
        )


def tell_masks(listing: Listing, progress: Progress) -> None:
    """Report the number of masks left out, and the names of masks that were recognised only by their pixels."""
    if listing.masks:
        progress.notice(f"{listing.masks} masks left out.")
    if listing.drawn_masks:
        progress.notice(
            f"{len(listing.drawn_masks)} of these were recognised by their pixels, which have two values and the size "
            f"of an image of the same name: {listed(list(listing.drawn_masks), most=3)}."
        )


def tell_left_out(dataset: Dataset, written_to: Path | None, progress: Progress) -> None:
    """Report the number of images left out, the reason, and the file that lists them, if one is written."""
    listing, split = dataset.listing, dataset.split
    tell_masks(listing, progress)
    if listing.is_split:
        progress.notice(f"{listing.root} is already split; this split is used.")
    if len(split.left_out):
        beside = f" {excluded_file(written_to)} lists them." if written_to else ""
        progress.notice(f"{len(split.left_out)} images left out: near-duplicates of them carry another label.{beside}")


def tell_changes(listing: Listing, size: int, progress: Progress) -> None:
    """Report the images that were changed in reading, for each kind of change."""
    for change, paths in decoding_changes(listing, size).items():
        progress.notice(f"Images read with a change ({change}): {len(paths)}, {listed(paths, most=3)}.")


def _tell_absent(dataset: Dataset, progress: Progress) -> None:
    for name in ("validation", "test"):
        absent = sorted(set(dataset.classes) - set(dataset.split.rows(name)["class"]))
        if absent:
            progress.notice(
                f"The {name} part of this split has no image of class {', '.join(absent)}: "
                "figures of that class, and the macro figures, are not defined there."
            )


def _tell_leak(split: Split, progress: Progress) -> None:
    leaked = split.has_twin_in_training("test").mean()
    if leaked > 0:
        progress.notice(
            f"This split leaks: {leaked:.0%} of the test images have a near-duplicate in training, "
            "so the test figures are too high."
        )


def balanced_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """scikit-learn's "balanced" weight of each class: images / (classes * images of the class)."""
    # Only training needs it, and need not keep other commands waiting.
    from sklearn.utils.class_weight import compute_class_weight

    return np.asarray(compute_class_weight("balanced", classes=np.arange(classes), y=labels), dtype=np.float64)


def effective_prior(
    labels: NDArray[np.int64], classes: int, *, weighted_sampler: bool, class_weights: bool
) -> NDArray[np.float64]:
    """The effective class shares of training, from its sampler and loss weights: (classes,), with the sum 1.

    The share of a class is proportional to its frequency in training times its weight in the loss. Cross-entropy also
    divides by the sum of weights in each batch. That changes the shares by less than one percentage point with the
    sampler, and by less than three without it.
    """
    drawn = np.bincount(labels, minlength=classes) / len(labels)
    balance = balanced_weights(labels, classes)
    if weighted_sampler:
        drawn = drawn * balance
    if class_weights:
        drawn = drawn * balance
    return np.asarray(drawn / drawn.sum())
