"""`busi-tune list`: the results below a folder, their states, and their next commands."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from busi_tune import pipeline
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.locks import only_writer
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions
from exported import Exported

pytest_plugins = ["exported"]
pytestmark = pytest.mark.slow


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The listed entries by their paths relative to the folder."""
    assert exit_code(["list", str(folder), "--json"]) == 0
    return {Path(entry["path"]).relative_to(folder).as_posix(): entry for entry in json.loads(capsys.readouterr().out)}


def test_all_kinds_and_states(
    exported: Exported, tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tiny.replace(epochs=1)
    pipeline.search(exported.data, tmp_path / "study", short, SearchOptions(trials=2, trial_epochs=1), Silent())
    pipeline.crossval(exported.data, tmp_path / "folds", short, CrossvalOptions(folds=2), Silent())
    for name in ("run", "cut", "held", "bad"):
        shutil.copytree(exported.run, tmp_path / "runs" / name)
    shutil.copytree(exported.folder, tmp_path / "export")
    (tmp_path / "runs" / "cut" / "metrics.json").unlink()
    (tmp_path / "runs" / "bad" / "state.json").write_text("{")
    # The file of another program.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"schema": 1}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    shutil.copytree(tmp_path / "folds", tmp_path / "half")
    (tmp_path / "half" / "pooled.json").unlink()
    # A second name of a file takes no space.
    (tmp_path / "export" / "same.onnx").hardlink_to(tmp_path / "export" / "model.onnx")
    with only_writer(tmp_path / "runs" / "held"):
        found = listed(tmp_path, capsys)
    states = {name: (entry["kind"], entry["state"]) for name, entry in found.items()}
    assert states == {
        "export": ("export", "finished"),
        "folds": ("cross-validation", "finished"),
        "half": ("cross-validation", "unfinished"),
        "runs/bad": ("run", "damaged"),
        "runs/cut": ("run", "unfinished"),
        "runs/held": ("run", "running"),
        "runs/run": ("run", "finished"),
        "study": ("study", "finished"),
    }
    test = exported.certificate["test"]
    for name in ("export", "runs/run"):
        assert (found[name]["accuracy"], found[name]["macro_f1"]) == (test["accuracy"], test["macro_f1"])
        assert found[name]["accuracy_interval"] == test["intervals"]["accuracy"]
    assert found["study"]["detail"] == "2 trials by val_loss"
    assert found["half"]["detail"] == "2 of 2 folds"
    assert found["runs/cut"]["accuracy"] is None
    assert found["runs/held"]["next"] == ""
    (tmp_path / "export" / "same.onnx").unlink()
    inside = sum(path.stat().st_size for path in (tmp_path / "export").rglob("*") if path.is_file())
    assert found["export"]["size_bytes"] == inside
    assert found["runs/run"]["next"] == shlex.join(
        ["busi-tune", "export", str(tmp_path / "runs" / "run"), "--out", "exports/run"]
    )

    # The listed command finishes the unfinished run without training again.
    command = shlex.split(found["runs/cut"]["next"])
    assert command[:2] == ["busi-tune", "baseline"]
    assert exit_code(command[1:]) == 0
    command = shlex.split(found["half"]["next"])
    assert exit_code(command[1:]) == 0
    capsys.readouterr()
    found = listed(tmp_path, capsys)
    assert {found[name]["state"] for name in ("runs/cut", "half")} == {"finished"}
    assert found["runs/cut"]["accuracy"] == test["accuracy"]

    assert exit_code(["list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(found["study"]["next"] in line for line in lines)


SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
ODD = [*SMALL, "--fractions", "0.6123456789,0.2,0.1876543211", "--no-class-weights", "--learning-rate", "0.00123456789"]
# Commands in order; each ends with the folder of its result.
BEGUN = [
    ["baseline", "--epochs", "1", "--seeds", "2", *ODD, "--out", "runs/seeds"],
    [
        *("search", "--epochs", "2", "--trials", "2", "--trial-epochs", "1", "--space", "space.toml"),
        *("--metric", "val_accuracy", "--pruner", "none", "--keep-trials", "2", *ODD, "--out", "studies/odd study"),
    ],
    ["crossval", "--epochs", "1", "--folds", "2", "--repeats", "2", *ODD, "--out", "folds"],
    ["search", "--epochs", "1", "--trials", "2", "--folds", "2", "--baseline", "other", *SMALL, "--out", "nested"],
]


def cut(place: Path) -> None:
    """Takes results back to what a kill would have left."""
    shutil.rmtree(place / "runs/seeds/seeds/1")
    (place / "runs/seeds/seeds.json").unlink()
    for name in ("outcome.json", "verdict.json"):
        (place / "studies/odd study" / name).unlink()
    shutil.rmtree(place / "studies/odd study/best")
    (place / "folds/repeats/2/pooled.json").unlink()
    (place / "nested/nested_verdict.json").unlink()
    shutil.rmtree(place / "nested/studies/2")


def test_every_printed_command_runs_as_it_stands(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text("learning_rate = {low = 1e-4, high = 1e-2, log = true}\n")
    data = ["--data", str(phantoms)]
    assert exit_code(["crossval", "--epochs", "1", "--folds", "2", *SMALL, *data, "--out", "other"]) == 0
    for command in BEGUN:
        assert exit_code([*command, *data]) == 0, command
    shutil.rmtree("other/repeats", ignore_errors=True)
    cut(tmp_path)
    # The space is needed again, and its file may be gone.
    Path("space.toml").unlink()
    capsys.readouterr()
    before = listed(Path(), capsys)
    assert {name: entry["state"] for name, entry in before.items()} == {
        "folds": "unfinished",
        "nested": "unfinished",
        "other": "finished",
        "runs/seeds": "unfinished",
        "studies/odd study": "unfinished",
    }
    assert "--trials 2" in before["studies/odd study"]["next"]
    for entry in before.values():
        assert exit_code(shlex.split(entry["next"])[1:]) == 0, entry["next"]
    capsys.readouterr()
    after = listed(Path(), capsys)
    assert {entry["state"] for entry in after.values()} == {"finished"}
    assert after["studies/odd study"]["detail"] == "2 trials by val_accuracy"
    # Finished results are exported or shown; one export is enough.
    for entry in (each for name, each in after.items() if not name.startswith("studies")):
        assert exit_code(shlex.split(entry["next"])[1:]) == 0, entry["next"]
    capsys.readouterr()
    last = listed(Path(), capsys)
    assert last["runs/seeds"]["next"] == "busi-tune report runs/seeds --export exports/seeds"
    assert last["exports/seeds"]["next"] == "busi-tune verify exports/seeds"
    for entry in (each for name, each in last.items() if not name.startswith("studies")):
        assert exit_code(shlex.split(entry["next"])[1:]) == 0, entry["next"]


def test_a_taken_name_of_an_export_is_not_printed(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported.run, "run")
    shutil.copytree(exported.folder, "exports/run")
    certificate = json.loads(Path("exports/run/verification.json").read_text()) | {"source_sha256": "0" * 64}
    Path("exports/run/verification.json").write_text(json.dumps(certificate))
    assert listed(Path(), capsys)["run"]["next"] == "busi-tune export run --out exports/run-2"


def test_nothing_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(tmp_path, capsys) == {}
    assert exit_code(["list", str(tmp_path)]) == 0
    assert "holds no results" in capsys.readouterr().out
    assert exit_code(["list", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
