"""Groups of images that must stay on one side of a split: near-duplicates, and images of one patient."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune import files
from busi_tune.errors import DataError, listed
from busi_tune.names import composed, identifier_key

Integers = NDArray[np.int64]


def group_numbers(count: int, first: Integers, second: Integers) -> Integers:
    """The group number of each of `count` images: connected components of the pairs, numbered by first image."""
    # Commands that read a split's groups need not wait for these.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, leader, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(leader))
    return np.asarray(rank[inverse], dtype=np.int64)


def identifiers(path: Path, column: str, given: pd.Series) -> pd.Series:
    """The identifiers in a column of the file `path`, without blanks around them.

    Raises:
        DataError: two identifiers differ only by case, blanks or leading zeros, and may mean the same patient.
    """
    stripped = given.astype(str).map(composed).str.strip()
    known: dict[str, str] = {}
    for name in sorted(set(stripped)):
        other = known.setdefault(identifier_key(name), name)
        if other != name:
            raise DataError(
                f"{path} has {other!r} and {name!r} in its column {column}, which differ only by case, blanks or "
                "leading zeros: spell them alike if they are one group, or rename one if they are two."
            )
    return stripped


def path_table(path: Path, column: str) -> pd.DataFrame:
    """The text columns of a CSV file that has at least the columns path and `column`.

    Raises:
        DataError: the file has other columns.
        FileError: the file cannot be read, or its columns are not separated by commas.
    """
    files.refuse_other_separators(path)
    with files.explained(path, "read"):
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:
            raise DataError(f"{path} is not a CSV file ({str(error).strip()}); correct it.") from error
    if not {"path", column} <= set(table.columns):
        raise DataError(f"{path} must have the columns path and {column}, not {', '.join(table.columns)}.")
    return table


def given_pairs(path: Path, paths: list[str]) -> tuple[Integers, Integers]:
    """Pairs of the first image of a group and each image of it, from a CSV with the columns path and group.

    Both are row numbers in `paths`. Images that the CSV does not name, or names without a group, are in no pair. Paths
    are compared in the same Unicode form, and groups without blanks around them.

    Raises:
        DataError: the file has other columns, names an unknown image, or names an image twice; or two of its groups
            differ only by case, blanks or leading zeros.
        FileError: the file cannot be read, or its columns are not separated by commas.
    """
    table = path_table(path, "group")
    number = {composed(name): row for row, name in enumerate(paths)}
    table["path"] = table["path"].map(composed)
    unknown = [name for name in table["path"] if name not in number]
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} images that are not in the data folder: {listed(unknown)}; "
            "paths are relative to it, with /."
        )
    twice = list(table["path"][table["path"].duplicated()])
    if twice:
        raise DataError(f"{path} names {len(twice)} images twice: {listed(twice)}; give each one group.")
    table["group"] = identifiers(path, "group", table["group"])
    table = table[table["group"] != ""]
    rows = table["path"].map(number)
    first = rows.groupby(table["group"]).transform("min")
    return np.asarray(first, dtype=np.int64), np.asarray(rows, dtype=np.int64)
