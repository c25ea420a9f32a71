"""The commands data audit, data split and data demo: their results and their pages."""

import codecs
import csv
import json
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune import files
from busi_tune.cli import exit_code
from busi_tune.data.audit import GivenSplit, audit
from busi_tune.data.listing import find_images, find_names
from busi_tune.data.phantoms import KINDS, make_phantoms
from busi_tune.data.reading import read_folder
from busi_tune.data.split import read_split
from busi_tune.progress import Silent
from busi_tune.report.summary import summary
from busi_tune.results import AuditFile
from image_folders import BUSI, needs_busi


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Phantoms, plus one example of each problem that an audit reports."""
    root = tmp_path / "data"
    make_phantoms(root, Silent(), {"benign": 12, "malignant": 12, "normal": 12}, seed=4)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(root / "normal/c.jpg")
    Image.fromarray(np.random.default_rng(1).integers(0, 65536, (60, 50), dtype=np.uint16)).save(root / "normal/d.tif")
    (root / "benign/cut.png").write_bytes((root / "benign/benign (1).png").read_bytes()[:500])
    (root / "benign/gif.png").write_bytes(b"GIF89a" + bytes(40))
    (root / "benign/none.png").symlink_to("nowhere.png")
    (root / "benign/note.txt").write_text("x")
    (root / "normal/film.gif").write_bytes(b"GIF89a")
    (root / "normal/.hidden.png").write_text("x")
    return root


def audited(root: Path, given: GivenSplit | None = None) -> AuditFile:
    """The audit of a folder."""
    return audit(read_folder(find_names(root), Silent()), 0.93, given=given)


def test_an_audit_finds_it_all(messy: Path) -> None:
    found = audited(messy)
    assert found["images"] == sum(found["classes"].values()) == 53
    assert found["formats"] == {"PNG": 49, "JPEG": 3, "TIFF": 1}
    assert found["modes"] == {"L": 51, "I;16": 1, "RGB": 1}
    assert found["sizes"]["50 x 60"] == 2
    assert found["coloured"] == ["normal/c.jpg"]
    assert found["blank"] == {}
    assert found["masks"] == 50
    assert found["other_files"] == {".gif": 1, ".txt": 1}
    assert found["unreadable"] == [
        {"path": "benign/cut.png", "reason": found["unreadable"][0]["reason"]},
        {"path": "benign/gif.png", "reason": "a GIF file, not a PNG, JPEG, BMP, TIFF, WEBP image"},
        {"path": "benign/none.png", "reason": "no such file or directory"},
    ]
    assert found["unreadable"][0]["reason"].startswith("damaged or unreadable (")
    with (messy / "planted.csv").open(newline="") as file:
        planted = list(csv.DictReader(file))
    pairs = {frozenset((pair["first"], pair["second"])) for group in found["groups"] for pair in group["pairs"]}
    assert {frozenset((row["path"], row["of"])) for row in planted} <= pairs
    (conflict,) = (row for row in planted if row["kind"] == "conflict")
    assert [set(group) >= {conflict["path"], conflict["of"]} for group in found["conflicts"]] == [True]
    assert found["copies"] == [sorted([conflict["path"], conflict["of"]])]
    assert found["groups"][0]["classes"] == ["benign", "malignant"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_blank_pictures_are_named_with_their_labels(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uniform images are similar to no image, so no two of them are near-duplicates, whatever their labels."""
    blank = []
    for number in range(8):
        for label in ("benign", "malignant"):
            name = f"{label}/blank {number}.{'jpg' if number % 2 else 'png'}"
            Image.new("RGB", (40 + number, 50), (30 * number, 30 * number, 20)).save(messy / name)
            blank.append(name)
    assert exit_code(["data", "audit", "--data", str(messy), "--out", str(tmp_path / "out")]) == 0
    assert "blank images" in (out := capsys.readouterr().out)
    assert "16 (benign 8, malignant 8)" in out
    found = json.loads((tmp_path / "out/audit.json").read_text())["blank"]
    assert list(found) == ["benign", "malignant"]
    assert sorted(found["benign"] + found["malignant"]) == sorted(blank)
    assert blank[5] in (tmp_path / "out/audit.html").read_text()


def test_the_leak_of_a_folder_that_is_split(tmp_path: Path) -> None:
    """Two of the four test images are also training images, so their nearest neighbour gives the right label."""
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "abgh")):
        for number, name in enumerate(names):
            label = "ab"[number % 2]
            path = tmp_path / "data" / split / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            own = np.random.default_rng(ord(name)).integers(0, 256, (64, 64), dtype=np.uint8)
            Image.fromarray(own).save(path)
    leak = audited(tmp_path / "data")["leak"]
    assert (leak["split"], leak["test_images"], leak["leaked"]) == ("the folder's own", 4, 0.5)
    assert leak["nearest_neighbour_accuracy"]["leaked"] == 1.0


def test_the_leak_of_a_grouped_split_is_none(phantoms: Path, tmp_path: Path) -> None:
    assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(tmp_path / "s.csv")]) == 0
    leak = audited(phantoms, given=GivenSplit.read(tmp_path / "s.csv"))["leak"]
    assert leak["leaked"] == 0
    assert leak["nearest_neighbour_accuracy"]["leaked"] is None
    assert leak["nearest_neighbour_accuracy"]["clean"] == leak["nearest_neighbour_accuracy"]["all"]


@pytest.mark.slow
@needs_busi
def test_the_leak_of_busi_is_as_measured() -> None:
    found = audited(BUSI)
    assert found["leak"]["leaked"] == pytest.approx(0.33, abs=0.02)
    assert found["leak"]["nearest_neighbour_accuracy"]["leaked"] == pytest.approx(0.95, abs=0.02)
    assert found["leak"]["nearest_neighbour_accuracy"]["clean"] == pytest.approx(0.5, abs=0.05)
    assert (len(found["conflicts"]), len(found["coloured"])) == (8, 8)


class Page(HTMLParser):
    """Records the addresses that a page would load, and counts its embedded images."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.pictures = 0

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("src", "href"):
                inside = str(value).startswith("data:image/jpeg;base64,")
                self.pictures += inside
                self.outside += [] if inside else [str(value)]


def test_the_page_is_self_contained_and_shows_every_group(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (messy / "benign/benign (1).png").rename(messy / "benign/<b>&(1).png")
    (messy / "benign/cut.png").rename(messy / "benign/\x1b[2J\x9b31m.png")
    arguments = ["data", "audit", "--data", str(messy), "--out", str(tmp_path / "out")]
    assert exit_code(arguments) == 0
    text = (tmp_path / "out/audit.html").read_text()
    page = Page()
    page.feed(text)
    found = json.loads((tmp_path / "out/audit.json").read_text())
    assert page.outside == []
    assert page.pictures == sum(len(group["images"]) for group in found["groups"])
    assert "<b>&(1).png" not in text
    assert text.replace("\n", "").isprintable()
    assert "benign/\\x1b[2J\\x9b31m.png" in text
    out = capsys.readouterr().out
    assert "groups with two labels" in out
    assert out.replace("\n", "").isprintable()
    assert exit_code([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_strict_fails_on_conflicts_and_unreadable_files(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "audit", "--data", str(messy), "--strict", "--out", str(tmp_path / "out")]
    assert exit_code(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"busi-tune: {messy} has 1 groups with two labels and 3 unreadable files, and --strict allows none; "
        f"correct them, {tmp_path / 'out' / 'audit.html'} shows them."
    )
    with (messy / "planted.csv").open(newline="") as file:
        (conflict,) = (row["path"] for row in csv.DictReader(file) if row["kind"] == "conflict")
    for name in (conflict, "benign/cut.png", "benign/gif.png", "benign/none.png"):
        (messy / name).unlink()
    assert exit_code(arguments) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
def test_names_that_are_not_utf_8_end_in_no_traceback(tmp_path: Path) -> None:
    """Covers names in arguments, in subfolders and among files that are only counted.

    Each command runs in a child process, because it must also print these names.
    """
    for number, name in enumerate(["a/0.png", "a/1.png", "b/0.png", "b/1.png"]):
        noise(tmp_path / "good" / name, number)
        noise(tmp_path / "inner" / name, number)
        noise(tmp_path / "root\udcff" / name, number)
    noise(tmp_path / "inner/b/\udcff/2.png", 7)
    (tmp_path / "good/a/note.\udcff").touch()
    out = tmp_path / "out\udcff"
    answers = []
    for data in ("good", "inner", "root\udcff"):
        command = [
            sys.executable,
            "-m",
            "busi_tune",
            "data",
            "audit",
            "--data",
            str(tmp_path / data),
            "--out",
            str(out),
        ]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8"))
    assert [answer.returncode for answer in answers] == [0, 1, 1]
    assert "out\\udcff/audit.html shows the groups" in answers[0].stdout
    assert json.loads((out / "audit.json").read_text())["other_files"] == {".\udcff": 1}
    assert b".\\udcff 1" in (out / "audit.html").read_bytes()
    for answer in answers[1:]:
        assert answer.stderr.splitlines()[-1].startswith("busi-tune: ")
        assert "that no CSV can hold" in answer.stderr


@pytest.mark.slow
def test_the_demo_is_drawn_alike_from_a_seed(tmp_path: Path) -> None:
    sums = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_phantoms(tmp_path / name, Silent(), {"benign": 8, "malignant": 8, "normal": 8}, seed=seed)
        sums.append({path.relative_to(tmp_path / name): files.sha256(path) for path in (tmp_path / name).rglob("*.*")})
    assert sums[0] == sums[1]
    assert sums[0] != sums[2]
    with (tmp_path / "a/planted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {*KINDS, "conflict"}
    for row in rows:
        path = tmp_path / "a" / row["path"]
        mask = path.with_name(f"{path.stem}_mask.png")
        assert row["kind"] == "conflict" or Image.open(path).size == Image.open(mask).size
    listing = find_images(tmp_path / "a")
    assert len({Image.open(tmp_path / "a" / image.path).size for image in listing.images}) > 5


@pytest.mark.slow
def test_the_demo_does_not_draw_over_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    (mine / "benign").mkdir(parents=True)
    (mine / "benign/benign (1).png").write_bytes(b"mine")
    assert exit_code(["data", "demo", "--out", str(mine)]) == 1
    assert capsys.readouterr().err == (
        f"busi-tune: {mine} is not empty and not a folder of phantoms (it holds benign); name another folder.\n"
    )
    assert [path.name for path in mine.iterdir()] == ["benign"]
    assert (mine / "benign/benign (1).png").read_bytes() == b"mine"
    drawn = tmp_path / "drawn"
    assert exit_code(["data", "demo", "--out", str(drawn)]) == 0
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    assert len(before) > 500
    assert exit_code(["data", "demo", "--out", str(drawn)]) == 0
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")} == before
    capsys.readouterr()
    assert exit_code(["data", "demo", "--out", str(drawn), "--seed", "3"]) == 1
    assert capsys.readouterr().err == f"busi-tune: {drawn} holds the phantoms of seed 0, not 3; name another folder.\n"
    (drawn / "phantoms.json").unlink()
    (drawn / "planted.csv").unlink()
    entries = sorted(drawn.rglob("*"))
    assert exit_code(["data", "demo", "--out", str(drawn)]) == 1
    assert sorted(drawn.rglob("*")) == entries


def test_an_audit_looks_at_where_it_writes_before_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data hold an unreadable image. A message about it would show that the audit read images first."""
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    for out, told in {
        "mine": "is not empty and not an audit (it holds thesis.txt); name another folder.",
        "mine/thesis.txt": "is a file; name a folder.",
    }.items():
        assert exit_code(["data", "audit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / out)]) == 1
        assert capsys.readouterr().err == f"busi-tune: {tmp_path / out} {told}\n"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_split_replaces_a_split_and_nothing_else(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.csv").write_text("mine,only\n1,2\n")
    (tmp_path / "s.excluded.csv").write_text("mine too\n")
    for out, reason in {
        "notes.csv": "notes.csv must have whole rows of path, class, group, split, sha256",
        "s.csv": "s.excluded.csv must have whole rows of path, class, group, reason, sha256",
    }.items():
        file = tmp_path / out
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(file)]) == 1
        assert capsys.readouterr().err == (
            f"busi-tune: {file} exists, is not a split ({tmp_path / reason}) and is not replaced; name another --out.\n"
        )
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    found = []
    for seed in "01":
        assert (
            exit_code(
                ["data", "split", "--data", str(phantoms), "--out", str(tmp_path / "new.csv"), "--split-seed", seed]
            )
            == 0
        )
        found.append(read_split(tmp_path / "new.csv").fingerprint())
    assert found[0] != found[1]


def test_a_folder_that_is_split_is_not_split_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate([f"{s}/{c}/{k}.png" for s in ("train", "val", "test") for c in "ab" for k in "12"]):
        noise(tmp_path / "data" / name, number)
    arguments = ["data", "split", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")]
    options = ["--split-seed", "0", "--fractions", "0.7,0.15,0.15", "--strategy", "grouped", "--conflicts", "keep"]
    assert exit_code([*arguments, *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"busi-tune: {tmp_path / 'data'} is already split; remove --strategy, --fractions, --conflicts, --split-seed."
    )
    assert not (tmp_path / "s.csv").exists()
    assert exit_code([*arguments, "--split-seed", "3"]) == 2
    assert exit_code([*arguments, "--similarity", "0.95"]) == 0
    assert len(read_split(tmp_path / "s.csv").rows("test")) == 4


def test_data_split_tells_who_is_where(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "s.csv"
    arguments = [
        "data",
        "split",
        "--data",
        str(phantoms),
        "--out",
        str(file),
        "--fractions",
        "0.6,0.2,0.2",
        "--split-seed",
        "5",
    ]
    assert exit_code([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    split = read_split(file)
    assert told["fingerprint"] == split.fingerprint()
    assert told["left_out"] == len(split.left_out) > 0
    for label, counts in told["images"].items():
        assert counts == {name: int((split.rows(name)["class"] == label).sum()) for name in counts}
    assert exit_code([*arguments, "--conflicts", "keep"]) == 0
    assert len(read_split(file).left_out) == 0


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_tables_with_other_separators_are_refused_by_their_name(
    separator: str, name: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spreadsheet programs save files like these. A byte order mark alone is accepted."""
    split, patients = tmp_path / "split.csv", tmp_path / "patients.csv"
    command = ["data", "split", "--data", str(phantoms), "--out"]
    patients.write_text("path,group\n")
    assert exit_code([*command, str(split), "--groups", str(patients)]) == 0
    before = read_split(split).fingerprint()
    for path in (split, patients):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_split(split).fingerprint() == before
    assert exit_code([*command, str(tmp_path / "other.csv"), "--groups", str(patients)]) == 0
    for path, more in ((split, []), (patients, ["--groups", str(patients)])):
        path.write_text(path.read_text().replace(",", separator))
        capsys.readouterr()
        assert exit_code([*command, str(split), *more]) == 1
        assert f"{path} separates its columns by {name}" in capsys.readouterr().err
        path.write_text(path.read_text().replace(separator, ","))


def test_patients_stay_together(phantoms: Path, tmp_path: Path) -> None:
    normal = [image.path for image in find_images(phantoms).images if image.label == "normal"][:8]
    rows = [{"path": path, "group": f"patient {k // 4}"} for k, path in enumerate(normal)]
    files.write_csv(tmp_path / "patients.csv", rows)
    for seed in range(5):
        out = tmp_path / f"{seed}.csv"
        options = ["--groups", str(tmp_path / "patients.csv"), "--split-seed", str(seed)]
        assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(out), *options]) == 0
        side = read_split(out).used.set_index("path")["split"]
        for patient in (normal[:4], normal[4:]):
            assert len({side[path] for path in patient}) == 1


def test_patients_join_with_the_twins_that_are_found(phantoms: Path, tmp_path: Path) -> None:
    """A patient has one image of each of two planted pairs, so all four images form one group.

    Neither the twins nor the patient table alone gives that group.
    """
    out, patients = tmp_path / "s.csv", tmp_path / "patients.csv"
    assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(out)]) == 0
    used = read_split(out).used.set_index("path")
    with (phantoms / "planted.csv").open(newline="") as file:
        pairs = [(row["path"], row["of"]) for row in csv.DictReader(file) if row["path"] in used.index]
    (one, two), (three, four) = pairs[:2]
    assert used["group"][one] == used["group"][two] != used["group"][three] == used["group"][four]
    files.write_csv(patients, [{"path": path, "group": "p 7"} for path in (two, three)])
    for seed in range(5):
        options = ["--groups", str(patients), "--split-seed", str(seed)]
        assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(out), *options]) == 0
        joined = read_split(out).used.set_index("path").loc[[one, two, three, four]]
        assert joined["group"].nunique() == joined["split"].nunique() == 1


def test_a_split_of_other_images_is_not_audited(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate([f"{label}/{k}.png" for label in "ab" for k in range(6)]):
        noise(tmp_path / "data" / name, number)
    file = tmp_path / "s.csv"
    assert exit_code(["data", "split", "--data", str(phantoms), "--out", str(file)]) == 0
    arguments = ["data", "audit", "--split", str(file), "--out", str(tmp_path / "out"), "--data"]
    capsys.readouterr()
    assert exit_code([*arguments, str(tmp_path / "data")]) == 1
    names = ", ".join(f"{label}/{k}.png" for label, k in [*(("a", k) for k in range(6)), *(("b", k) for k in range(4))])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"busi-tune: {file} is not a split of {tmp_path / 'data'}: it lacks {names} and 2 more; name its own."
    )
    (tmp_path / "s.excluded.csv").unlink()
    assert exit_code([*arguments, str(phantoms)]) == 1
    told = f"({tmp_path / 's.excluded.csv'}, which would list images left out, is missing); name its own."
    assert capsys.readouterr().err.splitlines()[-1].endswith(told)


def test_a_patient_with_two_labels_is_no_conflict_and_blanks_are_no_patient(tmp_path: Path) -> None:
    names = [f"{label}/{k}.png" for label in "ab" for k in range(12)]
    for number, name in enumerate(names):
        noise(tmp_path / "data" / name, number)
    rows = [{"path": "a/0.png", "group": "p"}, {"path": "b/0.png", "group": "p"}]
    files.write_csv(tmp_path / "p.csv", rows + [{"path": name, "group": " "} for name in names[3:9]])
    out = tmp_path / "s.csv"
    arguments = [
        "data",
        "split",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
        "--groups",
        str(tmp_path / "p.csv"),
    ]
    assert exit_code(arguments) == 0
    split = read_split(out)
    assert len(split.left_out) == 0
    assert split.used["group"].nunique() == 23
    side = split.used.set_index("path")["split"]
    assert side["a/0.png"] == side["b/0.png"]


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)).save(path)


def test_a_class_too_small_to_split_is_told_and_the_audit_goes_on(tmp_path: Path) -> None:
    for number, name in enumerate([*(f"a/{k}.png" for k in range(9)), "b/0.png"]):
        noise(tmp_path / "data" / name, number)
    found = audited(tmp_path / "data")
    leak = found["leak"]
    assert leak["split"] == "none, a class has too few images for a random split"
    assert (leak["leaked"], leak["test_images"]) == (None, 0)
    assert (dict(summary(found))["share of test images with a twin in training"]) == leak["split"]


@pytest.mark.parametrize("sides", [("",), ("train/", "val/", "test/")])
def test_a_class_of_which_nothing_can_be_read_is_shown_and_leaves_no_meter(
    tmp_path: Path, sides: tuple[str, ...]
) -> None:
    for side in sides:
        for number in range(8):
            noise(tmp_path / f"data/{side}a/{number}.png", number)
        (tmp_path / f"data/{side}b").mkdir()
        (tmp_path / f"data/{side}b/0.png").touch()
    found = audited(tmp_path / "data")
    assert found["classes"] == {"a": 8 * len(sides), "b": 0}
    leak = found["leak"]
    assert leak["nearest_neighbour_accuracy"] == dict.fromkeys(("all", "leaked", "clean"))
    if sides == ("",):
        assert (leak["split"], leak["leaked"]) == ("none, all readable images are of one class", None)
    else:
        assert (leak["split"], leak["leaked"]) == ("the folder's own", 1.0)
    lines = dict(summary(found))
    assert lines["images"].endswith("b 0)")
    assert lines["accuracy of the nearest thumbnail"] == "none"


def test_an_audit_opens_each_image_once(tmp_path: Path) -> None:
    for number, name in enumerate([f"{label}/{k}.png" for label in "ab" for k in range(8)]):
        noise(tmp_path / "data" / name, number)
    (tmp_path / "data/a/gif.png").write_bytes(b"GIF89a")
    opened = Counter[str]()
    listening = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and str(arguments[0]).endswith(".png"):
            opened[str(arguments[0])] += 1

    sys.addaudithook(hook)
    audited(tmp_path / "data")
    listening = False
    assert opened == Counter(str(path) for path in (tmp_path / "data").rglob("*.png"))


def test_what_cannot_be_audited_or_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / "bad" / name).parent.mkdir(parents=True)
        (tmp_path / "bad" / name).touch()
        noise(tmp_path / "good" / name, ord(name[0]))
    bad, good = str(tmp_path / "bad"), str(tmp_path / "good")
    assert exit_code(["data", "audit", "--data", bad, "--out", str(tmp_path / "out")]) == 1
    told = f"None of the 2 images in {bad} can be read: a/0.png (empty), b/0.png (empty); restore them."
    assert capsys.readouterr().err.splitlines()[-1] == f"busi-tune: {told}"
    assert not (tmp_path / "out").exists()
    none = ["--split", str(tmp_path / "none.csv"), "--out", str(tmp_path / "out")]
    assert exit_code(["data", "audit", "--data", good, *none]) == 1
    assert capsys.readouterr().err == (
        f"busi-tune: {tmp_path / 'none.csv'} could not be read: No such file or directory; "
        "fix that and run the same command again.\n"
    )
    assert exit_code(["data", "split", "--data", good, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"busi-tune: {tmp_path} is a folder; name the file to write.\n"
