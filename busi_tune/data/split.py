"""The split of a listing into training, validation and test images, and the CSV files that hold it."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune import files
from busi_tune.data.class_folders import SPLITS
from busi_tune.data.groups import identifiers
from busi_tune.data.listing import Listing
from busi_tune.errors import DataError, FileError, listed
from busi_tune.names import composed
from busi_tune.results import SCHEMAS, SplitCounts, SplitResult

Integers = NDArray[np.int64]
Strategy = Literal["grouped", "random"]
Conflicts = Literal["exclude", "keep"]
COLUMNS = ["path", "class", "group", "split", "sha256"]
LEFT_OUT = ["path", "class", "group", "reason", "sha256"]
TEXTS = ("path", "class", "group", "sha256")


@dataclass(frozen=True)
class Roles:
    """The role of each image: a table of the images used, and a table of the images left out, both sorted by path.

    The table `left_out` has the columns `LEFT_OUT`. Files and fingerprints contain names in the form of
    `names.composed`, whatever the form of the file system.
    """

    used: pd.DataFrame
    left_out: pd.DataFrame

    def fingerprint(self) -> str:
        """The SHA-256 of both tables. Results with the same fingerprint used the same images in the same roles."""
        return hashlib.sha256(_csv(self.used) + _csv(self.left_out)).hexdigest()

    def fitted(self, listing: Listing) -> Self:
        """The same roles with each path in the Unicode form that it has in `listing`."""
        spelt = {composed(image.path): image.path for image in listing.images}

        def table(of: pd.DataFrame) -> pd.DataFrame:
            return of.assign(path=[spelt.get(composed(path), path) for path in of["path"]])

        return replace(self, used=table(self.used), left_out=table(self.left_out))

    def write(self, path: Path) -> None:
        """Write the images used to `path`, and the images left out, if any, to `excluded_file(path)`."""
        beside = excluded_file(path)
        if len(self.left_out):
            files.write_bytes(beside, _csv(self.left_out))
        else:
            with files.explained(beside, "deleted"):
                beside.unlink(missing_ok=True)
        files.write_bytes(path, _csv(self.used))


@dataclass(frozen=True)
class Split(Roles):
    """The split of the images. The table `used` has the columns `COLUMNS`."""

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of one split, in the order of their paths."""
        return self.used[self.used["split"] == split]

    def has_twin_in_training(self, split: str) -> pd.Series:
        """For each row of a split, whether its group also has training images."""
        return self.rows(split)["group"].isin(set(self.rows("train")["group"]))

    def summary(self) -> SplitResult:
        """The numbers of images and groups in each part, and the share of test images with a twin in training."""
        return {
            "schema": SCHEMAS[SplitResult],
            "fingerprint": self.fingerprint(),
            "images": {str(label): _counts(rows["split"]) for label, rows in self.used.groupby("class")},
            "groups": _counts(self.used[["group", "split"]].drop_duplicates()["split"]),
            "left_out": len(self.left_out),
            "leaked": float(self.has_twin_in_training("test").mean()),
        }


def _counts(splits: pd.Series) -> SplitCounts:
    train, validation, test = (int((splits == name).sum()) for name in SPLITS)
    return {"train": train, "validation": validation, "test": test}


def excluded_file(path: Path) -> Path:
    """The file that lists the images left out by the split in `path`: `split.excluded.csv` for `split.csv`."""
    return path.with_name(f"{path.stem}.excluded.csv")


def _csv(table: pd.DataFrame) -> bytes:
    names = [composed(path) for path in table["path"]]
    return table.assign(path=names).to_csv(index=False, lineterminator="\n").encode()


def read_split(path: Path) -> Split:
    """Read a split that `Split.write` wrote. If the file of left-out images is missing, no images are left out.

    Other columns are ignored.

    Raises:
        FileError: the file is missing, damaged, or lacks a column or a split.
    """
    used = read_table(path, COLUMNS)
    odd = sorted(set(used["split"]) - set(SPLITS))
    absent = sorted(set(SPLITS) - set(used["split"]))
    if odd or absent:
        problem = f"has {odd[0]!r}" if odd else f"lacks {absent[0]!r}"
        raise FileError(f"{path} must hold {', '.join(SPLITS)} in its column split, all three, and it {problem}.")
    return Split(used, read_left_out(path))


def refuse_to_replace(path: Path) -> None:
    """Check that writing a split to `path` can only replace another split.

    Raises:
        FileError: `path` holds something else.
    """
    try:
        if path.exists():
            read_split(path)
        else:
            read_left_out(path)
    except FileError as error:
        reason = str(error).partition(";")[0]
        raise FileError(f"{path} exists, is not a split ({reason}) and is not replaced; name another --out.") from error


def missing_exclusions(path: Path) -> str:
    """A text for an error message if the file of the images left out by a split is missing; "" if it exists."""
    beside = excluded_file(path)
    return "" if beside.exists() else f" ({beside}, which would list images left out, is missing)"


def read_left_out(path: Path) -> pd.DataFrame:
    """The images that the split or the folds in `path` leave out. The table is empty if their file is missing."""
    beside = excluded_file(path)
    return read_table(beside, LEFT_OUT) if beside.exists() else pd.DataFrame(columns=LEFT_OUT)


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    files.refuse_other_separators(path)
    with files.explained(path, "read"):
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)
        except ValueError as error:
            raise FileError(f"{path} is damaged ({str(error).strip()}); restore it or start over.") from error
    for name in {"path", "class"} & set(table.columns):
        table[name] = table[name].map(composed)
    if "group" in table.columns:
        table["group"] = identifiers(path, "group", table["group"])
    whole = set(columns) <= set(table.columns) and not table[columns].isin([""]).to_numpy().any()
    if not whole or not table["sha256"].str.fullmatch("[0-9a-f]{64}").all():
        raise FileError(f"{path} must have whole rows of {', '.join(columns)}; restore it or start over.")
    twice = list(table["path"][table["path"].duplicated()])
    if twice:
        raise FileError(f"{path} names {len(twice)} images twice: {listed(twice)}; restore it or start over.")
    # Our own groups are numbers. Their numerical order determines the order of resamples.
    with suppress(ValueError):
        table["group"] = pd.to_numeric(table["group"])
    return table[columns]


def changes(split: Split, listing: Listing) -> list[str]:
    """The differences of a listing from a split, in words: files that changed, vanished, appeared or changed class."""
    remembered = {}
    for table in (split.used, split.left_out):
        for path, label, digest in zip(table["path"], table["class"], table["sha256"], strict=True):
            remembered[composed(path)] = (label, digest)
    now = {composed(image.path): (image.label, image.sha256) for image in listing.images}
    masks = set(map(composed, listing.mask_paths))
    return [
        *(f"{path} {'is a mask' if path in masks else 'vanished'}" for path in sorted(remembered) if path not in now),
        *(f"{path} appeared" for path in now if path not in remembered),
        *(f"{path} changed" for path, value in now.items() if remembered.get(path, value) != value),
    ]


def make_split(
    listing: Listing,
    groups: Integers,
    *,
    strategy: Strategy,
    fractions: tuple[float, ...],
    conflicts: Conflicts,
    seed: int,
    twin_groups: Integers | None = None,
) -> Split:
    """Assign every image of `listing` to training, validation or test.

    A folder that is already split keeps its split. The strategy "grouped" puts each group on one side, stratified by
    class, as close to `fractions` as the groups allow. "random" is the plain stratified split of the published recipe.
    Conflicts are near-duplicates with two labels. `twin_groups` holds the groups of near-duplicates if `groups` also
    joins the images of a patient, who may have both labels.

    Raises:
        DataError: a class has too few groups for every split to get one.
    """
    table = pd.DataFrame(
        {
            "path": [image.path for image in listing.images],
            "class": [image.label for image in listing.images],
            "group": groups,
            "split": [image.split for image in listing.images],
            "sha256": [image.sha256 for image in listing.images],
        }
    )
    pictures = groups if twin_groups is None else twin_groups
    mixed = table.groupby(pictures)["class"].transform("nunique") > 1
    out = mixed if conflicts == "exclude" and not listing.is_split else mixed & False
    left_out = table[out].assign(reason="its group carries two labels")[LEFT_OUT].reset_index(drop=True)
    used = table[~out].reset_index(drop=True)
    if not listing.is_split:
        labels = np.asarray(pd.Categorical(used["class"], categories=list(listing.classes)).codes, dtype=np.int64)
        _check_sizes(used, listing)
        shares = np.asarray(fractions)
        assign = grouped if strategy == "grouped" else random
        sides = assign(labels, used["group"].to_numpy(), shares, seed)
        used["split"] = np.asarray(SPLITS)[sides]
        _check_sides(used, listing, fractions)
    return Split(used, left_out)


def _check_sizes(used: pd.DataFrame, listing: Listing) -> None:
    for label in listing.classes:
        rows = used[used["class"] == label]
        count = rows["group"].nunique()
        if count < 2 * len(SPLITS):
            raise DataError(
                f"Class {label} in {listing.root} has {len(rows)} usable images in {count} groups of near-duplicates; "
                f"a split needs at least {2 * len(SPLITS)} groups in every class: add images or leave the class out."
            )


def _check_sides(used: pd.DataFrame, listing: Listing, fractions: tuple[float, ...]) -> None:
    """Refuse a split with a side that lacks a class, which large groups or extreme fractions can cause."""
    for split in SPLITS:
        absent = sorted(set(listing.classes) - set(used.loc[used["split"] == split, "class"]))
        if absent:
            raise DataError(
                f"The {split} split of {listing.root} gets no image of class {', '.join(absent)} with the fractions "
                f"{fractions}; choose other --fractions, or another --split-seed."
            )


def grouped(labels: Integers, groups: Integers, shares: NDArray[np.float64], seed: int | tuple[int, ...]) -> Integers:
    """A side (0 training, 1 validation, 2 test) for every image, the same for all images of a group.

    Large groups are placed first, each on a random side that has room for it; more room makes a side more likely. The
    many small groups then fill the sides to their exact sizes.
    """
    generator = np.random.default_rng(seed)
    _, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((members.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (members, labels), 1)
    room = _whole_shares(counts.sum(axis=0), shares)
    order = generator.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    side = np.zeros(len(counts), dtype=np.int64)
    for group in order:
        present = counts[group] > 0
        fits = (room[:, present] >= counts[group, present]).all(axis=1)
        space = room[:, present].sum(axis=1).clip(min=0) * fits
        if fits.any():
            side[group] = generator.choice(len(shares), p=space / space.sum())
        else:
            side[group] = room[:, present].sum(axis=1).argmax()
        room[side[group]] -= counts[group]
    return np.asarray(side[members])


def _whole_shares(totals: Integers, shares: NDArray[np.float64]) -> Integers:
    """The number of images of each class on each side: (sides, classes). Validation and test get at least one each."""
    evaluation = np.maximum(1, np.rint(np.outer(shares[1:], totals))).astype(np.int64)
    return np.vstack([totals - evaluation.sum(axis=0), evaluation])


def random(labels: Integers, groups: Integers, shares: NDArray[np.float64], seed: int) -> Integers:  # noqa: ARG001
    """A side for every image by two stratified draws, in the same way as the published recipe. Groups are ignored."""
    # Most commands read a split that exists, and need not wait for scikit-learn.
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    share = shares[1] / (shares[1] + shares[2])
    try:
        _, rest = train_test_split(rows, train_size=shares[0], stratify=labels, random_state=seed)
        validation, test = train_test_split(rest, train_size=share, stratify=labels[rest], random_state=seed)
    except ValueError as error:
        raise DataError(
            f"{len(labels)} images cannot be split into {', '.join(f'{s:g}' for s in shares)} with every class "
            f"everywhere ({str(error).rstrip('.')}); choose other --fractions."
        ) from error
    side = np.zeros(len(labels), dtype=np.int64)
    side[validation] = 1
    side[test] = 2
    return side
