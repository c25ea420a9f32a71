"""Runs and studies with changed files: results are recreated with a notice, or the file is refused by name."""

import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from busi_tune import __version__, files, pipeline
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError, ConfigError, FileError, RunError
from busi_tune.export.source import Source
from busi_tune.search_options import SearchOptions
from busi_tune.training import exportable, run_folder
from busi_tune.training.run_copies import copy_run
from exported import linked, replace
from recorder import Recorder
from result_files import tree

pytestmark = pytest.mark.slow

SMALL = Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=2, device="cpu")
OPTIONS = SearchOptions(trials=2, trial_epochs=1)
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def studies(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and a study that adopts it; tests must not change them."""
    place = tmp_path_factory.mktemp("changed") / "studies"
    pipeline.baseline(phantoms, place / "baseline", SMALL, Recorder())
    pipeline.search(phantoms, place / "tuned", SMALL, OPTIONS, Recorder())
    return place


@pytest.fixture
def run(studies: Path, tmp_path: Path) -> Path:
    """A copy of the run that tests may change."""
    return linked(studies / "baseline", tmp_path / "baseline")


@pytest.fixture
def study(studies: Path, tmp_path: Path) -> Path:
    """A copy of the study that tests may change."""
    target = linked(studies / "tuned", tmp_path / "tuned")
    replace(target / "study.db", (target / "study.db").read_bytes())
    return target


def refused(work: Callable[[], object], kind: type[BusiTuneError] = FileError) -> str:
    """The one-sentence error of `work`."""
    with pytest.raises(kind) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def moved_to_test(run: Path) -> None:
    """Moves ten rows from the training split to the test split."""
    lines = (run / "split.csv").read_text().splitlines(keepends=True)
    trained = [number for number, line in enumerate(lines) if ",train," in line][:10]
    changed = [line.replace(",train,", ",test,") if n in trained else line for n, line in enumerate(lines)]
    replace(run / "split.csv", "".join(changed).encode())


def other_groups(run: Path) -> None:
    """Puts every image in a group of its own."""
    with (run / "split.csv").open(newline="") as file:
        rows = [dict(row, group=str(number)) for number, row in enumerate(csv.DictReader(file))]
    (run / "split.csv").unlink()
    files.write_csv(run / "split.csv", rows)


def no_exclusions(run: Path) -> None:
    """Deletes the table of left-out images."""
    (run / "split.excluded.csv").unlink()


@pytest.mark.parametrize("damage", [moved_to_test, other_groups, no_exclusions])
def test_every_command_that_reads_a_run_compares_its_split(
    damage: Damage, run: Path, study: Path, phantoms: Path, tmp_path: Path
) -> None:
    damage(run)
    for work in (
        lambda: pipeline.baseline(phantoms, run, SMALL, Recorder()),
        lambda: pipeline.baseline(phantoms, run, SMALL.replace(epochs=3), Recorder()),
        lambda: pipeline.run_data(run, phantoms, Recorder()),
        lambda: pipeline.export(run, tmp_path / "export", phantoms, Recorder()),
    ):
        assert f"{run / 'split.csv'} is not the split that the run was made on" in refused(work)
    text = refused(
        lambda: pipeline.search(phantoms, tmp_path / "new", SMALL, OPTIONS, Recorder(), baseline_run=run), RunError
    )
    assert f"{run / 'split.csv'} is not the split that the run was made on" in text
    damage(study)
    text = refused(lambda: pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder()))
    assert f"{study / 'split.csv'} is not the split that the study began with" in text


def changed(path: Path, change: Callable[[Any], object], *, forged: bool = True) -> None:
    """Changes a JSON file without renewing its SHA-256, as a user would.

    With `forged`, the SHA-256 is removed, so the file resembles one of an earlier version.
    """
    document = json.loads(path.read_text())
    change(document)
    if forged:
        document.pop("sha256", None)
    replace(path, json.dumps(document, indent=1).encode())


def test_class_names_in_another_order_are_refused(run: Path, phantoms: Path) -> None:
    changed(run / "config.json", lambda d: d["classes"].reverse())
    for work in (
        lambda: pipeline.baseline(phantoms, run, SMALL, Recorder()),
        lambda: pipeline.run_data(run, phantoms, Recorder()),
    ):
        text = refused(work)
        assert f"{run / 'config.json'} names the classes normal, malignant, benign" in text
        assert "the images have benign, malignant, normal" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["config"].update(mean=[0.9, 0.1, 0.1]),
        lambda d: d["config"].update(std=[0.5, 0.5, 0.5]),
        lambda d: d["config"].update(image_size=48),
    ],
)
def test_an_export_compares_its_answers_with_the_runs(change: Damage, run: Path, phantoms: Path) -> None:
    def compare() -> None:
        source = Source.of(run, pipeline.run_data(run, phantoms, Recorder()), Recorder())
        logits = exportable.computed(source.model, source.part("test").pixels(), "float64").logits
        source.check_answers(logits, 1e-6)

    compare()
    changed(run / "config.json", change)
    assert f"The model in {run} does not give the predictions in the run's predictions" in refused(compare, RunError)


def emptied(name: str) -> Damage:
    return lambda run: replace(run / name, b"")


def removed(name: str) -> Damage:
    return lambda run: (run / name).unlink()


def flipped(name: str) -> Damage:
    def damage(run: Path) -> None:
        [path] = run.glob(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        replace(path, bytes(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda run: changed(run / "metrics.json", lambda d: d["test"].update(accuracy=0.99), forged=False), "metrics"),
        (lambda run: changed(run / "metrics.json", lambda d: d.update(model_sha256="0" * 64)), "metrics.json"),
        (lambda run: replace(run / "metrics.json", b"{}"), "metrics.json"),
        (lambda run: replace(run / "metrics.json", b"[" * 100_000), "metrics.json"),
        (emptied("predictions.csv"), "predictions.csv"),
        (flipped("predictions.csv"), "predictions.csv"),
        (removed("history.csv"), "history.csv"),
        (emptied("history.csv"), "history.csv"),
        (removed("learning_curves.png"), "learning_curves.png"),
        (flipped("confusion_matrix.png"), "confusion_matrix.png"),
    ],
)
def test_what_follows_from_the_checkpoint_is_made_again_with_a_notice(
    damage: Damage, name: str, run: Path, studies: Path, phantoms: Path
) -> None:
    damage(run)
    said = Recorder()
    pipeline.baseline(phantoms, run, SMALL, said)
    assert len(said.notices) == 1
    assert said.notices[0].startswith(f"{run / name}")
    assert " again." in said.notices[0]
    assert tree(run) == tree(studies / "baseline")


def test_an_export_makes_the_figures_again_too(run: Path, studies: Path, phantoms: Path) -> None:
    changed(run / "metrics.json", lambda d: d["test"].update(accuracy=0.99), forged=False)
    said = Recorder()
    pipeline.run_data(run, phantoms, said)
    assert f"{run / 'metrics.json'} is missing or has changed" in said.notices[0]
    assert tree(run) == tree(studies / "baseline")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flipped("checkpoints/best-*"), "checkpoints/best-"),
        (lambda run: next((run / "checkpoints").glob("best-*")).unlink(), "checkpoints/best-"),
        (emptied("state.json"), "state.json"),
        (removed("state.json"), "state.json"),
        (emptied("config.json"), "config.json"),
        (lambda run: changed(run / "config.json", lambda d: d["config"].update(seed=1), forged=False), "config.json"),
        (lambda run: changed(run / "config.json", lambda d: d.update(config=[])), "config.json"),
        (lambda run: changed(run / "config.json", lambda d: d.update(classes=[])), "config.json"),
        (lambda run: changed(run / "state.json", lambda d: d.update(history=[]), forged=False), "state.json"),
        (lambda run: changed(run / "state.json", lambda d: d.update(history=[])), "state.json"),
        (lambda run: changed(run / "state.json", lambda d: d.update(checkpoints={})), "state.json"),
        (lambda run: changed(run / "state.json", lambda d: d.pop("stop_reason")), "state.json"),
        (lambda run: changed(run / "state.json", lambda d: d.update(stop_reason="tired")), "state.json"),
        (lambda run: changed(run / "state.json", lambda d: d["watcher"].update(best_epoch=9)), "state.json"),
        (
            lambda run: changed(run / "state.json", lambda d: d["checkpoints"]["best"].update(file="../../x")),
            "state.json",
        ),
        (removed("split.csv"), "split.csv"),
    ],
)
def test_what_cannot_be_made_again_is_refused_by_name(damage: Damage, name: str, run: Path, phantoms: Path) -> None:
    damage(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    for work in (
        lambda: pipeline.baseline(phantoms, run, SMALL, Recorder()),
        lambda: pipeline.run_data(run, phantoms, Recorder()),
    ):
        assert str(run / name) in refused(work)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.json")} == before


def named(sha256: str, state: Any) -> None:
    """Puts another SHA-256 of the best checkpoint into the state."""
    state["checkpoints"]["best"]["sha256"] = sha256


def test_a_forged_checkpoint_is_refused(run: Path, phantoms: Path) -> None:
    [path] = (run / "checkpoints").glob("best-*")
    for content in (b"no safetensors", next((run / "checkpoints").glob("last-*")).read_bytes()):
        replace(path, content)
        sha = files.sha256_bytes(content)
        changed(run / "state.json", partial(named, sha))
        text = refused(lambda: pipeline.baseline(phantoms, run, SMALL, Recorder()))
        assert f"The best checkpoint in {run} does not fit the run's configuration and state" in text


def test_a_run_of_an_earlier_version_stays_readable(run: Path, studies: Path, phantoms: Path) -> None:
    for name in ("config.json", "state.json", "metrics.json"):
        changed(run / name, lambda d: d.pop("files", None))
    said = Recorder()
    shown = pipeline.baseline(phantoms, run, SMALL, said)
    assert said.notices == []
    expected = json.loads((studies / "baseline/metrics.json").read_text())
    assert shown == {name: value for name, value in expected.items() if name not in ("files", "sha256")}


def test_more_epochs_go_on_from_the_last_checkpoint_bit_for_bit(run: Path, phantoms: Path, tmp_path: Path) -> None:
    said = Recorder()
    pipeline.baseline(phantoms, run, SMALL.replace(epochs=4), said)
    assert said.notices[-1] == f"{run} continues after epoch 2."
    assert said.epochs("training") == [3, 4]
    pipeline.baseline(phantoms, tmp_path / "whole", SMALL.replace(epochs=4), Recorder())
    assert tree(run) == tree(tmp_path / "whole")
    for epochs in (2, 3):
        fewer = SMALL.replace(epochs=epochs)
        text = refused(partial(pipeline.baseline, phantoms, run, fewer, Recorder()), RunError)
        assert f"(epochs: 4 -> {epochs})" in text


def test_the_version_that_wrote_a_run_is_no_part_of_it(run: Path, phantoms: Path) -> None:
    changed(run / "config.json", lambda d: d.update(version="0.0.1"))
    said = Recorder()
    assert pipeline.baseline(phantoms, run, SMALL, said)["epochs_run"] == 2
    assert said.notices == []
    pipeline.baseline(phantoms, run, SMALL.replace(epochs=3), said)
    assert said.epochs("training") == [3]
    assert files.read_json(run / "config.json")["version"] == __version__


def test_more_epochs_need_the_last_checkpoint(run: Path, studies: Path, phantoms: Path) -> None:
    [last] = (run / "checkpoints").glob("last-*")
    last.unlink()
    more = SMALL.replace(epochs=3)
    assert str(last) in refused(lambda: pipeline.baseline(phantoms, run, more, Recorder()))
    # The finished run itself is still valid and does not need the checkpoint.
    assert pipeline.baseline(phantoms, run, SMALL, Recorder())["epochs_run"] == 2
    assert tree(run).keys() == tree(studies / "baseline").keys() - {f"checkpoints/{last.name}"}


def test_more_epochs_after_early_stopping_change_nothing(phantoms: Path, tmp_path: Path) -> None:
    config = SMALL.replace(epochs=30, early_stopping_patience=1, learning_rate=0.05, scheduler_patience=0)
    first = pipeline.baseline(phantoms, tmp_path / "run", config, Recorder())
    assert first["stop_reason"] == "early stopping"
    # Training cannot continue, so the larger checkpoint is deleted.
    assert {path.name.partition("-")[0] for path in (tmp_path / "run/checkpoints").iterdir()} == {"best"}
    said = Recorder()
    more = pipeline.baseline(phantoms, tmp_path / "run", config.replace(epochs=40), said)
    assert said.epochs("training") == []
    assert more == first
    assert run_folder.read_identity(tmp_path / "run").config.epochs == 40


def test_a_study_goes_on_to_more_epochs(study: Path, phantoms: Path) -> None:
    more = SMALL.replace(epochs=3)
    first = pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder())
    found = pipeline.search(phantoms, study, more, OPTIONS, Recorder())
    assert found["trials"] == first["trials"]
    assert found["best"]["epochs_run"] == 3
    assert run_folder.read_identity(study / "best").config.epochs == 3
    assert "epochs: 3 -> 2" in refused(lambda: pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder()), RunError)


def test_a_best_trial_whose_checkpoints_were_given_up_is_trained_again(study: Path, phantoms: Path) -> None:
    first = pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder())
    number = first["best"]["trial"]
    run_folder.forget(study / "trials" / f"{number:04d}")
    shutil.rmtree(study / "best")
    said = Recorder()
    again = pipeline.search(phantoms, study, SMALL, OPTIONS, said)
    assert said.epochs(f"trial {number} in full") == [1, 2]
    assert again["best"] == first["best"]
    assert any((study / "best/checkpoints").glob("best-*"))


def test_the_best_of_a_study_is_copied_again_where_it_was_changed(study: Path, studies: Path, phantoms: Path) -> None:
    changed(study / "best/metrics.json", lambda d: d["test"].update(accuracy=0.99), forged=False)
    changed(study / "best/config.json", lambda d: d["config"].update(seed=5), forged=False)
    (study / "best/predictions.csv").unlink()
    said = Recorder()
    pipeline.search(phantoms, study, SMALL, OPTIONS, said)
    assert f"{study / 'best'} has been changed; it is copied again." in said.notices
    assert tree(study / "best") == tree(studies / "tuned/best")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("update alembic_version set version_num = 'v0.9.0'", "failed ("),
        ("delete from trial_params", "is not what was trained in"),
        (
            "update or ignore trial_params set param_name = null",
            "it has the parameter None, which the search space lac",
        ),
        ("update trial_params set param_value = param_value * 0.5 where param_name = 'learning_rate'", "learning_rate"),
        ("delete from trial_values", "its value is None"),
        ("update trial_values set value = 0.001", "its value is 0.001"),
        ("delete from trial_user_attributes", "it has None epochs"),
        ("update trial_user_attributes set value_json = '99' where key = 'seconds'", "another SHA-256"),
        ("delete from trials where number = 0", "lacks trials"),
        ("update study_directions set direction = 'MAXIMIZE'", "has another direction"),
        ("drop table trial_values", "its value is None"),
    ],
)
def test_a_changed_database_is_refused(statement: str, reason: str, study: Path, phantoms: Path) -> None:
    with sqlite3.connect(study / "study.db") as database:
        database.execute(statement)
    database.close()
    text = refused(lambda: pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder()), BusiTuneError)
    assert reason in text
    assert "study.db" in text


def test_a_trial_without_its_epochs_is_refused(study: Path, phantoms: Path) -> None:
    (study / "trials/0001/state.json").unlink()
    text = refused(lambda: pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder()), RunError)
    assert "trials/0001 (it has" in text
    assert "epochs, and its folder 0); restore both" in text


def test_a_study_with_epochs_of_another_type_is_refused(study: Path, phantoms: Path) -> None:
    changed(study / "study.json", lambda d: d["config"].update(epochs=[2]), forged=True)
    text = refused(lambda: pipeline.search(phantoms, study, SMALL, OPTIONS, Recorder()), ConfigError)
    assert "study.json: epochs must be a whole number, not [2]." in text


def test_a_trial_that_was_never_trained_here_is_not_ranked(study: Path, studies: Path, phantoms: Path) -> None:
    known = optuna.load_study(study_name=study.name, storage=f"sqlite:///{study}/study.db")
    params = known.trials[1].params
    known.add_trial(optuna.create_trial(value=0.0, params=params, distributions=known.trials[1].distributions))
    said = Recorder()
    found = pipeline.search(phantoms, study, SMALL, OPTIONS, said)
    assert sum("never trained here: 2." in text for text in said.notices) == 1
    assert found["best"]["trial"] in (0, 1)
    assert tree(study / "best") == tree(studies / "tuned/best")


def test_a_refused_first_command_leaves_no_folder(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    refused(lambda: pipeline.baseline(tmp_path / "nothing", tmp_path / "run", SMALL, Recorder()), BusiTuneError)
    refused(lambda: pipeline.search(tmp_path / "nothing", tmp_path / "s", SMALL, OPTIONS, Recorder()), BusiTuneError)
    refused(lambda: pipeline.audit_data(tmp_path / "nothing", tmp_path / "audit", SMALL, Recorder()), BusiTuneError)
    refused(lambda: pipeline.export(tmp_path / "run", tmp_path / "export", phantoms, Recorder()), RunError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["nothing"]
    # An existing folder of the user is kept.
    (tmp_path / "own").mkdir()
    refused(lambda: pipeline.baseline(tmp_path / "nothing", tmp_path / "own", SMALL, Recorder()), BusiTuneError)
    assert (tmp_path / "own").exists()


def test_a_copy_that_fails_says_why_in_words_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # Only system calls are replaced: they report another file system that is full.
    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    text = refused(lambda: copy_run(run, tmp_path / "copy"))
    assert "No space left on device; fix that and run the same command again." in text
    assert "[" not in text
    assert "(" not in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["baseline"]
