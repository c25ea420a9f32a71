"""The comparison of two finished runs on one split, or of two cross-validations on the same folds, image by image."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from busi_tune import results
from busi_tune.config import Config
from busi_tune.data.folds import read_folds
from busi_tune.data.split import read_split
from busi_tune.errors import RunError, listed
from busi_tune.evaluation.verdict import answers_of, compare, with_advice
from busi_tune.results import (
    CROSSVAL,
    FOLDS,
    IDENTITY,
    METRICS,
    NESTED,
    POOLED,
    SPLIT,
    CompareResult,
    CrossvalIdentityFile,
    NestedIdentityFile,
    RunIdentityFile,
)


@dataclass(frozen=True)
class _Tested:
    """A finished folder. `roles` has path, class, group and part (or fold) of all images, `rows` the predicted ones."""

    folder: Path
    kind: str
    roles: pd.DataFrame
    rows: pd.DataFrame
    positive: str | None


def compare_folders(first: Path, second: Path) -> CompareResult:
    """Compare the predictions in two folders. Differences are second minus first.

    Raises:
        RunError: a folder is not finished, or the folders have different splits or folds.
        FileError: a file in the folders cannot be read.
    """
    one, other = _answered(first), _answered(second)
    if one.kind != other.kind:
        raise RunError(f"{first} is a {one.kind} and {second} a {other.kind}; compare two of a kind.")
    _check_alike(one, other)
    classes = tuple(sorted(set(one.roles["class"])))
    found = compare(
        answers_of(first, one.rows, classes, one.positive),
        answers_of(second, one.rows, classes, one.positive),
        one.rows["group"].to_numpy(),
        list(one.rows["path"]),
        names=(f"that of {first}", f"accuracy of {second}"),
    )
    told = with_advice(found, len(one.roles), "`busi-tune crossval` of both")
    return {"schema": results.SCHEMAS[CompareResult], "first": str(first), "second": str(second), **told}


def _answered(folder: Path) -> _Tested:
    if (folder / POOLED).exists():
        folds = read_folds(folder / FOLDS).used
        roles = folds.rename(columns={"fold": "part"})
        # A nested search pools its predictions in the same files as a cross-validation.
        nested = (folder / NESTED).exists()
        positive = (
            _positive(folder / NESTED, NestedIdentityFile)
            if nested
            else _positive(folder / CROSSVAL, CrossvalIdentityFile)
        )
        return _Tested(folder, "cross-validation", roles, folds, positive)
    if (folder / METRICS).exists():
        split = read_split(folder / SPLIT)
        roles = split.used.rename(columns={"split": "part"})
        return _Tested(folder, "run", roles, split.rows("test"), _positive(folder / IDENTITY, RunIdentityFile))
    raise RunError(f"{folder} is neither a finished run nor a finished cross-validation; finish it, or name another.")


def _positive(
    path: Path, kind: type[CrossvalIdentityFile] | type[NestedIdentityFile] | type[RunIdentityFile]
) -> str | None:
    """The class that the configuration names as the disease."""
    return Config.from_dict(results.read(path, kind)["config"], source=str(path)).positive


def _check_alike(one: _Tested, other: _Tested) -> None:
    columns = ["path", "class", "part", "sha256"]
    either = one.roles[columns].merge(other.roles[columns], how="outer", indicator=True)
    different = sorted(set(either.loc[either["_merge"] != "both", "path"]))
    if different:
        what = "folds" if one.kind == "cross-validation" else "split"
        raise RunError(
            f"{one.folder} and {other.folder} do not have the same {what}: {listed(different)} differ; "
            f"make one of them again with the other's {what}."
        )
