"""Screen output: progress and tables at 80 and 120 columns, logs, hints, and the next command."""

import os
import re
import sys
from pathlib import Path

import pytest

from busi_tune import pipeline
from busi_tune.cli import exit_code
from busi_tune.cli.export import default_folder
from busi_tune.cli.screen import Screen
from busi_tune.cli.tables import show_run, show_search, show_seeds
from busi_tune.config import Config
from busi_tune.evaluation.metrics import worsened
from busi_tune.evaluation.seeds import compare_seeds
from busi_tune.progress import Silent
from busi_tune.results import Json, MetricsFile, SearchResult
from terminal import in_a_terminal, shown

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
EPOCH = re.compile(r"epoch \d/3  loss \S+  val_loss \S+  val_acc 0\.\d{3} \(best 0\.\d{3}\)  \d+\.\d s")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> MetricsFile:
    config = Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=1, device="cpu")
    return pipeline.baseline(phantoms, tmp_path_factory.mktemp("screen") / "run", config, Silent())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_whole_lines_and_keeps_one_for_each_epoch(
    columns: int, tmp_path: Path, phantoms: Path
) -> None:
    command = ["baseline", "--data", str(phantoms), "--out", "run", "--epochs", "3", *SMALL]
    code, raw = in_a_terminal([sys.executable, "-m", "busi_tune", *command], tmp_path, columns)
    assert code == 0, raw
    lines = shown(raw)
    assert sum(EPOCH.fullmatch(line) is not None for line in lines) == 3
    # Only paths and the next command may exceed the width.
    assert [line for line in lines if len(line) > columns and str(tmp_path.parent) not in line] == []
    assert "Next: busi-tune search --data" in lines[-1]
    # The bar advances by batches, and shows the time left of the epoch and of the training.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", raw)
    assert re.search(r"training [━╸╺]+ \d/3 epoch \d\d:\d\d, \d\d:\d\d left", plain)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_trials_of_a_study_as_a_table(columns: int, tmp_path: Path, phantoms: Path) -> None:
    study = ["--out", "study", "--epochs", "2", "--trial-epochs", "2", "--trials", "3", *SMALL]
    command = [sys.executable, "-m", "busi_tune", "search", "--data", str(phantoms), *study]
    code, raw = in_a_terminal(command, tmp_path, columns)
    assert code == 0, raw
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", raw).replace("\r", "\n")
    heads = [line for line in plain.splitlines() if line.split()[:4] == ["trial", "state", "val_loss", "epochs"]]
    assert len(heads) >= 6
    assert max(map(len, heads)) <= columns
    assert re.search(r"^ *0 \* +complete +\S+ +2/2 ", plain, re.M)
    assert re.search(r"^ *2 +running +\S+ +1/2 ", plain, re.M)
    # The table is gone at the end, and its lines do not stay.
    assert not [line for line in shown(raw) if line.split()[:2] == ["trial", "state"] and "epochs" in line.split()[3:4]]


def test_a_log_has_one_line_for_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for epoch in (1, 2):
        for share in (0.25, 0.5, 1.0):
            screen.within("training", epoch - 1, 2, share)
        screen.step("training", epoch, 2, f"epoch {epoch}/2")
    screen.step("decoding", 5, 9)
    screen.step("decoding", 9, 9)
    assert capsys.readouterr().err.splitlines() == ["epoch 1/2", "epoch 2/2", "decoding 9/9"]


def study(parameters: int) -> SearchResult:
    """A study of two trials that vary `parameters` parameters; another driver will train the best one."""
    varied = ["learning_rate", "weight_decay", "scheduler_patience", *(f"another_parameter_{k}" for k in range(9))]
    given: dict[str, Json] = dict.fromkeys(varied[:parameters], 0.00027391)
    measured: dict[str, Json] = {"val_accuracy": 0.35, "val_macro_f1": 0.2206, "epochs_run": 12, "best_epoch": 9}
    trials: list[dict[str, Json]] = [
        {"number": number, "state": state, "value": 51283.4, **given, **measured, "seconds": 4.7, "stop_reason": reason}
        for number, state, reason in ((18, "COMPLETE", "trial epochs done"), (19, "PRUNED", "pruned"))
    ]
    return {
        "schema": "busi-tune.search/2",
        "metric": "val_loss",
        "trials": trials,
        "disk_bytes": 0,
    }


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("parameters", [3, 9])
def test_the_trials_fit_into_the_screen(
    parameters: int, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("busi_tune.cli.screen.WIDTH", columns)
    show_search(study(parameters), Path("study"))
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    for word in ("complete", "pruned", "5.13e+04", "0.000274", "9/12"):
        assert word in text
    rows = [line for line in lines if line.split()[:1] in (["18"], ["19"])]
    assert len(rows) == (2 if parameters == 3 else 0)


def test_six_metrics_are_shown_and_all_when_asked_for(figures: MetricsFile, capsys: pytest.CaptureFixture[str]) -> None:
    show_run(figures, Path("run"))
    few = capsys.readouterr().out
    show_run(figures, Path("run"), everything=True)
    many = capsys.readouterr().out
    names = ["accuracy", "balanced accuracy", "macro f1", "macro roc auc"]
    names += ["malignant vs rest sensitivity", "malignant vs rest specificity"]
    found = [re.split(r"  +", line.strip())[0] for line in few.splitlines() if re.search(r"  0\.\d{3}", line)]
    largest = max(figures["test"]["per_class"].items(), key=lambda item: item[1]["images"])[0]
    assert found[:7] == [names[0], f"always {largest}", *names[1:]]
    assert "macro recall" not in many
    assert many.count("balanced accuracy") == 1
    assert "log loss" in many
    assert "log loss" not in few


def test_seeds_have_each_figure_once(figures: MetricsFile, capsys: pytest.CaptureFixture[str]) -> None:
    show_seeds(compare_seeds({0: figures, 1: figures}))
    show_seeds(compare_seeds({0: figures, 1: figures}), everything=True)
    few, many = capsys.readouterr().out.split("The same training")[1:]
    assert sum(" 0.000 " in line for line in few.splitlines()) == 6
    assert "macro recall" not in many
    assert many.count("balanced accuracy") == 1


def test_equal_class_shares_are_left_out(figures: MetricsFile, capsys: pytest.CaptureFixture[str]) -> None:
    equal: MetricsFile = {**figures, "effective_prior": {"a": 0.33, "b": 0.33, "c": 0.34}}
    show_run(equal, Path("run"))
    assert "class shares" not in capsys.readouterr().out
    show_run({**equal, "effective_prior": {"a": 0.3, "b": 0.33, "c": 0.37}}, Path("run"))
    assert "these class shares in training: a 0.30, b 0.33, c 0.37." in capsys.readouterr().out


def test_a_temperature_that_makes_the_calibration_worse_is_named() -> None:
    before, after = (
        {"brier": 0.5, "log_loss": 0.7, "calibration_error": 0.1},
        {"brier": 0.6, "log_loss": 0.6, "calibration_error": None},
    )
    assert worsened({"before": before, "after": after}) == ["Brier score"]  # type: ignore[typeddict-item]
    assert worsened({"before": before, "after": before}) == []  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["baseline", "../data"],
            "Got an unexpected argument, ../data. Name the folder of images with --data ../data.",
        ),
        (["search", "data", "--data", "data"], "Name the folder of images with --data data."),
        (["export", "run", "other"], "Got an unexpected argument, other."),
        (["baseline", "--data", "d", "--lr", "0.1"], "Did you mean --learning-rate?"),
        (["search", "--data", "d", "--batch", "8"], "Did you mean --batch-size?"),
        (["crossval", "--data", "d", "--learning_rate", "1"], "Did you mean --learning-rate?"),
        (["train", "--data", "d"], "No such command, train. Did you mean busi-tune baseline?"),
        (["serach"], "Did you mean busi-tune search?"),
        (["split"], "Did you mean busi-tune data split?"),
        (["../images"], "Did you mean busi-tune run --data ../images?"),
        (["baseline", "--data", "d", "--config", "lr.toml"], "unknown key 'lr', did you mean 'learning_rate'?"),
        (["baseline", "--data", "d", "--config", "lr.toml"], "unknown key 'model', did you mean 'arch'?"),
        (["baseline", "--data", "d", "--config", "lr.toml"], "unknown key 'training' (write keys outside of tables)"),
        (["search", "--data", "d", "--space", "space.toml"], "unknown key 'batch', did you mean 'batch_size'?"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(
    command: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr.toml").write_text('lr = 1\nmodel = "x"\n[training]\nepochs = 1\n')
    Path("space.toml").write_text("batch = [8, 16]\n")
    assert exit_code(command) == 2
    assert words in capsys.readouterr().err


def test_an_export_has_the_name_of_its_run_or_study() -> None:
    assert default_folder(Path("studies/tuned/best")) == Path("exports/tuned")
    assert default_folder(Path("studies/baseline/")) == Path("exports/baseline")


@pytest.mark.slow
def test_the_next_command_has_the_options_of_this_one(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text("fractions = [0.6, 0.2, 0.2]\nclass_weights = false\n")
    command = ["baseline", "--data", str(phantoms), "--out", "my/run", "--epochs", "1", "--config", "c.toml", *SMALL]
    assert exit_code(command) == 0
    output = capsys.readouterr()
    following = output.out.splitlines()[-1].removeprefix("Next: busi-tune ")
    assert following == (
        f"search --data {phantoms} --fractions 0.6,0.2,0.2 --arch squeezenet1_1 --weights none --image-size 32 "
        "--no-class-weights --batch-size 16 --epochs 1 --device cpu --baseline my/run --out my/run-tuned"
    )
    assert exit_code([*following.split(), "--trials", "1", "--trial-epochs", "1"]) == 0
    told = capsys.readouterr()
    assert "my/run is the study's first trial" in told.err
    # The best trial is the baseline: no training is reported, and the verdict is the last line.
    assert "trained" not in told.out.split("Best is trial 0")[1].splitlines()[0]
    assert told.out.splitlines()[-1].startswith("No evidence of a difference")
    assert [path for path in Path("my").rglob("*") if path.name.endswith(".lock")] == []
    assert "left out: near-duplicates of them carry another label. my/run/split.excluded.csv lists them." in output.err
    assert re.search(
        r"^busi-tune \S+ trains squeezenet1_1 \(random weights, 32 x 32 pixels\) on cpu in ", output.err, re.M
    )
    assert re.search(r"^Images: train \d+, validation \d+, test \d+\. Results go to my/run\.$", output.err, re.M)
    assert re.search(
        r"^The study takes up to \d+ MB of disk: checkpoints of 3 trainings, \d+ MB each\.", told.err, re.M
    )


def test_the_terminal_of_these_tests_shows_what_a_terminal_does() -> None:
    assert shown("a bar\r\x1b[2Ka line\r\nanother bar\x1b[1A\r\x1b[2Kb") == ["b", "another bar"]
    assert os.linesep in ("\n", "\r\n")
