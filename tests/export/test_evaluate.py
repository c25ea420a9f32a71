"""Evaluation on external labelled images: a run and its export agree, twins are left out, and errors are refused."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from busi_tune import images, pipeline, results
from busi_tune.cli import exit_code
from busi_tune.cli.tables import show_run
from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.errors import BusiTuneError
from busi_tune.evaluation.metrics import Answers, numbers
from busi_tune.evaluation.selective import halving
from busi_tune.export_options import ExportOptions
from busi_tune.external.evaluation import Elsewhere
from busi_tune.external.figures import confidence_there
from busi_tune.inference.certificate import read_certificate
from busi_tune.progress import Silent
from busi_tune.results import EvaluationFile, RiskCoveragePoint
from exported import Exported, linked, names
from recorder import Recorder
from result_files import rows

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]

MAP = "benign=B,malignant=M,normal=N"
CLASSES = ("benign", "malignant", "normal")
FILES = {"evaluation.json", "predictions.csv", "confusion_matrix.png", "risk_coverage.png", "reliability.png"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other phantoms, with other class folder names; tests must not change them."""
    folder = tmp_path_factory.mktemp("elsewhere") / "clinic"
    folder.mkdir()
    make_phantoms(folder, Silent(), {"benign": 14, "malignant": 12, "normal": 8}, seed=7)
    for name, label in (("benign", "B"), ("malignant", "M"), ("normal", "N")):
        (folder / name).rename(folder / label)
    return folder


@pytest.fixture(scope="module")
def exported(coloured: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run of `tiny` and its export with an operating point; replaces the shared fixture, which has none."""
    place = tmp_path_factory.mktemp("pointed")
    pipeline.baseline(coloured, place / "run", tiny, Silent())
    options = ExportOptions(sensitivity=0.8)
    certificate = pipeline.export(place / "run", place / "export", coloured, Silent(), options=options)
    return Exported(coloured, place / "run", place / "export", certificate)


@pytest.fixture(scope="module")
def export(exported: Exported) -> Path:
    """The folder of the export."""
    return exported.folder


@pytest.fixture(scope="module")
def judged(exported: Exported, export: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluations of the run, and of the export with and without the training data."""
    place = tmp_path_factory.mktemp("judged")
    there = Elsewhere(elsewhere, MAP)
    pipeline.evaluate(exported.run, there, place / "run", Silent())
    pipeline.evaluate(export, there, place / "export", Silent(), training_data=exported.data)
    pipeline.evaluate(export, there, place / "unchecked", Silent())
    return place


def read(folder: Path) -> EvaluationFile:
    return results.read(folder / results.EVALUATION, EvaluationFile)


def flat(value: object, name: str = "") -> dict[str, object]:
    """The leaves of a document by their paths."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        return {name: value}
    return {key: leaf for inner, part in entries for key, leaf in flat(part, f"{name}/{inner}").items()}


def test_the_run_and_its_export_have_the_same_figures(judged: Path) -> None:
    run, export = flat(read(judged / "run")), flat(read(judged / "export"))
    own = {"kind", "model", "model_sha256", "training_data", "operating_point", "files", "twins_checked", "sha256"}
    shared = [name for name in export if name.split("/")[1] not in own]
    assert set(shared) == {name for name in run if name.split("/")[1] not in own}
    assert len(shared) > 300
    for name in shared:
        if isinstance(export[name], float):
            assert run[name] == pytest.approx(export[name], abs=1e-4), name
        else:
            assert run[name] == export[name], name
    one, other = rows(judged / "run/predictions.csv"), rows(judged / "export/predictions.csv")
    for row, twin in zip(one, other, strict=True):
        assert [row[name] for name in ("path", "class", "predicted", "group", "warning")] == [
            twin[name] for name in ("path", "class", "predicted", "group", "warning")
        ]
        for name in ("p_benign", "p_malignant", "p_normal"):
            assert float(row[name]) == pytest.approx(float(twin[name]), abs=1e-5)


def test_on_its_own_images_only_the_test_images_are_judged_and_have_their_figures(
    exported: Exported, export: Path, tmp_path: Path
) -> None:
    """All other images were used in training, or are in a group with two labels."""
    there = Elsewhere(exported.data, leave_out_conflicts=True)
    test = {row["path"] for row in rows(exported.run / "split.csv") if row["split"] == "test"}
    for model in (exported.run, export):
        found = pipeline.evaluate(model, there, tmp_path / model.name, Silent(), training_data=exported.data)
        assert {row["path"] for row in rows(tmp_path / model.name / "predictions.csv")} == test
        external, internal = numbers(found["external"]), numbers(found["internal"])
        assert set(external) == set(internal)
        assert external == pytest.approx(internal, abs=1e-4)
        assert all(abs(each["difference"]) < 1e-4 for each in found["differences"].values())
        assert found["external"]["groups"] == found["internal"]["groups"]
        guard = found.get("guard")
        assert guard is not None
        assert guard["internal"] == pytest.approx(guard["external"])


def test_what_is_written_is_whole_and_named(judged: Path, elsewhere: Path, exported: Exported) -> None:
    for folder in judged.iterdir():
        assert names(folder) == FILES
        found = read(folder)
        table = rows(folder / "predictions.csv")
        assert sum(found["images"].values()) == found["external"]["images"] == len(table)
        listed = {row["path"] for row in table} | {image["path"] for image in found["left_out"]}
        assert listed == {
            path.relative_to(elsewhere).as_posix() for path in images.walk(elsewhere) if not images.is_mask(path)
        }
        assert found["labels"] == {"B": "benign", "M": "malignant", "N": "normal"}
        with Image.open(folder / results.RELIABILITY) as picture:
            assert picture.size[0] > 100
    assert read(judged / "export")["training_data"] == str(exported.data)
    unchecked = read(judged / "unchecked")
    assert unchecked["training_data"] is None
    assert unchecked["twins_checked"].endswith("with --training-data DIR to find near-duplicates.")


def test_the_figures_of_the_threshold_are_those_of_the_table(judged: Path, export: Path) -> None:
    point = read(judged / "export").get("operating_point")
    certified = read_certificate(export).get("operating_point")
    assert point is not None
    assert certified is not None
    assert point["stored"]["threshold"] == certified["threshold"]
    table = rows(judged / "export/predictions.csv")
    assert {row["malignant"] for row in table} == {"True", "False"}
    for at in (point["stored"], point["needed"]):
        assert at is not None
        flagged = [(row["class"] == "malignant", float(row["p_malignant"]) >= at["threshold"]) for row in table]
        ill = [flag for truth, flag in flagged if truth]
        well = [flag for truth, flag in flagged if not truth]
        figures = at["figures"]
        assert figures["sensitivity"]["value"] == pytest.approx(np.mean(ill))
        assert figures["specificity"]["value"] == pytest.approx(1 - np.mean(well))
        assert (figures["sensitivity"]["images"], figures["specificity"]["images"]) == (len(ill), len(well))
    needed = point["needed"]
    assert needed is not None
    assert needed["figures"]["sensitivity"]["value"] == 1


def test_the_confidence_comes_from_the_validation_images(judged: Path, export: Path) -> None:
    found = read(judged / "export").get("min_confidence")
    points = read_certificate(export).get("validation_risk_coverage", [])
    assert points
    # A network with few right answers has no such confidence.
    assert (found["validation"] if found else None) == halving(points)


def test_the_figures_at_a_confidence_are_those_of_the_table(judged: Path) -> None:
    table = rows(judged / "export/predictions.csv")
    probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in table])
    labels = np.array([CLASSES.index(row["class"]) for row in table])
    # With the median as the suggested confidence, some images reach it, whatever the network has learnt.
    half = float(np.median(probabilities.max(axis=1)))
    suggested: RiskCoveragePoint = {"confidence": half, "coverage": 0.5, "error": 0.1, "images": 6}
    everything: RiskCoveragePoint = {"confidence": 0.0, "coverage": 1.0, "error": 0.4, "images": 12}
    found = confidence_there([suggested, everything], Answers(labels, probabilities, CLASSES))
    assert found is not None
    assert (found["confidence"], found["validation"]) == (half, suggested)
    sure = [row for row, most in zip(table, probabilities.max(axis=1), strict=True) if most >= half]
    assert 0 < len(sure) < len(table)
    there = found["external"]
    assert there is not None
    assert there["images"] == len(sure)
    assert there["error"] == pytest.approx(np.mean([row["class"] != row["predicted"] for row in sure]))


def with_twins(exported: Exported, elsewhere: Path, folder: Path, label: str) -> dict[str, str]:
    """Adds copies of malignant training images to `folder`: unchanged, mirrored and cropped.

    Returns the training image of each copy.
    """
    linked(elsewhere, folder)
    trained = [
        r["path"] for r in rows(exported.run / "split.csv") if (r["split"], r["class"]) == ("train", "malignant")
    ]
    copies = {}
    for number, (path, change) in enumerate(zip(trained, ("copy", "mirror", "crop"), strict=False)):
        name = f"{label}/copy{number}.png"
        image = Image.open(exported.data / path).convert("RGB")
        if change == "copy":
            shutil.copyfile(exported.data / path, folder / name)
        elif change == "mirror":
            ImageOps.mirror(image).save(folder / name)
        else:
            image.crop((3, 3, image.width - 3, image.height - 3)).save(folder / name)
        copies[name] = path
    return copies


def test_twins_of_training_images_are_named_and_left_out(
    exported: Exported, export: Path, elsewhere: Path, judged: Path, tmp_path: Path
) -> None:
    copies = with_twins(exported, elsewhere, tmp_path / "data", "M")
    there = Elsewhere(tmp_path / "data", MAP)
    found = pipeline.evaluate(export, there, tmp_path / "out", Silent(), training_data=exported.data)
    left = {image["path"]: image for image in found["left_out"]}
    for name in copies:
        assert left[name]["reason"] == "a twin is in the training data"
        assert left[name].get("twin_class") == left[name]["class"] == "malignant"
    assert left["M/copy0.png"].get("twin") == copies["M/copy0.png"]
    # The metrics of the other images stay the same.
    assert found["external"] == read(judged / "export")["external"]
    # Without the training images, the export recognises identical files only.
    unchecked = pipeline.evaluate(export, there, tmp_path / "unchecked", Silent())
    assert {image["path"]: image["reason"] for image in unchecked["left_out"] if image["path"] in copies} == {
        "M/copy0.png": "the same file is in the training data"
    }
    assert unchecked["external"]["images"] == found["external"]["images"] + len(copies) - 1


def test_twins_with_another_label_are_refused_or_left_out(
    exported: Exported, export: Path, elsewhere: Path, judged: Path, tmp_path: Path
) -> None:
    copies = with_twins(exported, elsewhere, tmp_path / "data", "B")
    with pytest.raises(BusiTuneError) as caught:
        pipeline.evaluate(
            export, Elsewhere(tmp_path / "data", MAP), tmp_path / "out", Silent(), training_data=exported.data
        )
    text = str(caught.value)
    assert f"{len(copies)} images of {tmp_path / 'data'} have a near-duplicate with another label" in text
    assert f"B/copy0.png (benign) and {copies['B/copy0.png']} (malignant)" in text
    assert not (tmp_path / "out").exists()
    there = Elsewhere(tmp_path / "data", MAP, leave_out_conflicts=True)
    found = pipeline.evaluate(export, there, tmp_path / "out", Silent(), training_data=exported.data)
    reasons = {image["path"]: image["reason"] for image in found["left_out"]}
    assert {reasons[name] for name in copies} == {"a twin in the training data has another label"}
    assert found["external"] == read(judged / "export")["external"]


def test_a_class_that_is_absent_is_named_and_the_binary_metrics_are_given(
    export: Path, elsewhere: Path, tmp_path: Path
) -> None:
    linked(elsewhere, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/N")
    told = Recorder()
    found = pipeline.evaluate(export, Elsewhere(tmp_path / "data", "benign=B,malignant=M"), tmp_path / "out", told)
    assert found["absent_classes"] == ["normal"]
    assert found["images"]["normal"] == 0
    assert any("has no image of class normal" in notice for notice in told.notices)
    external = found["external"]
    assert external["macro_f1"] is None
    assert None not in external.get("malignant_vs_rest", {None: None}).values()
    assert None not in external.get("benign_vs_malignant", {None: None}).values()
    assert not [name for name in found["differences"] if name.startswith(("macro", "per_class.normal"))]
    assert "malignant_vs_rest.sensitivity" in found["differences"]
    # With images of one class only, sensitivity still exists.
    shutil.rmtree(tmp_path / "data/B")
    found = pipeline.evaluate(export, Elsewhere(tmp_path / "data", "malignant=M"), tmp_path / "out", Silent())
    assert found["absent_classes"] == ["benign", "normal"]
    assert found["external"].get("malignant_vs_rest", {})["sensitivity"] is not None
    assert found["operating_point"]["stored"]["figures"]["specificity"]["value"] is None


def write_table(path: Path, lines: list[tuple[str, str]], columns: tuple[str, str] = ("path", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])
    return path


def test_a_table_is_taken_as_folders_are(export: Path, elsewhere: Path, judged: Path, tmp_path: Path) -> None:
    """The table has absolute paths and paths outside its folder, in another order than the folders."""
    paths = [path for path in images.walk(elsewhere) if not images.is_mask(path)]
    lines = [
        (str(path) if number % 2 else os.path.relpath(path, tmp_path), f" {path.parent.name}")
        for number, path in enumerate(reversed(paths))
    ]
    table = write_table(tmp_path / "clinic.csv", lines)
    found = pipeline.evaluate(export, Elsewhere(table, MAP), tmp_path / "out", Silent())
    folder = read(judged / "unchecked")
    assert found["images"] == folder["images"]
    assert numbers(found["external"]) == pytest.approx(numbers(folder["external"]))
    assert found["external"]["groups"] == folder["external"]["groups"]
    assert {row["path"] for row in rows(tmp_path / "out/predictions.csv")} <= {line[0] for line in lines}


def test_groups_of_patients_are_kept_together(export: Path, elsewhere: Path, judged: Path, tmp_path: Path) -> None:
    before = read(judged / "unchecked")["external"]
    table = rows(judged / "unchecked/predictions.csv")
    lines = [(row["path"], f"patient {number // 4}") for number, row in enumerate(table)]
    file = write_table(tmp_path / "patients.csv", lines, ("path", "group"))
    # An unreadable image in a group does not split the rest of the group.
    linked(elsewhere, tmp_path / "data")
    (tmp_path / "data" / table[0]["path"]).unlink()
    (tmp_path / "data" / table[0]["path"]).write_bytes(b"no image")
    told = Recorder()
    found = pipeline.evaluate(export, Elsewhere(tmp_path / "data", MAP, groups=file), tmp_path / "out", told)
    assert found["unreadable"] == [{"path": table[0]["path"], "reason": found["unreadable"][0]["reason"]}]
    assert any("cannot be read and are left out" in notice for notice in told.notices)
    after = {row["path"]: row["group"] for row in rows(tmp_path / "out/predictions.csv")}
    assert len(after) == before["images"] - 1
    assert after[table[1]["path"]] == after[table[2]["path"]] == after[table[3]["path"]]
    assert found["external"]["groups"] <= -(-len(table) // 4) < before["groups"]


def test_the_guard_warns_there(export: Path, elsewhere: Path, tmp_path: Path) -> None:
    shutil.copytree(elsewhere, tmp_path / "data")
    noise = np.random.default_rng(0)
    for path in images.walk(tmp_path / "data"):
        if not images.is_mask(path):
            Image.fromarray(noise.integers(0, 256, (*Image.open(path).size[::-1], 3), dtype=np.uint8)).save(path)
    found = pipeline.evaluate(export, Elsewhere(tmp_path / "data", MAP), tmp_path / "out", Silent())
    guard = found.get("guard")
    assert guard is not None
    assert guard["external"] > 0.9
    assert guard["internal"] < 0.3
    warned = [bool(row["warning"]) for row in rows(tmp_path / "out/predictions.csv")]
    assert np.mean(warned) == pytest.approx(guard["external"])


def empty(folder: Path) -> list[str]:
    (folder / "B").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / "B" / name).write_bytes(b"no image")
    return ["--map", "benign=B"]


def other_folder(folder: Path) -> list[str]:
    (folder / "benign").mkdir(parents=True)
    Image.new("RGB", (20, 20), "grey").save(folder / "benign/a.png")
    return ["--training-data", str(folder)]


def two_columns(folder: Path) -> list[str]:
    write_table(folder.with_suffix(".csv"), [("a.png", "benign")], ("file", "label"))
    return ["--data", str(folder.with_suffix(".csv"))]


def twice(folder: Path) -> list[str]:
    write_table(folder.with_suffix(".csv"), [("a.png", "benign"), ("./a.png", "malignant")])
    return ["--data", str(folder.with_suffix(".csv"))]


def no_file(folder: Path) -> list[str]:
    write_table(folder.with_suffix(".csv"), [("a.png", "benign")])
    return ["--data", str(folder.with_suffix(".csv"))]


def no_group(folder: Path) -> list[str]:
    write_table(folder.with_suffix(".csv"), [("a.png", "P1")], ("path", "group"))
    return ["--data", "THERE", "--map", MAP, "--groups", str(folder.with_suffix(".csv"))]


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda _: ["--data", "THERE", "--map", "cyst=B"], 2, "map names the class 'cyst', and the model has benign,"),
        (lambda _: ["--data", "THERE", "--map", "benign=X"], 2, "map names the label 'X', and THERE has B, M, N"),
        (lambda _: ["--data", "THERE", "--map", "benign"], 2, "map must be CLASS=LABEL pairs"),
        (lambda _: ["--data", "THERE", "--map", "benign=B,normal=B"], 2, "map gives the label 'B' two classes"),
        (lambda _: ["--data", "THERE"], 1, "THERE has the label 'B', which is not a class of the model"),
        (lambda _: ["--data", "nowhere"], 1, "nowhere is not a folder"),
        (empty, 1, "None of the 2 images in PLACE can be read: B/a.png ("),
        (no_file, 1, "None of the 1 images in "),
        (two_columns, 1, "must have the columns path and label, not file, label"),
        (twice, 1, "names 1 images twice: ./a.png"),
        (no_group, 1, "names 1 images that are not in the data folder: a.png"),
        (other_folder, 1, "PLACE"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_written(
    prepare: Callable[[Path], list[str]],
    code: int,
    words: str,
    export: Path,
    elsewhere: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    options = [part.replace("THERE", str(elsewhere)) for part in prepare(place)]
    data = [] if "--data" in options else ["--data", str(place)]
    assert exit_code(["evaluate", str(export), *data, *options, "--out", str(tmp_path / "out")]) == code
    output = capsys.readouterr()
    assert output.out == ""
    (sentence,) = [line for line in output.err.splitlines() if line.startswith("busi-tune: ")]
    assert words.replace("THERE", str(elsewhere)).replace("PLACE", str(place)) in sentence
    assert sentence.endswith(".")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_model_or_no_place_are_refused(
    exported: Exported, export: Path, elsewhere: Path, tmp_path: Path
) -> None:
    there = Elsewhere(elsewhere, MAP)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: pipeline.evaluate(tmp_path, there, tmp_path / "out", Silent()), "is neither a finished run nor"),
        (lambda: pipeline.evaluate(export, there, elsewhere / "out", Silent()), "is inside the folder of images"),
        (
            lambda: pipeline.evaluate(export, there, tmp_path / "foreign", Silent()),
            "is not empty and not an evaluation",
        ),
        (
            lambda: pipeline.evaluate(export, there, tmp_path / "out", Silent(), training_data=elsewhere),
            "is not the folder that the model was trained on",
        ),
    ]
    for work, words in cases:
        with pytest.raises(BusiTuneError, match=words):
            work()
    moved = linked(exported.run, tmp_path / "run")
    document = json.loads((moved / "data.json").read_text())
    (moved / "data.json").unlink()
    (moved / "data.json").write_text(json.dumps(document | {"folder": "/gone"}))
    with pytest.raises(BusiTuneError, match="name their folder with --training-data"):
        pipeline.evaluate(moved, there, tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_an_export_is_judged_without_pytorch_and_what_exports_are_made_with(
    exported: Exported, export: Path, elsewhere: Path, judged: Path, tmp_path: Path
) -> None:
    script = """
import sys
from importlib.abc import MetaPathFinder
class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "onnx", "onnxscript", "optuna", "safetensors", "jinja2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refusing())
from busi_tune.cli import exit_code
from busi_tune.cli.tables import show_run
from busi_tune.config import Config
sys.exit(exit_code(sys.argv[1:]))
"""
    options = ["--data", str(elsewhere), "--map", MAP, "--out", str(tmp_path / "out"), "--json"]
    command = [sys.executable, "-c", script, "evaluate"]
    done = subprocess.run(
        [*command, str(export), *options, "--training-data", str(exported.data)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The pictures may differ between processes.
    assert {**json.loads(done.stdout), "files": {}} == {**read(judged / "export"), "files": {}} | {
        "schema": results.SCHEMAS[EvaluationFile]
    }
    done = subprocess.run([*command, str(exported.run), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip install '/path/to/busi-tune[train]' installs all it takes.")


def test_it_is_shown_as_tables(
    export: Path, exported: Exported, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(elsewhere), "--map", MAP, "--out", str(tmp_path / "out")]
    assert exit_code(["evaluate", str(export), *options, "--training-data", str(exported.data)]) == 0
    text = capsys.readouterr().out
    for words in (
        f"{export} on {elsewhere}: accuracy ",
        "malignant vs rest sensitivity",
        "aurc",
        "Confusion matrix of the external images",
        "External images flagged as malignant, threshold for a sensitivity of 0.8",
        "The input guard warns of",
        "On the external images the mean confidence is",
        "Compared with",
    ):
        assert words in text


@pytest.mark.parametrize("form", ["table", "--csv", "--json", "--jsonl"])
def test_answers_below_the_confidence_are_marked_to_be_referred(
    form: str, export: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    command = ["predict", str(export), str(elsewhere), str(tmp_path / "broken.png"), "--min-confidence", "0.45"]
    file = tmp_path / "answers.csv"
    assert exit_code([*command, *{"table": [], "--csv": ["--csv", str(file)]}.get(form, [form])]) == 1
    text = capsys.readouterr().out
    if form == "table":
        heading, _, *lines = text.splitlines()
        marks = [line[heading.index("refer") :].split()[0] for line in lines[:-1]]
        assert set(marks) == {"yes", "no"}
        return
    if form == "--csv":
        *table, broken = rows(file)
        sure = [max(float(row[f"p_{name}"]) for name in ("benign", "malignant", "normal")) for row in table]
        pairs = [(value < 0.45, row["refer"] == "True") for value, row in zip(sure, table, strict=True)]
        assert broken["refer"] == ""
    else:
        listed = json.loads(text) if form == "--json" else [json.loads(line) for line in text.splitlines()]
        pairs = [(max(entry["probabilities"].values()) < 0.45, entry["refer"]) for entry in listed[:-1]]
        assert "refer" not in listed[-1]
    assert all(low == refer for low, refer in pairs)
    assert {refer for _, refer in pairs} == {True, False}


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "high"])
def test_a_confidence_that_is_no_share_is_refused(value: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["predict", str(export), "a.png", f"--min-confidence={value}"]) == 2
    assert "--min-confidence" in capsys.readouterr().err


def test_runs_and_certificates_of_earlier_versions_are_read_as_they_are(
    exported: Exported, export: Path, tiny: Config, tmp_path: Path
) -> None:
    """Earlier versions wrote neither the area under the risk-coverage curve nor the curves."""
    run = linked(exported.run, tmp_path / "run")
    document = json.loads((run / "metrics.json").read_text())
    for part in ("validation", "test"):
        del document[part]["aurc"], document[part]["risk_coverage"]
    del document["sha256"], document["test"]["intervals"]["aurc"]
    (run / "metrics.json").unlink()
    (run / "metrics.json").write_text(json.dumps(document))
    assert pipeline.baseline(exported.data, run, tiny, Silent()) == document
    show_run(results.read(run / "metrics.json", results.MetricsFile), run)
    certificate: dict[str, object] = {**read_certificate(export)}
    del certificate["validation_risk_coverage"], certificate["seen_images"]
    results.check(certificate, results.VerificationFile, "certificate")


def test_an_evaluation_has_a_page(export: Path, elsewhere: Path, tmp_path: Path) -> None:
    place = tmp_path / "<script>there"
    found = pipeline.evaluate(export, Elsewhere(elsewhere, MAP), place, Silent())
    report = pipeline.report(place, Silent())
    assert (report["kind"], report["finished"], report["evaluation"]) == ("evaluation", True, found)
    assert report["verdict"].startswith(f"External accuracy {found['external']['accuracy']:.3f} (95 % interval")
    assert f"the difference is {found['differences']['accuracy']['difference']:+.3f}" in report["verdict"]
    assert report["figures"][0]["value"] == found["external"]["accuracy"]
    assert report["answers"]["grouped"]
    assert report["sections"][-3:] == ["evaluation", "mistakes", "repeat"]
    page = (place / "report.html").read_text()
    assert "<script>there" not in page
    # The pictures are those of the external images.
    assert page.count("data:image/jpeg") == len(report["answers"]["mistakes"]) > 0
    assert f"--map {MAP}" in report["commands"][0]
