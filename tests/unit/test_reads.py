"""File reads: a command reads each image once, and again in the same process only after a change."""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crashes
from busi_tune import files, images
from busi_tune.cli import exit_code
from busi_tune.data import digests
from busi_tune.data.listing import find_images
from busi_tune.data.pixel_cache import decoded, find_decoded
from busi_tune.errors import DataError
from busi_tune.progress import Silent

TRAINING = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--device", "cpu"]


def opened(root: Path, here: Path, *commands: list[str]) -> list[Counter[str]]:
    """Runs `commands` in one process in `here`, and counts for each command how often it opens each file of `root`."""
    counts = here / "counts.json"
    process = crashes.server().Process(target=count_reads, args=(str(root), str(here), commands, counts))
    process.start()
    process.join()
    assert process.exitcode == 0
    return [Counter(found) for found in json.loads(counts.read_text())]


def count_reads(root: str, here: str, commands: tuple[list[str], ...], into: Path) -> None:
    """Runs the commands and writes their counts; an exit code other than 0 ends the process with an error."""
    crashes.enter(here)
    counts: list[Counter[str]] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and counts and str(arguments[0]).startswith(root):
            counts[-1][str(arguments[0])[len(root) + 1 :]] += 1

    sys.addaudithook(hook)
    for command in commands:
        counts.append(Counter())
        assert exit_code(command) == 0, command
    into.write_text(json.dumps(counts))


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms, old enough for their time stamps to be trusted."""
    root = Path(shutil.copytree(phantoms, tmp_path / "data"))
    time.sleep(digests.COARSEST / 1e9)
    return root


def every_image_once(root: Path) -> Counter[str]:
    return Counter(image.path for image in find_images(root).images)


@pytest.mark.slow
def test_audit_and_split_read_each_file_once(data: Path, tmp_path: Path) -> None:
    split = ["data", "split", "--data", str(data), "--out", "s.csv", "--json"]
    audit = ["data", "audit", "--data", str(data), "--split", "s.csv", "--out", "audit", "--json"]
    once = every_image_once(data)
    assert opened(data, tmp_path, split) == [once]
    assert len(list((tmp_path / "cache/busi-tune").glob("*.npy"))) == 1
    # With the thumbnails in the cache, the files are read once, for their hashes only.
    assert opened(data, tmp_path, split) == [once]
    assert opened(data, tmp_path, audit) == [once]
    assert (tmp_path / "audit/audit.html").read_text().count("<img") > 20


@pytest.mark.slow
def test_a_baseline_and_its_export_read_each_file_once(data: Path, tmp_path: Path) -> None:
    baseline = ["baseline", "--data", str(data), "--out", "run", *TRAINING, "--json"]
    other = ["baseline", "--data", str(data), "--out", "other", *TRAINING, "--seed", "1", "--json"]
    export = ["export", "run", "--data", str(data), "--out", "export", "--json"]
    once = every_image_once(data)
    cold, warm, exported = opened(data, tmp_path, baseline, other, export)
    assert cold == once
    assert warm == Counter()
    # An export decodes the test images from their files again, because decoding is part of the verification.
    with (tmp_path / "run/split.csv").open() as file:
        test = [line.split(",")[0] for line in file if ",test," in line]
    assert exported == Counter(test)
    assert len(test) > 5
    assert opened(data, tmp_path, [*baseline, "--overwrite"]) == [once]
    # Without a cache, showing a finished run decodes nothing, and the export decodes to the run's image size only.
    shutil.rmtree(tmp_path / "cache")
    assert opened(data, tmp_path, baseline, [*export, "--overwrite"]) == [once, once + Counter(test)]
    assert len(list(tmp_path.glob("cache/busi-tune/*.npy"))) == 1


@pytest.mark.slow
def test_a_whole_run_reads_each_file_once(data: Path, tmp_path: Path) -> None:
    """Baseline, search, export, predictions and the report in one process."""
    command = ["run", "--data", str(data), *TRAINING, "--trials", "2", "--trial-epochs", "1", "--json"]
    once = every_image_once(data)
    [found] = opened(data, tmp_path, command)
    with (tmp_path / "studies/tuned/best/split.csv").open() as file:
        test = Counter(line.split(",")[0] for line in file if ",test," in line)
    # The export decodes the test images again, `predict` reads six of them, and the report shows some as pictures.
    again = found - once
    assert found >= once
    assert test <= again
    assert 6 < sum((again - test).values()) <= 40


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "busi-tune"


@pytest.mark.parametrize("processors", [1, 16])
def test_one_pass_makes_the_arrays_and_the_listing_that_separate_passes_make(
    phantoms: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    listing = find_decoded(phantoms, [24, 64, 24], Silent())
    assert listing == find_images(phantoms)
    found = {path.name: path.read_bytes() for path in own_cache.glob("*.npy")}
    assert len(found) == 2
    for size in (24, 64):
        array = decoded(listing, size, Silent())
        for row, image in enumerate(listing.images):
            np.testing.assert_array_equal(array[row], images.read(phantoms / image.path, size))
    assert {path.name: path.read_bytes() for path in own_cache.glob("*.npy")} == found
    shutil.rmtree(own_cache)
    for size in (24, 64):
        decoded(listing, size, Silent())
    assert {path.name: path.read_bytes() for path in own_cache.glob("*.npy")} == found


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
def test_the_pass_decodes_every_format_as_prediction_does(tmp_path: Path, own_cache: Path, suffix: str) -> None:
    for number, name in enumerate(("a/0", "b/0")):
        path = tmp_path / f"data/{name}{suffix}"
        path.parent.mkdir(parents=True)
        options = {"compression": "tiff_lzw"} if suffix in (".tif", ".tiff") else {}
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, None, **options)
    listing = find_decoded(tmp_path / "data", [20], Silent())
    assert len(list(own_cache.glob("*.npy"))) == 1
    for row, image in enumerate(listing.images):
        expected = images.read(tmp_path / "data" / image.path, 20)
        np.testing.assert_array_equal(decoded(listing, 20, Silent())[row], expected)


def other_content(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_content_of_the_same_time(path: Path) -> None:
    before = path.stat()
    other_content(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file_in_its_place(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    other_content_of_the_same_time(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_content, other_content_of_the_same_time, another_file_in_its_place])
@pytest.mark.parametrize("settled", [False, True])
def test_a_changed_file_is_hashed_anew(tmp_path: Path, change: Callable[[Path], None], settled: bool) -> None:
    """Covers files with old time stamps, and files that change again within one clock tick."""
    path = tmp_path / "x.png"
    path.write_bytes(bytes(100))
    if settled:
        time.sleep(digests.COARSEST / 1e9 + 0.1)
    for _ in range(20):
        assert digests.digest(path) == files.sha256(path)
        assert digests.content(path) == (path.read_bytes(), files.sha256(path))
        change(path)


def test_only_a_file_that_was_left_alone_for_a_while_is_not_read_again(tmp_path: Path) -> None:
    """A second change may not change the time stamp of a recent file, so recent files are read again."""
    path, opened, listening = tmp_path / "x.png", [], True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and arguments[0] == str(path):
            opened.append(event)

    path.write_bytes(b"x")
    sys.addaudithook(hook)
    for count in (1, 2):
        digests.digest(path)
        assert len(opened) == count
    time.sleep(digests.COARSEST / 1e9)
    for _ in range(3):
        digests.digest(path)
        assert len(opened) == 3
    path.touch()
    digests.digest(path)
    listening = False
    assert len(opened) == 4


def test_a_missing_file_is_an_error_though_its_digest_was_known(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    time.sleep(digests.COARSEST / 1e9 + 0.1)
    digests.digest(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        digests.digest(path)


def test_a_file_that_cannot_be_decoded_leaves_no_array_and_is_named_when_pixels_are_needed(
    data: Path, own_cache: Path
) -> None:
    (data / "normal/normal (3).png").write_bytes(b"")
    listing = find_decoded(data, [16, 20], Silent())
    assert len(listing.images) == len(every_image_once(data))
    assert not list(own_cache.glob("[!.]*"))
    with pytest.raises(DataError) as error:
        decoded(listing, 20, Silent())
    assert str(error.value) == (
        f"1 of {len(listing.images)} images in {data} cannot be read: normal/normal (3).png (empty); "
        "restore or remove them."
    )


def test_a_file_that_changes_after_it_was_listed_is_told(data: Path, own_cache: Path) -> None:
    listing = find_images(data)
    shutil.copy(data / "normal/normal (2).png", data / "normal/normal (3).png")
    with pytest.raises(DataError) as error:
        decoded(listing, 16, Silent())
    assert str(error.value) == f"Images in {data} changed while they were read; run the same command again."
    changed = find_images(data)
    expected = images.read(data / "normal/normal (3).png", 16)
    row = [image.path for image in changed.images].index("normal/normal (3).png")
    np.testing.assert_array_equal(decoded(changed, 16, Silent())[row], expected)
    assert own_cache.exists()
