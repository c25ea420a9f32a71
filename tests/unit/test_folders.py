"""Folders as users have them: masks, class names, nested folders, system files, patients and Unicode forms."""

import json
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi_tune import files
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.data.class_folders import check_class_names, find_classes
from busi_tune.data.dataset import open_dataset, split_images
from busi_tune.data.listing import Listing, find_images, find_names
from busi_tune.data.split import read_split
from busi_tune.errors import BusiTuneError, ConfigError, DataError, RunError
from busi_tune.inference.inputs import image_paths
from busi_tune.names import near_names
from busi_tune.progress import Silent
from image_folders import BUSI, folder_of, needs_busi, picture, save
from recorder import Recorder

SIDE = 24
MASKS = [
    "x_mask.png",
    "X_MASK_2.PNG",
    "x_mask - Copy.png",
    "x_mask copy.png",
    "x_mask copy 2.png",
    "x_mask (1).png",
    "x-mask.png",
    "x mask.png",
    "x_mask1.png",
    "mask_x.png",
    "xMask.png",
    "x_tumor.png",
    "x_tumor - Copy.png",
    "masks/x.png",
    "Segmentations/deeper/x.png",
    "ground_truth/x.png",
]
IMAGES = [
    "x.png",
    "unmasked_1.png",
    "no mask 2.png",
    "tumor_3.png",
    "y_tumor.png",
    "damask.png",
    "x (1).png",
    "x_2.png",
]


def mask(side: int = SIDE, values: tuple[int, int] = (0, 255)) -> Image.Image:
    """A mask: a square of the second value on a background of the first."""
    pixels = np.full((side, side), values[0], dtype=np.uint8)
    pixels[side // 4 : side // 2, side // 4 : side // 2] = values[1]
    return Image.fromarray(pixels)


def paths_of(listing: Listing) -> set[str]:
    return {image.path for image in listing.images}


def refusal(root: Path) -> str:
    """The one-sentence error for a folder of images."""
    with pytest.raises(DataError) as error:
        find_images(root)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_masks_are_known_by_every_form_of_their_names(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [f"benign/{name}" for name in MASKS + IMAGES] + ["normal/1.png"])
    listing = find_images(root)
    assert paths_of(listing) == {f"benign/{name}" for name in IMAGES} | {"normal/1.png"}
    assert set(listing.mask_paths) == {f"benign/{name}" for name in MASKS}
    assert (listing.masks, listing.drawn_masks) == (len(MASKS), ())
    assert {path.relative_to(root).as_posix() for path in image_paths([str(root)])} == paths_of(listing)


def test_masks_are_known_by_their_pixels_beside_their_image(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [f"a/{name}.png" for name in ("x", "y", "z", "v", "w")] + ["b/1.png"])
    wanted = ["a/x_roi.png", "a/lesion-x.png", "a/y_other1.png", "a/outlines/z.png", "a/v.bmp", "a/w seg.jpg"]
    save(mask(), root / wanted[0])
    save(mask(values=(0, 1)), root / wanted[1])
    save(mask(values=(0, 0)), root / wanted[2])
    save(mask(), root / wanted[3])
    save(mask(), root / wanted[4])
    save(picture(9, 160), root / "a/w.png")
    save(mask(160), root / wanted[5])
    images = [
        ("a/x_crop.png", picture(7)),  # more than two values
        ("a/y_roi.png", mask(SIDE + 1)),  # another size than its image
        ("a/lonely.png", mask()),  # no image of this name
        ("a/x_2.png", mask()),  # another image of a series
        ("b/x.png", mask()),  # an image of another class
    ]
    for name, image in images:
        save(image, root / name)
    listing = find_images(root)
    assert set(listing.drawn_masks) == set(listing.mask_paths) == set(wanted)
    assert {name for name, _ in images} <= paths_of(listing)


def test_what_pixels_told_is_told_by_name_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in "ab" for k in range(8)])
    save(mask(), root / "a/1_roi.png")
    save(picture(50), root / "a/2_roi.png")
    opened: list[str] = []
    sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" else None)
    assert find_names(root).drawn_masks == (root / "a/1_roi.png",)
    assert {Path(name).name for name in opened if name.startswith(str(root / "a/"))} == {
        "1.png",
        "1_roi.png",
        "2.png",
        "2_roi.png",
    }
    opened.clear()
    assert find_names(root).drawn_masks == (root / "a/1_roi.png",)
    assert not [name for name in opened if name.startswith(str(root)) and name.endswith(".png")]
    save(picture(51), root / "a/1_roi.png")
    assert find_names(root).drawn_masks == ()
    save(mask(), root / "a/1_roi.png")
    notices = Recorder()
    open_dataset(root, Config(), notices)
    assert (
        "1 of these were recognised by their pixels, which have two values and the size of an image of the same name: "
        "a/1_roi.png."
    ) in notices.notices


@needs_busi
def test_no_image_of_busi_is_taken_for_a_mask() -> None:
    found = find_names(BUSI)
    assert (len(found.images), found.masks) == (780, ())


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["images/1.png", "masks/1.png"],
            "{root}/masks is a folder of masks by its name, and masks cannot be a class",
        ),
        (["images/b/1.png", "images/m/1.png", "masks/b/1.png"], "masks cannot be a class: did you mean {root}/images?"),
        (["benign/1.png", "normal/1.png", "benign_GT/1.png"], "{root}/benign_GT is a folder of masks by its name"),
        (["benign/1.png", "normal/1.png", "Ground Truth/1.png"], "{root}/Ground Truth is a folder of masks"),
        (["train/images/1.png", "train/labels masks/1.png", "val/a/1.png", "test/a/1.png"], "every split needs every"),
        (["a/x_mask.png", "a/masks/y.png", "b/1.png"], "{root}/a holds only masks, by their names and"),
    ],
)
def test_folders_of_masks_are_no_classes(tmp_path: Path, names: list[str], problem: str) -> None:
    root = folder_of(tmp_path / "data", names)
    assert problem.format(root=root) in refusal(root)


def test_a_class_may_have_the_word_mask_in_its_name(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [f"{label}/{k}.png" for label in ("with_mask", "without_mask") for k in range(2)])
    assert len(find_images(root).images) == 4


NFC, NFD = (unicodedata.normalize(form, "gutartig_müller") for form in ("NFC", "NFD"))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes these names for one")
@pytest.mark.parametrize(
    ("names", "both"),
    [
        (["Benign", "benign"], "'Benign' and 'benign'"),
        (["malignant ", "malignant"], "'malignant' and 'malignant '"),
        (["BIRADS 3", "birads3"], "'BIRADS 3' and 'birads3'"),
        ([NFC, NFD], "'gutartig_mu\\u0308ller' and 'gutartig_m\\xfcller'"),
    ],
)
def test_names_that_only_look_different_are_one_class(tmp_path: Path, names: list[str], both: str) -> None:
    root = folder_of(tmp_path / "data", [f"{name}/1.png" for name in [*names, "other"]])
    assert refusal(root) == (
        f"{root} holds the class folders {both}, whose names differ only by case, blanks or Unicode form: give them "
        "one name, or join them."
    )


def test_a_class_is_spelt_alike_in_every_split(tmp_path: Path) -> None:
    names = ["train/benign", "train/other", "val/benign", "val/other", "Test/Benign", "Test/other"]
    root = folder_of(tmp_path / "data", [f"{name}/1.png" for name in names])
    assert "'Test/Benign' and 'train/benign', whose names differ only by case" in refusal(root)
    (root / "Test/Benign").rename(root / "Test/bening")
    assert refusal(root) == (
        f"{root}/Test has no folder for benign; every split needs every class; is bening one of them, misspelt?"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("benign", "bening"),
        ("benign", "begnin"),
        ("benign", "benign_"),
        ("malignant", "malignent"),
        ("Malignant", "maligant"),
        ("normal", "nromal"),
        ("cyst", "csyt"),
        ("fibro adenoma", "fibro_adenoma"),
        ("benign", "benign - Copy"),
        ("benign", "benign (1)"),
    ],
)
def test_names_that_may_be_misspelt(names: tuple[str, str]) -> None:
    assert near_names(("other", *names)) == names


@pytest.mark.parametrize(
    "names",
    [
        ("benign", "malignant", "normal"),
        ("a", "b"),
        ("0", "1", "10"),
        ("BIRADS-2", "BIRADS-3", "BIRADS-4a", "BIRADS-4b", "BIRADS-5"),
        ("grade1", "grade2", "grade I", "grade II"),
        ("normal", "abnormal"),
        ("tumor", "notumor"),
        ("typical", "atypical"),
        ("hypoechoic", "hyperechoic", "isoechoic", "anechoic"),
        ("ER+", "ER-"),
        ("male", "female"),
        ("yes", "no"),
        ("type_a", "type_b"),
        ("positive", "negative"),
        ("adenosis", "fibroadenoma", "phyllodes_tumor", "tubular_adenoma"),
        ("ductal_carcinoma", "lobular_carcinoma", "mucinous_carcinoma", "papillary_carcinoma"),
        ("4-1", "41"),
    ],
)
def test_names_of_usual_classes_are_not_taken_for_misspelt(names: tuple[str, ...]) -> None:
    assert near_names(names) is None


def test_similar_classes_are_asked_about_and_stated_ones_are_compared(tmp_path: Path) -> None:
    labels = ("benign", "bening", "normal")
    root = folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in labels for k in range(8)])
    with pytest.raises(DataError) as error:
        open_dataset(root, Config(), Silent())
    assert str(error.value) == (
        f"{root} has the classes 'benign' and 'bening', one of which may be misspelt: rename the wrong folder, or "
        "state all classes with --classes benign,bening,normal."
    )
    dataset = open_dataset(root, Config(classes="Normal, benign,bening"), Silent())
    assert dataset.classes == labels
    # An existing split is accepted: its classes were checked when it was made.
    assert open_dataset(root, Config(), Silent(), saved=dataset.split).classes == labels
    found = find_classes(root)
    with pytest.raises(DataError, match="has a folder for bening, and --classes states benign,normal; correct"):
        check_class_names(found, "benign,normal")
    with pytest.raises(DataError, match="has a folder for bening and has no folder for malignant, and --classes"):
        check_class_names(found, "benign,malignant,normal")


@pytest.mark.parametrize("text", ["benign", "a,,b", "a,A", ""])
def test_classes_that_state_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="classes must be at least two different names with commas between them"):
        Config(classes=text)


def test_ways_on_from_folders_that_are_wrapped_or_half_split(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "wrapped", [f"archive/Dataset/{label}/1.png" for label in ("benign", "normal")])
    assert refusal(root) == f"{root} has 1 class folders: did you mean {root}/archive/Dataset?"
    assert refusal(root / "archive/Dataset/normal") == (
        f"{root}/archive/Dataset/normal has 0 class folders: did you mean {root}/archive/Dataset?"
    )
    root = folder_of(tmp_path / "half", [f"{side}/{label}/1.png" for side in ("Training", "Testing") for label in "ab"])
    assert refusal(root) == (
        f"{root} holds Testing, Training: a folder that is already split needs train, val and test and nothing else; "
        f"move some images of each class into {root}/validation, with the same class folders, or put all images of a "
        "class into one folder and let busi-tune split them."
    )


SYSTEM = [".DS_Store", "Thumbs.db", "desktop.ini", "._run", "Desktop.ini", "ehthumbs.db"]


def test_system_files_do_not_make_a_folder_foreign(tmp_path: Path) -> None:
    for name in SYSTEM:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    files.refuse_foreign(tmp_path, "a run", "config.json", ())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"it holds notes\.txt"):
        files.refuse_foreign(tmp_path, "a run", "config.json", ())


def test_commands_write_into_folders_with_system_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in "ab" for k in range(8)])
    for place in (root, root / "a"):
        for name in [*SYSTEM, "._1.png"]:
            (place / name).write_bytes(b"x")
        for name in ("__MACOSX", "@eaDir", ".Trashes"):
            save(picture(0), place / name / "1.png")
    small = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--device", "cpu"]
    commands = {
        "audit": ["data", "audit", "--data", "data", "--out", "audit", "--json"],
        "run": ["baseline", "--data", "data", "--out", "run", *small, "--json"],
    }
    for name, command in commands.items():
        (tmp_path / name).mkdir()
        for system in SYSTEM:
            (tmp_path / name / system).write_bytes(b"x")
        assert exit_code(command) == 0
        if name == "audit":
            found = json.loads(capsys.readouterr().out)
            assert (found["images"], found["other_files"], found["unreadable"]) == (16, {}, [])


@pytest.mark.parametrize("one", ["P1", "p 1", "P01", "P1 "])
def test_patients_that_may_be_one(one: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in "ab" for k in range(9)])
    listing, table = find_images(root), tmp_path / "patients.csv"
    table.write_text(f"path,group\na/0.png,P1\na/1.png,{one}\na/2.png,P10\n")
    if one.strip() == "P1":
        used = split_images(listing, Config(), Silent(), patients=table).split.used
        group = dict(zip(used["path"], used["group"], strict=True))
        assert group["a/0.png"] == group["a/1.png"] != group["a/2.png"]
        return
    with pytest.raises(DataError) as error:
        split_images(listing, Config(), Silent(), patients=table)
    first, second = sorted(["P1", one])
    assert str(error.value) == (
        f"{table} has {first!r} and {second!r} in its column group, which differ only by case, blanks or leading "
        "zeros: spell them alike if they are one group, or rename one if they are two."
    )


def test_groups_of_a_split_file_are_compared_in_the_same_way(tmp_path: Path) -> None:
    split = open_dataset(
        folder_of(tmp_path / "data", [f"{c}/{k}.png" for c in "ab" for k in range(9)]), Config(), Silent()
    )
    table = split.split.used.assign(group=[f"P{k}" for k in range(len(split.split.used))])
    for name, group in (("blanks", "P0 "), ("case", "p0"), ("zeros", "P00")):
        changed = table.assign(group=table["group"].where(table["group"] != "P1", group))
        changed.to_csv(tmp_path / f"{name}.csv", index=False)
    assert list(read_split(tmp_path / "blanks.csv").used["group"])[:3] == ["P0", "P0", "P2"]
    for name in ("case", "zeros"):
        with pytest.raises(BusiTuneError, match="in its column group, which differ only by case, blanks or leading"):
            read_split(tmp_path / f"{name}.csv")
    # Group names that look like numbers are compared as text.
    numbers = ["01", "1", *range(2, len(table))]
    table.assign(group=numbers).to_csv(tmp_path / "numbers.csv", index=False)
    with pytest.raises(BusiTuneError, match="has '01' and '1' in its column group"):
        read_split(tmp_path / "numbers.csv")


def test_a_split_does_not_depend_on_the_unicode_form_of_names(tmp_path: Path) -> None:
    labels = ("gutartig", "bösartig")
    # Composed é sorts after f; decomposed é sorts before it.
    names = [f"{label}/{'éfez'[k % 4]}{k}.png" for label in labels for k in range(14)]
    listings, splits = {}, {}
    for form in ("NFC", "NFD"):
        root = tmp_path / form
        for seed, name in enumerate(names):
            save(picture(seed), root / unicodedata.normalize(form, name))
        patients = tmp_path / f"{form}.csv"
        rows = [f"{unicodedata.normalize(form, name)},{seed // 2}" for seed, name in enumerate(names)]
        patients.write_text("\n".join(["path,group", *rows, ""]))
        listings[form] = find_images(root)
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        patients = tmp_path / f"{other}.csv"
        splits[form] = split_images(listings[form], Config(), Silent(), patients=patients).split
        splits[form].write(tmp_path / f"{form}-split.csv")
    assert listings["NFC"].classes == listings["NFD"].classes == ("bösartig", "gutartig")
    assert [i.sha256 for i in listings["NFC"].images] == [i.sha256 for i in listings["NFD"].images]
    assert splits["NFC"].fingerprint() == splits["NFD"].fingerprint()
    assert (tmp_path / "NFC-split.csv").read_bytes() == (tmp_path / "NFD-split.csv").read_bytes()
    # A hand-written file in the other form is accepted, too.
    text = (tmp_path / "NFC-split.csv").read_text()
    (tmp_path / "hand.csv").write_text(unicodedata.normalize("NFD", text))
    for form in ("NFC", "NFD"):
        for file in ("NFC-split.csv", "hand.csv"):
            config = Config(strategy="file")
            dataset = open_dataset(tmp_path / form, config, Silent(), split_file=tmp_path / file)
            part = dataset.part("train", 16, Silent())
            assert all((tmp_path / form / path).exists() for path in part.paths)
            assert dataset.split.fingerprint() == splits["NFC"].fingerprint()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes these names for one")
def test_a_name_in_both_unicode_forms_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", ["a/é.png", "b/1.png"])
    shutil.copy(root / "a" / "é.png", root / "a" / "e\u0301.png")
    assert refusal(root).startswith(f"{root} holds 'a/e\\u0301.png' and 'a/\\xe9.png', whose names differ only by")
