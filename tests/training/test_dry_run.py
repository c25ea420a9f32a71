"""`--dry-run`: the plan of each command that trains. It writes nothing, and refuses what the command refuses."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import schemas
from busi_tune.cli import exit_code
from busi_tune.data.split import read_split
from busi_tune.locks import only_writer

pytestmark = pytest.mark.slow

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
COMMANDS = {
    "baseline": ["baseline", "--epochs", "2", "--seeds", "2", "--out", "made"],
    "search": ["search", "--epochs", "2", "--trials", "3", "--trial-epochs", "1", "--confirm", "1", "--out", "made"],
    "nested": ["search", "--folds", "2", "--epochs", "1", "--trials", "2", "--out", "made"],
    "crossval": ["crossval", "--epochs", "2", "--folds", "2", "--repeats", "2", "--out", "made"],
    "run": ["run", "--epochs", "2", "--trials", "2", "--trial-epochs", "1"],
}


@pytest.fixture
def place(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the images in `data` and an empty cache in `cache`."""
    shutil.copytree(phantoms, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the times of all files and folders."""
    return {
        str(path): (entry.st_size, entry.st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if (entry := path.lstat())
    }


def plan(command: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The plan of a command, which changes nothing."""
    before = state(place)
    assert exit_code([*command, *SMALL, "--data", "data", "--dry-run", "--json"]) == 0
    assert state(place) == before
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads((schemas.FOLDER / "plan.json").read_text())).validate(found)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_writes_nothing_and_counts_all_work(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(COMMANDS[name], place, capsys)
    lefts = {
        "baseline": {"run": 2, "seed 1": 2},
        # Two more epochs: trial 0 and the confirmed trial to their ends; its two other seeds take two epochs each.
        "search": {"study": 3 + 1 + 1 + 4},
        "nested": {"baseline, fold 1": 1, "baseline, fold 2": 1, "study, fold 1": 1, "study, fold 2": 1},
        "crossval": {"fold 1": 2, "fold 2": 2},
        "run": {"run": 2, "study": 1 + 1},
    }
    assert {stage["name"]: stage["epochs_left"] for stage in found["stages"]} == lefts[name]
    assert len(found["stages"]) == (4 if name in ("crossval", "nested") else len(lefts[name]))
    assert found["seconds"] > found["evaluation_seconds"] > 0
    assert found["cache_bytes"] > 0
    assert all(stage["seconds"] > 0 and stage["disk_bytes"] > 1e6 for stage in found["stages"])


def test_only_the_rest_of_a_run_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["baseline", "--out", "run", "--epochs"]
    first = plan([*command, "2"], place, capsys)["stages"][0]
    assert exit_code([*command, "2", *SMALL, "--data", "data"]) == 0
    capsys.readouterr()
    split = read_split(Path("run/split.csv"))
    assert first["images"] == {part: len(split.rows(part)) for part in ("train", "validation", "test")}
    assert first["steps_per_epoch"] == -(-first["images"]["train"] // 16)
    finished = plan([*command, "2"], place, capsys)
    assert (finished["stages"][0]["epochs_left"], finished["stages"][0]["finished"]) == (0, 1)
    assert finished["evaluation_seconds"] == finished["cache_bytes"] == 0
    longer = plan([*command, "5"], place, capsys)["stages"][0]
    assert (longer["epochs_done"], longer["epochs_left"]) == (2, 3)
    anew = plan([*command, "2", "--overwrite"], place, capsys)["stages"][0]
    assert (anew["epochs_done"], anew["epochs_left"]) == (0, 2)
    before = state(place)
    assert exit_code([*command, "5", *SMALL, "--data", "data", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "nothing has been begun or written" in text
    assert "To begin, run the same command without --dry-run." in text
    assert state(place) == before


def test_only_the_rest_of_a_study_and_of_folds_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = ["search", "--epochs", "3", "--trial-epochs", "2", "--out", "study", "--trials"]
    assert exit_code([*study, "2", *SMALL, "--data", "data"]) == 0
    folds = ["crossval", "--epochs", "1", "--folds", "2", "--out", "folds"]
    assert exit_code([*folds, *SMALL, "--data", "data"]) == 0
    capsys.readouterr()
    ended = plan([*study, "2"], place, capsys)["stages"][0]
    assert (ended["trainings"], ended["finished"], ended["epochs_left"]) == (2, 2, 0)
    more = plan([*study, "4"], place, capsys)["stages"][0]
    # Two more trials of two epochs, and the end of the best one.
    assert (more["finished"], more["epochs_done"], more["epochs_left"]) == (2, 4, 2 * 2 + 1)
    assert plan(folds, place, capsys)["evaluation_seconds"] == 0
    Path("folds/pooled.json").unlink()
    shutil.rmtree("folds/folds/2")
    half = plan(folds, place, capsys)["stages"]
    assert [stage["epochs_left"] for stage in half] == [0, 1]


@pytest.mark.usefixtures("place")
def test_a_dry_run_refuses_what_the_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    whole = [*SMALL, "--data", "data"]
    assert exit_code(["baseline", "--epochs", "1", "--out", "run", *whole]) == 0
    assert exit_code(["search", "--epochs", "1", "--trials", "1", "--out", "study", *whole]) == 0
    assert exit_code(["crossval", "--epochs", "1", "--folds", "2", "--out", "folds", *whole]) == 0
    shutil.copytree("data", "broken")
    next(path for path in Path("broken/benign").glob("*.png") if "mask" not in path.name).write_bytes(b"no image")
    Path("file").touch()
    Path("full").mkdir()
    Path("full/letter.txt").touch()
    Path("space.toml").write_text("batch = [8, 16]\n")
    Path("weights.pth").write_bytes(b"no weights")
    # A damaged checkpoint, which a longer run needs.
    shutil.copytree("run", "torn")
    for path in Path("torn/checkpoints").iterdir():
        path.write_bytes(b"no tensors")
    refused = [
        ["baseline", *SMALL, "--data", "nowhere"],
        ["baseline", *SMALL, "--data", "broken", "--out", "new"],
        ["baseline", *whole, "--out", "data/new"],
        ["baseline", *whole, "--out", "full"],
        ["baseline", *whole, "--out", "file"],
        ["baseline", *whole, "--out", "file/new"],
        ["baseline", *whole, "--out", "new", "--arch", "resnet51"],
        ["baseline", *whole, "--out", "new", "--weights", "weights.pth"],
        ["baseline", *whole, "--out", "new", "--split", "nowhere.csv"],
        ["baseline", *whole, "--out", "new", "--device", "cuda:77"],
        ["baseline", *whole, "--out", "run", "--epochs", "1", "--learning-rate", "0.5"],
        ["baseline", *whole, "--out", "torn", "--epochs", "2"],
        ["search", *whole, "--out", "new", "--epochs", "1", "--trial-epochs", "2"],
        ["search", *whole, "--out", "new", "--space", "space.toml"],
        ["search", *whole, "--out", "new", "--baseline", "study"],
        ["search", *whole, "--out", "run"],
        ["search", *whole, "--out", "study", "--epochs", "1", "--metric", "val_accuracy"],
        ["search", *whole, "--out", "new", "--folds", "2", "--strategy", "random"],
        ["search", *whole, "--out", "new", "--folds", "99"],
        ["crossval", *whole, "--out", "new", "--folds", "99"],
        ["crossval", *whole, "--out", "folds", "--epochs", "1", "--folds", "3"],
        ["crossval", *whole, "--out", "folds", "--epochs", "2", "--folds", "2"],
        ["run", *whole, "--epochs", "1", "--trial-epochs", "2"],
        ["run", "--demo"],
    ]
    for command in refused:
        capsys.readouterr()
        dry = exit_code([*command, "--dry-run"])
        said = capsys.readouterr().err.splitlines()[-1]
        assert dry > 0, command
        if command == ["run", "--demo"]:
            assert said.endswith("A dry run draws no phantoms; first run busi-tune data demo --out data/demo.")
            continue
        assert not Path("new").exists(), command
        assert exit_code(command) == dry, command
        assert capsys.readouterr().err.splitlines()[-1] == said, command
        shutil.rmtree("new", ignore_errors=True)
    for folder, words in (("run", ["baseline"]), ("folds", ["crossval", "--folds", "2"])):
        Path(folder, "metrics.json").unlink(missing_ok=True)
        with only_writer(Path(folder)):
            assert exit_code([*words, "--epochs", "1", "--out", folder, *whole, "--dry-run"]) == 1
        assert "is in use by another busi-tune process" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_study_that_varies_architectures_is_measured_on_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = 'arch = {choices = ["squeezenet1_1", "shufflenet_v2_x0_5"]}\n'
    Path("space.toml").write_text(f"{arch}batch_size = {{low = 8, high = 16, step = 8}}\n")
    command = ["search", "--epochs", "12", "--trials", "3", "--space", "space.toml", "--out", "study"]
    found = plan(command, place, capsys)
    # The pruner waits for the scheduler's patience, which is five epochs by default, and two more.
    assert found["seconds_with_pruning"] < found["seconds"]
    short = plan([*command, "--trial-epochs", "7"], place, capsys)
    assert short["seconds_with_pruning"] == short["seconds"]
    limited = plan([*command, "--timeout", "1s"], place, capsys)
    assert limited["seconds"] < found["seconds"]
