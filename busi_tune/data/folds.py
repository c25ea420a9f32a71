"""The folds of a cross-validation: whole groups, stratified by class, and the CSV file that holds them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from busi_tune.data.split import Roles, Split, grouped, read_left_out, read_table
from busi_tune.errors import DataError, FileError

COLUMNS = ["path", "class", "group", "fold", "sha256"]


@dataclass(frozen=True)
class Folds(Roles):
    """The fold of each image, numbered from 1. The table `used` has the columns `COLUMNS`."""

    @property
    def count(self) -> int:
        """The number of folds."""
        return int(self.used["fold"].max())

    def split(self, fold: int, share: float, seed: int) -> Split:
        """The split whose test part is `fold`.

        The validation part is `share` of the other images, drawn in whole groups and stratified by class.

        Raises:
            DataError: a part of the split gets no image of a class.
        """
        used = self.used.assign(split="test")[["path", "class", "group", "split", "sha256"]]
        rest = self.used["fold"] != fold
        codes = pd.Categorical(used["class"]).codes.astype(np.int64)
        sides = grouped(codes[rest], used["group"].to_numpy()[rest], np.array([1 - share, share]), seed=(seed, fold))
        used.loc[rest, "split"] = np.array(["train", "validation"])[sides]
        for part in ("train", "validation", "test"):
            absent = sorted(set(used["class"]) - set(used.loc[used["split"] == part, "class"]))
            if absent:
                raise DataError(
                    f"Fold {fold} of {self.count} gets no image of class {', '.join(absent)} in its {part} part; "
                    "ask for fewer --folds, or give another --split-seed."
                )
        return Split(used, self.left_out)


def make_folds(split: Split, count: int, seed: int) -> Folds:
    """Draw `count` folds of the images that `split` uses. The parts of `split` are ignored.

    Raises:
        DataError: a class has fewer groups than there are folds.
    """
    used = split.used
    groups = used.groupby("class")["group"].nunique()
    fewest = groups.idxmin()
    if groups.min() < count:
        raise DataError(
            f"{count} folds need as many groups of near-duplicates in every class, and {fewest} has "
            f"{groups.min()}; ask for fewer --folds."
        )
    # Most commands read folds that exist, and need not wait for scikit-learn.
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.zeros(len(used), dtype=np.int64)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, rows) in enumerate(splitter.split(used, used["class"], used["group"]), start=1):
        folds[rows] = number
    table = used.assign(fold=folds)[COLUMNS]
    return Folds(table, split.left_out)


def read_folds(path: Path) -> Folds:
    """Read folds that `Folds.write` wrote. Other columns are ignored.

    Raises:
        FileError: the file is missing, damaged, lacks a column, has only one fold, or has a group in several folds.
    """
    used = read_table(path, COLUMNS)
    numbers = used["fold"]
    whole = pd.api.types.is_integer_dtype(numbers) and set(numbers) == set(range(1, len(set(numbers)) + 1))
    if not whole or numbers.nunique() < 2:
        raise FileError(f"{path} must number its folds from 1 on, at least two, in the column fold; restore it.")
    torn = used.groupby("group")["fold"].nunique()
    if (torn > 1).any():
        raise FileError(f"{path} has group {torn.idxmax()} in {torn.max()} folds; a group must be in one fold.")
    return Folds(used, read_left_out(path))
