"""Near-duplicates: planted ones are found unchanged, mirrored or cropped, and are joined to groups."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from busi_tune import images
from busi_tune.config import Config
from busi_tune.data import twins
from busi_tune.data.dataset import twins_of
from busi_tune.data.groups import given_pairs, group_numbers
from busi_tune.data.listing import Listing, find_images
from busi_tune.data.phantoms import KINDS, Phantom, altered, draw
from busi_tune.data.pixel_cache import decoded
from busi_tune.errors import DataError
from busi_tune.progress import Silent
from image_folders import BUSI, needs_busi

Edges = set[tuple[int, int]]


def edges_of(table: pd.DataFrame, *kinds: str) -> Edges:
    """The pairs of a table; `kinds` restricts them to some kinds."""
    rows = table[table["kind"].isin(kinds)] if kinds else table
    return set(zip(rows["first"].tolist(), rows["second"].tolist(), strict=True))


def grouped(table: pd.DataFrame, count: int) -> list[int]:
    numbers: list[int] = group_numbers(count, table["first"].to_numpy(), table["second"].to_numpy()).tolist()
    return numbers


def naive_groups(count: int, edges: Edges) -> list[int]:
    """Groups by a simple search, as a reference for union-find."""
    member = list(range(count))
    for first, second in sorted(edges):
        old, new = member[second], member[first]
        member = [new if group == old else group for group in member]
    seen = list(dict.fromkeys(member))
    return [seen.index(group) for group in member]


def test_planted_twins_are_found_and_nothing_else(phantoms: Path) -> None:
    listing = find_images(phantoms)
    number = {image.path: row for row, image in enumerate(listing.images)}
    with (phantoms / "planted.csv").open(newline="") as file:
        planted = {(number[row["path"]], number[row["of"]]) for row in csv.DictReader(file)}
    found = twins_of(listing, Config().similarity, Silent())
    assert grouped(found, len(number)) == naive_groups(len(number), planted)
    assert len(planted) == 15


def thumbnail(folder: Path, phantom: Phantom, kind: str = "") -> images.Pixels:
    """The thumbnail of a phantom that was saved and read again; JPEG compression changes it."""
    path = folder / "image.png"
    Image.fromarray(phantom.pixels).save(path, "JPEG" if kind == "jpeg" else "PNG", quality=50)
    return images.read(path, twins.THUMBNAIL)


@pytest.mark.slow
def test_each_kind_of_twin_is_recalled_with_precision(tmp_path: Path) -> None:
    """Recall and precision are at least 0.95 at the default threshold, for all twins and for each kind."""
    labels = ("benign", "malignant", "normal")
    drawn = [draw(label, np.random.default_rng((9, n, k))) for n, label in enumerate(labels) for k in range(14)]
    generator = np.random.default_rng(3)
    thumbnails = [thumbnail(tmp_path, phantom) for phantom in drawn]
    source = list(range(len(drawn)))
    kinds = [""] * len(drawn)
    for kind in KINDS:
        for number, phantom in enumerate(drawn):
            thumbnails.append(thumbnail(tmp_path, altered(phantom, kind, generator), kind))
            source.append(number)
            kinds.append(kind)
    digests = [str(number) for number in source]
    table = twins.find_twins(np.stack(thumbnails), [str(k) for k in range(len(digests))], Config().similarity)
    found = edges_of(table)
    right = sum(source[a] == source[b] for a, b in found)
    assert right / len(found) >= 0.95
    for kind in KINDS:
        pairs = {(source[row], row) for row, own in enumerate(kinds) if own == kind}
        assert len(pairs & found) / len(pairs) >= 0.95, kind


def test_signatures_are_centred_and_of_unit_length(phantoms: Path) -> None:
    vectors = twins.signatures(decoded(find_images(phantoms), twins.THUMBNAIL, Silent()))
    assert vectors.shape[1:] == (64, 64)
    np.testing.assert_allclose(vectors.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=(1, 2)), 1, atol=1e-5)


def test_brightness_and_contrast_do_not_part_twins() -> None:
    picture = np.random.default_rng(0).integers(60, 120, (64, 64, 3), dtype=np.uint8)
    vectors = twins.signatures(np.stack([picture, picture + 40, picture * 2, 255 - picture])).reshape(4, -1)
    np.testing.assert_allclose((vectors @ vectors.T)[0], [1, 1, 1, -1], atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 83, 1024])
@pytest.mark.parametrize("threshold", [0.5, 0.93])
def test_no_pair_is_lost_by_looking_at_low_frequencies_first(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, block: int, threshold: float
) -> None:
    """The pairs of unchanged and mirrored images equal those of a full similarity matrix."""
    thumbnails = decoded(find_images(phantoms), twins.THUMBNAIL, Silent())
    vectors = twins.signatures(thumbnails)
    flat, turned = vectors.reshape(len(vectors), -1), vectors[:, :, ::-1].reshape(len(vectors), -1)
    near, mirrored = (
        {(i, j) for i, j in np.argwhere(flat @ v.T >= threshold).tolist() if i < j} for v in (flat, turned)
    )
    monkeypatch.setattr(twins, "BLOCK", block)
    table = twins.find_twins(thumbnails, [str(k) for k in range(len(vectors))], threshold)
    assert near | mirrored <= edges_of(table)
    assert edges_of(table, "near") <= near
    assert edges_of(table, "near", "mirrored") <= near | mirrored
    assert not table.duplicated(["first", "second"]).any()
    assert (table["first"] < table["second"]).all()
    assert (table["similarity"] >= threshold).all()


def test_the_order_of_images_does_not_change_what_is_found(phantoms: Path) -> None:
    thumbnails = np.array(decoded(find_images(phantoms), twins.THUMBNAIL, Silent()))
    order = np.random.default_rng(0).permutation(len(thumbnails))
    names = [str(k) for k in range(len(thumbnails))]
    there, back = twins.find_twins(thumbnails, names, 0.93), twins.find_twins(thumbnails[order], names, 0.93)
    named = {(min(order[a], order[b]), max(order[a], order[b])) for a, b in edges_of(back)}
    assert named == edges_of(there)


def test_equal_files_are_twins_even_where_nothing_can_be_seen() -> None:
    blank = np.full((4, 64, 64, 3), 7, dtype=np.uint8)
    table = twins.find_twins(blank, ["a", "b", "a", "a"], 1.0)
    assert edges_of(table) == edges_of(table, "copy") == {(0, 2), (0, 3)}
    assert table["similarity"].tolist() == [1.0, 1.0]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(count=st.integers(1, 30), data=st.data())
def test_group_numbers_are_what_a_naive_union_gives(count: int, data: st.DataObject) -> None:
    possible = [(i, j) for j in range(count) for i in range(j)]
    edges = data.draw(st.sets(st.sampled_from(possible), max_size=40)) if possible else set()
    first, second = (np.array([edge[k] for edge in sorted(edges)], dtype=np.int64) for k in (0, 1))
    found = group_numbers(count, first, second)
    assert found.dtype == np.int64
    assert found.tolist() == naive_groups(count, edges)


def test_patients_are_pairs_with_their_first_image(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("group,path,note\n7,a/2.png,x\nP 1,b/1.png,\n7,b/3.png,\n7,a/1.png,\n")
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]
    assert group_numbers(5, *given_pairs(path, names)).tolist() == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("path,patient\na/1.png,1\n", "must have the columns path and group, not path, patient."),
        ("", "is not a CSV file (No columns to parse from file); correct it."),
        (
            "path,group\na/1.png,1\nz.png,1\n",
            "names 1 images that are not in the data folder: z.png; paths are relative to it, with /.",
        ),
        ("path,group\na/1.png,1\na/1.png,2\n", "names 1 images twice: a/1.png; give each one group."),
    ],
)
def test_a_list_of_patients_that_cannot_be_used(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        given_pairs(path, ["a/1.png", "a/2.png"])
    assert str(error.value) == f"{path} {problem}"


@pytest.fixture(scope="module")
def busi() -> tuple[Listing, NDArray[np.uint8]]:
    """The real data set and its thumbnails."""
    listing = find_images(BUSI)
    return listing, decoded(listing, twins.THUMBNAIL, Silent())


@needs_busi
@pytest.mark.parametrize(
    ("threshold", "pairs", "with_twin", "other_label", "components"),
    [(0.97, 169, 252, 7, 638), (0.93, 229, 318, 11, 601)],
)
def test_busi_has_the_twins_that_were_measured(
    busi: tuple[Listing, NDArray[np.uint8]],
    threshold: float,
    pairs: int,
    with_twin: int,
    other_label: int,
    components: int,
) -> None:
    """The counts cover unchanged images only; cropped twins are extra."""
    listing, thumbnails = busi
    found = twins.find_twins(thumbnails, [image.sha256 for image in listing.images], threshold)
    plain = found[found["kind"].isin(["near", "copy"])]
    label = [image.label for image in listing.images]
    edges = edges_of(plain)
    assert len(edges) == pairs
    assert len({row for edge in edges for row in edge}) == with_twin
    assert sum(label[i] != label[j] for i, j in edges) == other_label
    assert max(grouped(plain, len(label))) + 1 == components


@needs_busi
def test_busi_has_the_cropped_twins_that_were_looked_at(busi: tuple[Listing, NDArray[np.uint8]]) -> None:
    """A plain comparison misses these 15 pairs, one with two labels; see docs/explanation/near-duplicates.md."""
    listing, thumbnails = busi
    found = twins.find_twins(thumbnails, [image.sha256 for image in listing.images], Config().similarity)
    name = [Path(image.path).stem for image in listing.images]
    cropped = {(name[a], name[b]) for a, b in edges_of(found, "cropped")}
    assert len(cropped) == 15
    assert {("normal (132)", "normal (20)"), ("benign (333)", "malignant (78)")} <= cropped
    assert edges_of(found, "mirrored") == set()
    assert max(grouped(found, len(name))) + 1 == 589
