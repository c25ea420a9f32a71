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


def test_nothing_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(tmp_path, capsys) == {}
    assert exit_code(["list", str(tmp_path)]) == 0
    assert "holds no results" in capsys.readouterr().out
    assert exit_code(["list", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
