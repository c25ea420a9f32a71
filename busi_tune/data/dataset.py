"""A data folder, split and decoded: what training, verification and search are given."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from busi_tune.config import Config
from busi_tune.data import groups
from busi_tune.data.decode import decoded
from busi_tune.data.find import Listing, find_images
from busi_tune.data.split import Split, changes, make_split
from busi_tune.errors import DataError, listed
from busi_tune.images import Pixels
from busi_tune.progress import Progress


@dataclass(frozen=True)
class Part:
    """Images of one split: `rows` index `images` (all, size, size, 3); `labels` are class numbers."""

    images: Pixels
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    paths: tuple[str, ...]

    def pixels(self) -> Pixels:
        """This split's images, copied out: (len(rows), size, size, 3)."""
        return self.images[self.rows]


@dataclass(frozen=True)
class Dataset:
    """A listing with its split; images are decoded when a size is asked for."""

    listing: Listing
    split: Split

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted; a label is an index into them."""
        return self.listing.classes

    def part(self, name: str, size: int, progress: Progress) -> Part:
        """The images of split `name` ("train", "validation" or "test") at `size` pixels."""
        images = decoded(self.listing, size, progress)
        number = {image.path: row for row, image in enumerate(self.listing.images)}
        rows = self.split.rows(name)
        return Part(
            images=images,
            rows=np.array([number[path] for path in rows["path"]], dtype=np.int64),
            labels=np.array([self.classes.index(label) for label in rows["class"]], dtype=np.int64),
            paths=tuple(rows["path"]),
        )


def open_dataset(root: Path, config: Config, progress: Progress, saved: Split | None = None) -> Dataset:
    """Find the images of `root` and split them as `config` says, or as `saved` says where it is given.

    Raises:
        DataError: the folder cannot be used, or is no longer what `saved` remembers.
    """
    listing = find_images(root)
    if saved is not None:
        different = changes(saved, listing)
        if different:
            raise DataError(
                f"{root} is not what the split was made of: {listed(different)}; restore the files, "
                "or start anew with --overwrite."
            )
        return Dataset(listing, saved)
    thumbnails = decoded(listing, groups.THUMBNAIL, progress)
    pairs = groups.similar_pairs(groups.signatures(thumbnails), config.similarity)
    split = make_split(
        listing,
        groups.group_numbers(len(listing.images), pairs),
        strategy=config.strategy,
        fractions=config.fractions,
        conflicts=config.conflicts,
        seed=config.split_seed,
    )
    _tell(listing, split, progress)
    return Dataset(listing, split)


def _tell(listing: Listing, split: Split, progress: Progress) -> None:
    """Say what the user should know of the data before figures are made of it."""
    if listing.masks:
        progress.notice(f"{listing.masks} masks left out.")
    if listing.is_split:
        progress.notice(f"{listing.root} is already split and is taken as it is.")
    if len(split.left_out):
        names = listed(list(split.left_out["path"]), most=20)
        progress.notice(f"{len(split.left_out)} images left out, their near-duplicates carry another label: {names}.")
    if split.leaked() > 0:
        progress.notice(
            f"This split leaks: {split.leaked():.0%} of the test images have a near-duplicate in training, "
            "so every figure on it is too good."
        )


def balanced_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """scikit-learn's "balanced" weight of each class: images / (classes * images of the class)."""
    return np.asarray(compute_class_weight("balanced", classes=np.arange(classes), y=labels), dtype=np.float64)
