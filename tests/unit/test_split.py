"""The split: whole groups, requested shares, reported conflicts, and a CSV with all of it."""

import random
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from busi_tune.config import Config
from busi_tune.data.class_folders import SPLITS
from busi_tune.data.dataset import balanced_weights, effective_prior, open_dataset, twins_of
from busi_tune.data.groups import group_numbers
from busi_tune.data.listing import ImageFile, Listing, find_images
from busi_tune.data.pixel_cache import decoded
from busi_tune.data.split import Conflicts, Split, Strategy, changes, make_split, read_split
from busi_tune.errors import DataError, FileError
from busi_tune.files import sha256_bytes
from busi_tune.progress import Silent
from busi_tune.training.batches import DeviceImages, class_weights, mixed_seed, training_batches
from image_folders import BUSI, needs_busi
from recorder import Recorder

SHARES = (0.7, 0.15, 0.15)
BUSI_COUNTS = {"benign": 437, "malignant": 210, "normal": 133}


def listing_of(labels: Sequence[str], splits: Sequence[str] = ()) -> Listing:
    """A listing of images without files: a split needs only names and hashes."""
    rows = [
        ImageFile(f"{label}/{k:04}.png", label, splits[k] if splits else "", sha256_bytes(f"{k}".encode()))
        for k, label in enumerate(labels)
    ]
    return Listing(Path("data"), tuple(sorted(set(labels))), tuple(rows), 0)


def split_of(
    labels: Sequence[str],
    numbers: Sequence[int] | NDArray[np.int64],
    strategy: Strategy = "grouped",
    *,
    fractions: tuple[float, ...] = SHARES,
    conflicts: Conflicts = "exclude",
    seed: int = 0,
) -> Split:
    return make_split(
        listing_of(labels),
        np.asarray(numbers, dtype=np.int64),
        strategy=strategy,
        fractions=fractions,
        conflicts=conflicts,
        seed=seed,
    )


def like_busi(seed: int) -> tuple[list[str], NDArray[np.int64]]:
    """Labels and groups with BUSI's structure: mostly single images, some twins, a few larger groups and mixed ones."""
    generator = np.random.default_rng(seed)
    labels = [label for label, count in BUSI_COUNTS.items() for _ in range(count)]
    numbers: list[int] = []
    for count in BUSI_COUNTS.values():
        left = count
        while left:
            size = min(left, int(generator.choice([1, 2, 3, 5, 9], p=[0.78, 0.15, 0.04, 0.02, 0.01])))
            numbers += [max(numbers, default=-1) + 1] * size
            left -= size
    joined = np.array(numbers)
    for _ in range(8):
        first, second = generator.choice(len(joined), size=2, replace=False)
        joined[joined == joined[second]] = joined[first]
    return labels, joined


def unevenness(split: Split, fractions: tuple[float, ...] = SHARES) -> float:
    """The largest deviation of a class's share in a part from the requested share."""
    worst = 0.0
    for _, rows in split.used.groupby("class"):
        given = [float((rows["split"] == name).mean()) for name in SPLITS]
        worst = max(worst, *(abs(share - wanted) for share, wanted in zip(given, fractions, strict=True)))
    return worst


def is_whole(split: Split) -> bool:
    return bool((split.used.groupby("group")["split"].nunique() == 1).all())


@pytest.mark.slow
@pytest.mark.parametrize(("conflicts", "seeds"), [("exclude", range(200)), ("keep", range(50))])
def test_groups_stay_whole_and_shares_are_met_whatever_the_groups(conflicts: Conflicts, seeds: range) -> None:
    for seed in seeds:
        labels, numbers = like_busi(seed)
        split = split_of(labels, numbers, seed=seed, conflicts=conflicts)
        assert is_whole(split), seed
        assert not split.has_twin_in_training("test").any(), seed
        assert unevenness(split) <= 0.02, seed
        assert len(split.used) + len(split.left_out) == 780, seed


@pytest.fixture(scope="module")
def busi() -> tuple[Listing, NDArray[np.int64]]:
    """The real data set and its groups at the default similarity."""
    listing = find_images(BUSI)
    twins = twins_of(listing, Config().similarity, Silent())
    return listing, group_numbers(len(listing.images), twins["first"].to_numpy(), twins["second"].to_numpy())


@pytest.mark.slow
@needs_busi
def test_groups_stay_whole_and_shares_are_met_on_busi(busi: tuple[Listing, NDArray[np.int64]]) -> None:
    fingerprints = set()
    for seed in range(200):
        split = make_split(*busi, strategy="grouped", fractions=SHARES, conflicts="exclude", seed=seed)
        assert is_whole(split), seed
        assert unevenness(split) <= 0.02, seed
        assert "malignant/malignant (145).png" in set(split.left_out["path"])
        fingerprints.add(split.fingerprint())
    assert len(fingerprints) == 200


@needs_busi
def test_the_plain_split_of_busi_leaks_as_measured(busi: tuple[Listing, NDArray[np.int64]]) -> None:
    """Without cropped twins, 31 % of the test images leak, and with them 33 %: means of 50 seeds, conflicts kept."""
    leaks = [
        make_split(*busi, strategy="random", fractions=SHARES, conflicts="keep", seed=seed)
        .has_twin_in_training("test")
        .mean()
        for seed in range(50)
    ]
    assert np.mean(leaks) == pytest.approx(0.33, abs=0.02)


@pytest.mark.slow
@needs_busi
def test_no_pair_of_twins_of_busi_crosses_splits(busi: tuple[Listing, NDArray[np.int64]]) -> None:
    listing, numbers = busi
    twins = twins_of(listing, Config().similarity, Silent())
    row = {image.path: number for number, image in enumerate(listing.images)}
    for seed in range(200):
        split = make_split(listing, numbers, strategy="grouped", fractions=SHARES, conflicts="keep", seed=seed)
        side = np.empty(len(row), dtype=object)
        side[[row[path] for path in split.used["path"]]] = split.used["split"]
        assert (side[twins["first"]] == side[twins["second"]]).all(), seed


@pytest.mark.parametrize("strategy", ["grouped", "random"])
def test_a_seed_decides_the_split(strategy: Strategy) -> None:
    labels, numbers = like_busi(0)
    first, again, other = (split_of(labels, numbers, strategy, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint()
    pd.testing.assert_frame_equal(first.used, again.used)
    assert first.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.2, 0.3)])
@pytest.mark.parametrize("strategy", ["grouped", "random"])
def test_other_fractions(strategy: Strategy, fractions: tuple[float, float, float]) -> None:
    split = split_of(*like_busi(1), strategy, fractions=fractions)
    assert unevenness(split, fractions) <= 0.02


def test_the_plain_split_is_stratified_and_tells_its_leaks() -> None:
    labels, numbers = like_busi(2)
    split = split_of(labels, numbers, "random")
    test, train = split.rows("test"), split.rows("train")
    with_twin = [group in set(train["group"]) for group in test["group"]]
    assert unevenness(split) <= 0.005
    assert split.has_twin_in_training("test").tolist() == with_twin
    assert sum(with_twin) / len(test) > 0.1


def test_what_stands_in_a_split() -> None:
    labels = ["a"] * 8 + ["b"] * 8
    numbers = [0, 0, *range(1, 7), *range(7, 14), 0]
    split = split_of(labels, numbers)
    assert list(split.used.columns) == ["path", "class", "group", "split", "sha256"]
    assert list(split.left_out["path"]) == ["a/0000.png", "a/0001.png", "b/0015.png"]
    assert set(split.left_out["reason"]) == {"its group carries two labels"}
    assert list(split.used["path"]) == sorted(split.used["path"])
    assert len(split.used) == 13
    assert pd.concat([split.rows(name) for name in SPLITS]).sort_index().equals(split.used)


@pytest.mark.parametrize("strategy", ["grouped", "random"])
def test_conflicts_can_be_kept(strategy: Strategy) -> None:
    labels = ["a"] * 10 + ["b"] * 10
    numbers = [*range(10), 0, *range(11, 20)]
    kept = split_of(labels, numbers, strategy, conflicts="keep")
    assert len(kept.left_out) == 0
    assert len(kept.used) == 20
    assert list(split_of(labels, numbers, strategy).left_out["path"]) == ["a/0000.png", "b/0010.png"]
    assert kept.fingerprint() != split_of(labels, numbers, strategy).fingerprint()


@pytest.mark.parametrize("strategy", ["grouped", "random"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_six_groups_a_class_are_enough(strategy: Strategy, size: int) -> None:
    labels = [label for label in "abc" for _ in range(6 * size)]
    numbers = np.arange(18).repeat(size)
    for seed in range(20):
        split = split_of(labels, numbers, strategy, seed=seed)
        assert len(split.used[["class", "split"]].drop_duplicates()) == 9


@pytest.mark.parametrize(
    ("numbers", "images", "count"),
    [
        ([0, 1, 2, 3, 4], 5, 5),
        ([0, 0, 0, 0, 1, 2, 3, 4], 8, 5),
        ([0, 0, 0], 3, 1),
        ([0, 1, 2, 3, 4, 100], 5, 5),
    ],
)
@pytest.mark.parametrize("strategy", ["grouped", "random"])
def test_too_few_groups_in_a_class(numbers: list[int], images: int, count: int, strategy: Strategy) -> None:
    """In the last case, the sixth group is in conflict with the other class and therefore left out."""
    labels = ["few"] * len(numbers) + ["many"] * 20
    with pytest.raises(DataError) as error:
        split_of(labels, [*numbers, *range(100, 120)], strategy)
    assert str(error.value) == (
        f"Class few in data has {images} usable images in {count} groups of near-duplicates; a split needs at least "
        "6 groups in every class: add images or leave the class out."
    )


def test_a_class_of_conflicts_only() -> None:
    with pytest.raises(DataError, match="Class b in data has 0 usable images in 0 groups"):
        split_of(["a"] * 10 + ["b"] * 3, [*range(10), 0, 1, 2])


@pytest.mark.parametrize("strategy", ["grouped", "random"])
def test_a_folder_that_is_split_keeps_its_split(strategy: Strategy) -> None:
    labels = ["a", "b"] * 3
    given = ["train", "train", "validation", "validation", "test", "test"]
    numbers = np.array([0, 1, 2, 2, 0, 3])
    split = make_split(
        listing_of(labels, given), numbers, strategy=strategy, fractions=SHARES, conflicts="exclude", seed=0
    )
    assert list(split.used["split"]) == given
    assert len(split.left_out) == 0
    assert split.has_twin_in_training("test").mean() == 0.5


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def data_of(root: Path, names: Sequence[str]) -> Path:
    """A data set with a different picture for each name; files are created in the order of `names`."""
    for name in names:
        paint(root / name, zlib.crc32(name.encode()))
    return root


def test_the_order_and_the_place_on_disk_do_not_matter(tmp_path: Path, phantoms: Path) -> None:
    names = [path.relative_to(phantoms) for path in phantoms.rglob("*") if path.is_file()]
    random.Random(1).shuffle(names)
    for name in names:
        target = tmp_path / "elsewhere" / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(phantoms / name, target)
    one = open_dataset(phantoms, Config(), Silent())
    two = open_dataset(tmp_path / "elsewhere" / "copy", Config(), Silent())
    assert one.split.fingerprint() == two.split.fingerprint()
    assert one.listing.images == two.listing.images


def test_what_the_user_is_told_of_the_data(phantoms: Path) -> None:
    notices = Recorder()
    dataset = open_dataset(phantoms, Config(), notices)
    left_out = list(dataset.split.left_out["path"])
    assert 2 <= len(left_out) <= 3
    counts = ", ".join(f"{label} {count}" for label, count in dataset.listing.counts.items())
    assert notices.notices == [
        f"Classes: {counts}.",
        "82 masks left out.",
        f"{len(left_out)} images left out: near-duplicates of them carry another label. split.excluded.csv lists them.",
    ]


def test_leaks_are_told(phantoms: Path) -> None:
    for seed in range(20):
        notices = Recorder()
        dataset = open_dataset(phantoms, Config(strategy="random", split_seed=seed), notices)
        leaked = dataset.split.has_twin_in_training("test").mean()
        told = (
            f"This split leaks: {leaked:.0%} of the test images have a near-duplicate in training, "
            "so the test figures are too high."
        )
        assert (told in notices.notices) == (leaked > 0)
        if leaked > 0:
            return
    pytest.fail("no seed leaks")


def test_a_part_holds_the_images_of_its_rows(phantoms: Path) -> None:
    dataset = open_dataset(phantoms, Config(), Silent())
    images = decoded(dataset.listing, 24, Silent())
    paths = [image.path for image in dataset.listing.images]
    seen: list[str] = []
    for name in SPLITS:
        part = dataset.part(name, 24, Silent())
        assert part.paths == tuple(dataset.split.rows(name)["path"])
        assert [dataset.classes[label] for label in part.labels] == [path.partition("/")[0] for path in part.paths]
        np.testing.assert_array_equal(part.pixels(), np.stack([images[paths.index(path)] for path in part.paths]))
        seen += part.paths
    assert sorted(seen + list(dataset.split.left_out["path"])) == paths


def test_balanced_weights() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    np.testing.assert_allclose(balanced_weights(labels, 3), [10 / 18, 10 / 9, 10 / 3])


@pytest.mark.parametrize("sampler", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_the_effective_prior_is_what_a_run_of_the_sampler_gives(sampler: bool, weights: bool) -> None:
    """With BUSI's class frequencies. Each drawn image counts by the loss weight of its class."""
    labels = np.repeat([0, 1, 2], [306, 147, 93])
    images = DeviceImages(
        images=torch.zeros((len(labels), 1, 1, 3), dtype=torch.uint8),
        rows=torch.arange(len(labels)),
        labels=torch.from_numpy(labels),
        host_labels=labels,
        mean=torch.zeros(3),
        deviation=torch.ones(3),
    )
    in_loss = class_weights(labels, 3, "cpu", balanced=weights).double()
    weight, divided = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for epoch in range(60):
        for _, drawn in training_batches(images, mixed_seed(0, epoch), batch_size=32, balanced=sampler, flip=0.5):
            of_batch = torch.bincount(drawn, minlength=3) * in_loss
            weight += of_batch
            divided += of_batch / of_batch.sum()
    expected = effective_prior(labels, 3, weighted_sampler=sampler, class_weights=weights)
    np.testing.assert_allclose(weight / weight.sum(), expected, atol=0.01)
    # The loss is divided by the sum of weights of each batch, which shifts the shares slightly.
    np.testing.assert_allclose(divided / divided.sum(), expected, atol=0.01 if sampler else 0.03)
    if sampler and weights:
        np.testing.assert_allclose(expected, [0.16, 0.33, 0.52], atol=0.006)


def test_a_split_written_and_read_is_the_same(tmp_path: Path) -> None:
    split = split_of(*like_busi(5))
    split.write(tmp_path / "my.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.csv", "my.excluded.csv"]
    again = read_split(tmp_path / "my.csv")
    assert again.fingerprint() == split.fingerprint()
    assert len(again.left_out) == len(split.left_out) > 0
    assert not again.has_twin_in_training("test").any()


def test_where_nothing_is_left_out_no_list_is_written(tmp_path: Path) -> None:
    some = split_of(*like_busi(5))
    some.write(tmp_path / "my.csv")
    whole = Split(some.used, some.left_out[:0])
    whole.write(tmp_path / "my.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["my.csv"]
    assert read_split(tmp_path / "my.csv").fingerprint() == whole.fingerprint() != some.fingerprint()


def test_columns_beside_ours_are_not_looked_at(tmp_path: Path) -> None:
    split = split_of(*like_busi(5))
    split.write(tmp_path / "my.csv")
    for name in ("my.csv", "my.excluded.csv"):
        table = pd.read_csv(tmp_path / name)
        table.insert(0, "age", 50)
        table["note"] = "a, b"
        table[sorted(table.columns)].to_csv(tmp_path / name, index=False)
    again = read_split(tmp_path / "my.csv")
    assert again.fingerprint() == split.fingerprint()
    assert list(again.used.columns) == ["path", "class", "group", "split", "sha256"]


def test_a_lost_list_of_left_out_images_is_named(tmp_path: Path, phantoms: Path) -> None:
    left_out = open_dataset(phantoms, Config(), Silent()).split
    left_out.write(tmp_path / "my.csv")
    (tmp_path / "my.excluded.csv").unlink()
    names = [f"{path} appeared" for path in left_out.left_out["path"]]
    with pytest.raises(DataError) as error:
        open_dataset(phantoms, Config(strategy="file"), Silent(), split_file=tmp_path / "my.csv")
    assert str(error.value) == (
        f"{phantoms} does not have the images of the split: {', '.join(names)} ({tmp_path / 'my.excluded.csv'}, which "
        "would list images left out, is missing); restore the files, or make a new split instead of "
        f"{tmp_path / 'my.csv'}."
    )


ODD_NAMES = [
    "benign (1).png",
    "with  two spaces .png",
    "[brackets] {and} 'quotes\".png",
    "comma, semicolon; tab\t.png",
    "Größe µ 乳腺 ́.png",
    "007.png",
    "1e5.png",
    "NA.png",
    "-inf.png",
    "#hash=1+1.png",
]


@pytest.mark.parametrize("classes", [("007", "1e3"), ("NA", "nan"), ("a, b", "c [d]"), ("ü", " x"), ("True", "1.0")])
def test_odd_names_survive(tmp_path: Path, classes: tuple[str, str]) -> None:
    root = data_of(tmp_path / "data", [f"{label}/{name}" for label in classes for name in ODD_NAMES])
    dataset = open_dataset(root, Config(), Silent())
    assert dataset.classes == tuple(sorted(classes))
    dataset.split.write(tmp_path / "split.csv")
    saved = read_split(tmp_path / "split.csv")
    assert saved.fingerprint() == dataset.split.fingerprint()
    assert list(saved.used["path"]) == sorted(f"{label}/{name}" for label in classes for name in ODD_NAMES)
    assert set(saved.used["class"]) == set(classes)
    assert changes(saved, find_images(root)) == []
    assert open_dataset(root, Config(), Silent(), saved=saved).part("train", 16, Silent()).paths


def test_changes_are_noticed(tmp_path: Path) -> None:
    root = data_of(tmp_path / "data", [f"{label}/{k}.png" for label in "ab" for k in range(8)])
    split = open_dataset(root, Config(), Silent()).split
    assert changes(split, find_images(root)) == []
    (root / "a/0.png").unlink()
    (root / "b/3.png").rename(root / "a/33.png")
    paint(root / "a/5.png", 12345)
    paint(root / "b/new.png", 1)
    expected = ["a/0.png vanished", "b/3.png vanished", "a/33.png appeared", "b/new.png appeared", "a/5.png changed"]
    assert changes(split, find_images(root)) == expected
    with pytest.raises(DataError) as error:
        open_dataset(root, Config(), Silent(), saved=split)
    assert str(error.value) == (
        f"{root} does not have the images of the split: {', '.join(expected)}; restore the files, "
        "or start over with --overwrite."
    )


def test_changes_of_what_was_left_out_are_noticed() -> None:
    labels = ["a"] * 10 + ["b"] * 10
    split = split_of(labels, [*range(10), 0, *range(11, 20)])
    listing = listing_of(labels)
    assert changes(split, listing) == []
    less = Listing(listing.root, listing.classes, listing.images[1:], 0)
    assert changes(split, less) == ["a/0000.png vanished"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("split.csv", None, "could not be read: No such file or directory; fix that and run the same command again."),
        (
            "split.csv",
            f"path,class,group,split,sha256\na/1.png,a,0,training,{'0' * 64}\n",
            "must hold train, validation, test in its column split, all three, and it has 'training'.",
        ),
        (
            "split.csv",
            f"path,class,group,split,sha256\na/1.png,a,0,train,{'0' * 64}\n",
            "must hold train, validation, test in its column split, all three, and it lacks 'test'.",
        ),
        (
            "split.csv",
            "path,class,group,split,sha256\n" + 2 * f"a/1.png,a,0,train,{'0' * 64}\n",
            "names 1 images twice: a/1.png; restore it or start over.",
        ),
        (
            "split.csv",
            "path,class,split\na/1.png,a,train\n",
            "must have whole rows of path, class, group, split, sha256; restore it or start over.",
        ),
        (
            "split.csv",
            f"note,path,class,group,split,sha256\n,a/1.png,a,,train,{'0' * 64}\n",
            "must have whole rows of path, class, group, split, sha256; restore it or start over.",
        ),
        (
            "split.excluded.csv",
            "path,class,group,split,sha256\n",
            "must have whole rows of path, class, group, reason, sha256; restore it or start over.",
        ),
    ],
)
def test_a_split_that_cannot_be_read(tmp_path: Path, name: str, content: str | None, problem: str) -> None:
    split_of(*like_busi(5)).write(tmp_path / "split.csv")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(FileError) as error:
        read_split(tmp_path / "split.csv")
    assert str(error.value) == f"{tmp_path / name} {problem}"


def classes_on_each_side(config: Config, data: Path) -> list[int] | str:
    """The number of classes in each part, or the error when there is no split."""
    try:
        return list(open_dataset(data, config, Silent()).split.used.groupby("split")["class"].nunique())
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("strategy", ["grouped", "random"])
@pytest.mark.parametrize("fractions", [(0.02, 0.49, 0.49), (0.98, 0.01, 0.01)])
def test_no_side_is_left_without_a_class(
    strategy: Strategy, fractions: tuple[float, float, float], phantoms: Path
) -> None:
    found = classes_on_each_side(Config(strategy=strategy, fractions=fractions), phantoms)
    assert found == [3, 3, 3] or "choose other --fractions" in found
