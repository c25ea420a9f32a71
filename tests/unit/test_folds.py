"""Cross-validation folds: whole groups, stratified classes, a file format, and refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from busi_tune.config import Config
from busi_tune.data.dataset import open_dataset
from busi_tune.data.folds import Folds, make_folds, read_folds
from busi_tune.data.split import LEFT_OUT, Split
from busi_tune.errors import DataError, FileError
from busi_tune.progress import Silent
from image_folders import BUSI

PARTS = ("train", "validation", "test")


def split_of(labels: list[str], groups: list[int]) -> Split:
    """A split of drawn images, all in training."""
    table = pd.DataFrame(
        {
            "path": [f"{label}/{number:04d}.png" for number, label in enumerate(labels)],
            "class": labels,
            "group": groups,
            "split": "train",
            "sha256": [f"{number:064x}" for number in range(len(labels))],
        }
    )
    return Split(table, pd.DataFrame(columns=LEFT_OUT))


def random_split(seed: int, images: int = 240) -> Split:
    """Images of three classes in one-class groups of one to six, like near-duplicates."""
    generator = np.random.default_rng(seed)
    labels: list[str] = []
    groups: list[int] = []
    while len(labels) < images:
        size = int(generator.integers(1, 7))
        labels += [str(generator.choice(["benign", "malignant", "normal"], p=[0.5, 0.3, 0.2]))] * size
        groups += [len(set(groups))] * size
    return split_of(labels, groups)


@pytest.fixture(scope="module")
def busi() -> Split:
    return open_dataset(BUSI, Config(weights="none"), Silent(), decode=False).split


def check(folds: Folds, split: Split, within: float) -> None:
    """Checks that groups are whole, each image is in one fold, and class shares differ by `within` at most."""
    used = folds.used
    assert list(used["path"]) == list(split.used["path"])
    assert (used.groupby("group")["fold"].nunique() == 1).all()
    shares = used.groupby("fold")["class"].value_counts(normalize=True).unstack()
    assert float((shares - used["class"].value_counts(normalize=True)).abs().to_numpy().max()) <= within


@pytest.mark.slow
def test_no_group_crosses_folds_of_the_real_images_and_class_shares_are_within_two_points(busi: Split) -> None:
    seen = set()
    for seed in range(200):
        folds = make_folds(busi, 5, seed)
        check(folds, busi, within=0.02)
        seen.add(folds.fingerprint())
    assert len(seen) == 200
    assert make_folds(busi, 5, 3).fingerprint() == make_folds(busi, 5, 3).fingerprint()


@pytest.mark.parametrize("seed", range(10))
def test_no_group_crosses_folds_of_random_groupings(seed: int) -> None:
    split = random_split(seed)
    folds = make_folds(split, 4, seed)
    check(folds, split, within=0.05)
    for fold in range(1, 5):
        found = folds.split(fold, 0.2, seed)
        assert set(found.rows("test")["path"]) == set(folds.used.loc[folds.used["fold"] == fold, "path"])
        sides = found.used.groupby("group")["split"].nunique()
        assert (sides == 1).all()
        assert set(found.used["split"]) == set(PARTS)


def test_each_image_is_tested_once_and_validation_comes_from_the_training_part(busi: Split) -> None:
    folds = make_folds(busi, 5, 0)
    splits = [folds.split(fold, 0.15 / 0.85, 0) for fold in range(1, 6)]
    tested = [path for split in splits for path in split.rows("test")["path"]]
    assert sorted(tested) == sorted(busi.used["path"])
    for split in splits:
        assert abs(len(split.rows("validation")) / (len(busi.used) * 0.8) - 0.15 / 0.85) < 0.01
        assert not split.has_twin_in_training("test").any()
        assert not split.has_twin_in_training("validation").any()


def test_folds_travel_as_a_file(busi: Split, tmp_path: Path) -> None:
    folds = make_folds(busi, 5, 0)
    folds.write(tmp_path / "folds.csv")
    assert read_folds(tmp_path / "folds.csv").fingerprint() == folds.fingerprint()
    assert len(read_folds(tmp_path / "folds.csv").left_out) == 20


def test_more_folds_than_groups_of_a_class_are_refused() -> None:
    split = split_of(["benign"] * 8 + ["normal"] * 6, [*range(8), 8, 8, 9, 9, 10, 10])
    with pytest.raises(DataError, match=r"^4 folds need as many groups .* in every class, and normal has 3; ask"):
        make_folds(split, 4, 0)


def test_a_part_without_a_class_is_refused() -> None:
    split = split_of(["benign"] * 8 + ["normal"] * 4, [*range(8), 8, 9, 9, 9])
    folds = make_folds(split, 2, 0)
    with pytest.raises(DataError, match=r"^Fold 1 of 2 gets no image of class normal in its (train|validation) part; "):
        folds.split(1, 0.5, 0)


@pytest.mark.parametrize(
    ("folds", "groups", "problem"),
    [
        ([1, 1, 1], [0, 1, 2], "must number its folds from 1 on"),
        ([1, 3, 1], [0, 1, 2], "must number its folds from 1 on"),
        ([0, 1, 2], [0, 1, 2], "must number its folds from 1 on"),
        ([1.5, 1, 2], [0, 1, 2], "must number its folds from 1 on"),
        ([1, 2, 2], [7, 7, 8], "has group 7 in 2 folds"),
    ],
)
def test_a_file_of_odd_folds_is_refused(folds: list[float], groups: list[int], problem: str, tmp_path: Path) -> None:
    table = split_of(["benign", "malignant", "normal"], groups).used.drop(columns="split").assign(fold=folds)
    table.to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(FileError, match=problem):
        read_folds(tmp_path / "folds.csv")
