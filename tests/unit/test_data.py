"""A data folder: its images, their array, and the near-duplicates among them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune import files, images
from busi_tune.data.digests import cache_folder
from busi_tune.data.listing import Listing, find_images
from busi_tune.data.pixel_cache import decoded
from busi_tune.errors import DataError
from busi_tune.progress import Silent
from image_folders import BUSI, needs_busi


def paint(path: Path, seed: int) -> None:
    """Writes a small noise picture that depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def folder_of(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        paint(root / name, seed)
    return root


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "busi-tune"


def test_phantoms_are_found_without_their_masks(phantoms: Path) -> None:
    listing = find_images(phantoms)
    everything = [path for path in phantoms.rglob("*") if path.suffix in (".png", ".jpg")]
    wanted = sorted(path.relative_to(phantoms).as_posix() for path in everything if "_mask" not in path.name)
    assert [image.path for image in listing.images] == wanted
    assert listing.masks == len(everything) - len(wanted) == 82
    assert listing.classes == ("benign", "malignant", "normal")
    assert not listing.is_split
    for image in listing.images:
        assert image.label == image.path.partition("/")[0]
        assert image.sha256 == files.sha256(phantoms / image.path)
        assert image.split == ""


def test_all_broken_links_are_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", [f"{c}/{k}.png" for c in "ab" for k in range(3)])
    for name in ("a/7.png", "b/9.png"):
        (root / name).symlink_to("nowhere.png")
    with pytest.raises(DataError) as error:
        find_images(root)
    assert str(error.value) == (
        f"2 of 8 images in {root} cannot be read: a/7.png (no such file or directory), "
        "b/9.png (no such file or directory); restore or remove them."
    )


def test_masks_of_the_original_data_set_are_counted_and_left_out(tmp_path: Path) -> None:
    names = ["benign (1).png", "benign (1)_mask.png", "benign (1)_mask_1.png", "benign (1)_MASK_2.PNG"]
    folder_of(tmp_path, [f"benign/{name}" for name in names] + ["normal/normal (1).png", "normal/deeper/x.jpg"])
    listing = find_images(tmp_path)
    assert [image.path for image in listing.images] == [
        "benign/benign (1).png",
        "normal/deeper/x.jpg",
        "normal/normal (1).png",
    ]
    assert listing.masks == 3


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "validation", "TEST"), ("train", "valid", "test")]
)
def test_a_folder_that_is_split_is_taken_as_it_is(tmp_path: Path, names: tuple[str, str, str]) -> None:
    folder_of(tmp_path, [f"{name}/{label}/{k}.png" for name in names for label in ("b", "a") for k in range(2)])
    listing = find_images(tmp_path)
    assert listing.is_split
    assert listing.classes == ("a", "b")
    roles = dict(zip(names, ("train", "validation", "test"), strict=True))
    assert len(listing.images) == 12
    assert all(image.split == roles[image.path.partition("/")[0]] for image in listing.images)
    assert all(image.label == image.path.split("/")[1] for image in listing.images)


def leave(*names: str) -> Callable[[Path], None]:
    """Returns a function that makes a folder with these entries; a name that ends in `/` is an empty folder."""

    def make(root: Path) -> None:
        for name in names:
            (root / name).mkdir(parents=True) if name.endswith("/") else paint(root / name, 0)

    return make


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (leave(), "{root} has 0 class folders: it needs one folder of images for each class, at least two."),
        (leave("a.png"), "{root} has 0 class folders: it needs one folder of images for each class, at least two."),
        (
            leave("a/1.png", ".hidden/1.png", "__MACOSX/1.png"),
            "{root} has 1 class folders: it needs one folder of images for each class, at least two.",
        ),
        (
            leave("Dataset/benign/1.png", "Dataset/normal/1.png"),
            "{root} has 1 class folders: did you mean {root}/Dataset?",
        ),
        (leave("a/1.png", "b/"), "{root} has no images of class b; add some or remove the folder."),
        (leave("a/1.png", "b/", "c/"), "{root} has no images of class b, c; add some or remove the folder."),
        (
            leave("a/1.png", "b/1_mask.png", "c/"),
            "{root}/b holds only masks, by their names and pixels (1_mask.png): rename those that are "
            "images, or remove the folder.",
        ),
        (
            leave("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"),
            "{root} holds test, train: a folder that is already split needs train, val and test and nothing "
            "else; move some images of each class into {root}/validation, with the same class folders, or put all "
            "images of a class into one folder and let busi-tune split them.",
        ),
        (
            leave("train/a/1.png", "val/a/1.png", "test/a/1.png", "spare/a/1.png"),
            "{root} holds spare, test, train, val: a folder that is already split needs train, val and test and "
            "nothing else; move spare elsewhere.",
        ),
        (
            leave("train/a/1.png", "val/a/1.png", "valid/a/1.png", "test/a/1.png"),
            "{root} holds test, train, val, valid: a folder that is already split needs train, val and test and "
            "nothing else; join the folders that mean the same.",
        ),
        (
            leave("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "test/a/1.png"),
            "{root}/test has no folder for b; every split needs every class.",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], None], problem: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(DataError) as error:
        find_images(root)
    assert str(error.value) == problem.format(root=root)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("name", ["none", "file.png"])
def test_no_such_folder(tmp_path: Path, name: str) -> None:
    paint(tmp_path / "file.png", 0)
    root = tmp_path / name
    with pytest.raises(DataError) as error:
        find_images(root)
    assert str(error.value) == (
        f"{root} is not a folder; name the folder that holds one folder of images for each class."
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
@pytest.mark.parametrize("odd", ["\udcff", "\n", "\r"])
@pytest.mark.parametrize("name", ["a{odd}/1.png", "a/in{odd}ner/1.png", "a/1{odd}.png"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_names_that_no_table_can_hold(tmp_path: Path, name: str, odd: str, split: str) -> None:
    name = name.format(odd=odd)
    for side in (split, "val/", "test/") if split else ("",):
        for label in (name.partition("/")[0], "b"):
            paint(tmp_path / side / label / "0.png", 0)
    paint(tmp_path / split / name, 1)
    with pytest.raises(DataError) as error:
        find_images(tmp_path)
    assert repr(split + name) in str(error.value)
    assert str(error.value).endswith("; rename them.")
    assert " hold characters that no CSV can hold: " in str(error.value)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
def test_a_data_folder_whose_own_name_no_table_can_hold(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "da\udcffta", ["a/0.png", "b/0.png"])
    with pytest.raises(DataError) as error:
        find_images(root)
    assert str(error.value) == (
        f"The data folder's name, {str(root)!r}, holds characters that no CSV can hold; rename it."
    )


@pytest.fixture
def small(tmp_path: Path) -> Listing:
    """Nine images in two classes."""
    return find_images(folder_of(tmp_path / "data", [f"{c}/{k}.png" for c in "ab" for k in range(4)] + ["a/x.jpg"]))


@pytest.mark.parametrize("size", [16, 33])
def test_decoded_holds_what_read_gives_for_every_file(own_cache: Path, small: Listing, size: int) -> None:
    array = decoded(small, size, Silent())
    assert array.shape == (9, size, size, 3)
    assert array.dtype == np.uint8
    for row, image in enumerate(small.images):
        np.testing.assert_array_equal(array[row], images.read(small.root / image.path, size))
    assert cache_folder() == own_cache
    assert sorted(path.suffix for path in own_cache.glob("[!.]*")) == [".mark", ".npy", ".sha256"]


def test_a_second_call_takes_the_first_ones_file(own_cache: Path, small: Listing) -> None:
    first = decoded(small, 16, Silent())
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in own_cache.glob("[!.]*")}
    second = decoded(small, 16, Silent())
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in own_cache.glob("[!.]*")} == before
    np.testing.assert_array_equal(first, second)


def test_each_size_and_each_content_has_a_file_of_its_own(own_cache: Path, small: Listing) -> None:
    decoded(small, 16, Silent())
    decoded(small, 20, Silent())
    paint(small.root / "a/0.png", 99)
    changed = find_images(small.root)
    np.testing.assert_array_equal(decoded(changed, 16, Silent())[0], images.read(small.root / "a/0.png", 16))
    assert len(list(own_cache.glob("*.npy"))) == 3


def test_what_a_caller_writes_into_the_array_stays_with_that_caller(own_cache: Path, small: Listing) -> None:
    array = decoded(small, 16, Silent())
    kept = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(decoded(small, 16, Silent()), kept)
    assert len(list(own_cache.glob("[!.]*"))) == 3


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def unseal(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut, unseal, Path.unlink])
def test_a_damaged_cache_is_decoded_anew(own_cache: Path, small: Listing, damage: Callable[[Path], None]) -> None:
    kept = decoded(small, 16, Silent()).copy()
    (array,) = own_cache.glob("*.npy")
    damage(array)
    np.testing.assert_array_equal(decoded(small, 16, Silent()), kept)
    assert sorted(path.suffix for path in own_cache.glob("[!.]*")) == [".mark", ".npy", ".sha256"]


@pytest.mark.parametrize("broken", [1, 10, 12])
def test_all_unreadable_files_are_told_ten_by_name(tmp_path: Path, own_cache: Path, broken: int) -> None:
    root = folder_of(tmp_path / "data", [f"{c}/{k:02}.png" for c in "ab" for k in range(10)])
    names = [f"{c}/{k:02}.png" for c in "ab" for k in range(10)][:broken]
    for name in names:
        (root / name).write_bytes(b"")
    with pytest.raises(DataError) as error:
        decoded(find_images(root), 16, Silent())
    told = ", ".join(f"{name} (empty)" for name in names[:10]) + (" and 2 more" if broken == 12 else "")
    assert str(error.value) == (f"{broken} of 20 images in {root} cannot be read: {told}; restore or remove them.")
    assert list(own_cache.glob("[!.]*")) == []


@needs_busi
def test_busi_is_found_whole() -> None:
    listing = find_images(BUSI)
    counts = {label: sum(image.label == label for image in listing.images) for label in listing.classes}
    assert counts == {"benign": 437, "malignant": 210, "normal": 133}
    same = [
        image.path for image in listing.images if "(433)" in image.path or image.path.endswith("malignant (145).png")
    ]
    content = {image.path: image.sha256 for image in listing.images}
    assert content["benign/benign (433).png"] == content["malignant/malignant (145).png"]
    assert len(same) == 2
