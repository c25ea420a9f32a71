"""The study: adopted runs, trials that are trained once only, kept files, and failures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from busi_tune import locks, pipeline
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError, ConfigError, FileError, RunError
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions
from recorder import Recorder
from result_files import rows

pytestmark = pytest.mark.slow

OPTIONS = SearchOptions(trials=4, trial_epochs=2, keep_trials=2)


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=5, device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, config: Config) -> Path:
    """The folder studies/ with a baseline and a study of four trials that adopts it."""
    studies = tmp_path_factory.mktemp("search") / "studies"
    pipeline.baseline(phantoms, studies / "baseline", config, Silent())
    pipeline.search(phantoms, studies / "tuned", config, OPTIONS, Silent())
    return studies


def test_a_trial_that_was_added_is_never_the_best(finished: Path, phantoms: Path, config: Config) -> None:
    """A trial from `study.add_trial` was never trained; the search prints a notice and continues."""
    folder = shutil.copytree(finished, finished.parent / "added") / "tuned"
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/study.db")
    first = study.trials[0]
    better = optuna.trial.create_trial(
        value=-9,
        params=first.params,
        distributions=first.distributions,
        intermediate_values={1: 0.5},
    )
    pruned = optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, value=0.5)
    study.add_trials([better, pruned])
    seen = Recorder()
    options = OPTIONS.replace(trials=7, confirm=1, confirm_seeds=1, audit_pruned=9)
    result = pipeline.search(phantoms, folder, config, options, seen)
    assert sum("were added with their values, and never trained here: 4, 5." in text for text in seen.notices) == 1
    assert result["best"]["trial"] not in {4, 5}
    assert [entry["trial"] for entry in result["finalists"]] != [4]
    assert {entry["trial"] for entry in result["audit"] or []}.isdisjoint({4, 5})
    assert {row["number"] for row in rows(folder / "trials.csv")} == set("0123456")
    [finalist] = rows(folder / "finalists.csv")
    assert (finalist["trial"], finalist["seed_0"]) == (str(result["finalists"][0]["trial"]), finalist["mean"])
    if result["audit"]:
        assert [row["regret"] for row in rows(folder / "audit_pruned.csv")] == [
            str(entry["regret"]) for entry in result["audit"]
        ]
    assert not (folder / "trials/0004").exists()


def test_the_baseline_is_the_first_trial_and_its_value_counts_its_first_epochs(finished: Path) -> None:
    history = rows(finished / "baseline/history.csv")
    first = rows(finished / "tuned/trials.csv")[0]
    assert len(history) == 5
    assert float(first["value"]) == min(float(row["val_loss"]) for row in history[:2])
    assert first["epochs_run"] == "2"
    best = history[int(first["best_epoch"]) - 1]
    assert (first["val_accuracy"], first["val_macro_f1"]) == (best["val_accuracy"], best["val_macro_f1"])
    assert [path.name for path in finished.rglob("*.lock")] == []
    assert (finished / "tuned/trials/0000/history.csv").read_text() == (finished / "baseline/history.csv").read_text()


def test_the_retrained_best_is_a_run_in_one_go(finished: Path, phantoms: Path, config: Config, tmp_path: Path) -> None:
    best = finished / "tuned/best"
    identity = json.loads((best / "config.json").read_text())
    pipeline.baseline(phantoms, tmp_path / "run", Config.from_dict(identity["config"]), Silent())
    for name in ("config.json", "metrics.json", "predictions.csv", "split.csv", "confusion_matrix.png"):
        assert (best / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    for path in (best / "checkpoints").iterdir():
        assert path.read_bytes() == (tmp_path / "run/checkpoints" / path.name).read_bytes()
    assert identity["config"]["epochs"] == config.epochs == len(rows(best / "history.csv"))


def test_a_finished_baseline_is_not_trained_again_and_the_best_goes_on(
    finished: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(finished / "baseline", tmp_path / "baseline")
    seen = Recorder()
    pipeline.search(phantoms, tmp_path / "tuned", config, OPTIONS, seen)
    assert seen.epochs("trial 0") == []
    assert any("none of its epochs is trained again" in text for text in seen.notices)
    best = json.loads((finished / "tuned/best/metrics.json").read_text())
    number = min(rows(tmp_path / "tuned/trials.csv"), key=lambda row: float(row["value"]))["number"]
    trained = seen.epochs(f"trial {number} in full")
    assert trained == (list(range(3, 6)) if number != "0" else [])
    assert best["epochs_run"] == 5


def test_without_a_baseline_its_configuration_is_trained_as_the_first_trial(
    phantoms: Path, config: Config, tmp_path: Path, finished: Path
) -> None:
    seen = Recorder()
    pipeline.search(phantoms, tmp_path / "alone", config, OPTIONS, seen)
    assert seen.epochs("trial 0") == [1, 2]
    ours, adopted = rows(tmp_path / "alone/trials.csv"), rows(finished / "tuned/trials.csv")
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in ours]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in adopted]


def test_a_named_baseline_must_fit(phantoms: Path, config: Config, tmp_path: Path, finished: Path) -> None:
    other = config.replace(learning_rate=0.01)
    with pytest.raises(RunError, match=r"cannot be the study's first trial.*learning_rate: 0.001 -> 0.01"):
        pipeline.search(phantoms, tmp_path / "s", other, OPTIONS, Silent(), baseline_run=finished / "baseline")
    with pytest.raises(RunError, match="not a finished run"):
        pipeline.search(phantoms, tmp_path / "s2", config, OPTIONS, Silent(), baseline_run=tmp_path / "nothing")


def test_the_same_command_shows_the_result_and_more_trials_continue(
    finished: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "studies")
    study = tmp_path / "studies/tuned"
    before = rows(study / "trials.csv")
    seen = Recorder()
    pipeline.search(phantoms, study, config, OPTIONS, seen)
    assert not [task for task, _ in seen.steps if task.startswith("trial ")]
    more = pipeline.search(phantoms, study, config, SearchOptions(trials=6, trial_epochs=2, keep_trials=2), Silent())
    assert rows(study / "trials.csv")[:4] == before
    assert len(more["trials"]) == 6
    kept = {path.parent.name for path in study.glob("trials/*/checkpoints")}
    best = sorted(more["trials"], key=lambda row: (row["state"] != "COMPLETE", row["value"], row["number"]))[:2]
    assert kept == {f"{row['number']:04d}" for row in best}
    with pytest.raises(RunError, match=r"another study \(metric: 'val_loss' -> 'val_accuracy'\)"):
        pipeline.search(phantoms, study, config, SearchOptions(trial_epochs=2, metric="val_accuracy"), Silent())


def test_the_study_opens_with_optuna_alone_and_no_trial_is_left_running(finished: Path) -> None:
    storage = f"sqlite:///{finished / 'tuned/study.db'}"
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    states = [trial.state.name for trial in study.trials]
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert len(states) == 4
    assert all(trial.intermediate_values for trial in study.trials)


def test_a_trial_that_diverges_fails_with_its_reason_and_the_study_goes_on(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[learning_rate]\nchoices = [0.001, 10.0]\n[weight_decay]\nchoices = [0.01, 10.0]\n")
    hard = config.replace(min_learning_rate=1.0, epochs=40, early_stopping_patience=40)
    options = SearchOptions(trials=6, trial_epochs=40, space=space)
    seen = Recorder()
    result = pipeline.search(phantoms, tmp_path / "study", hard, options, seen)
    failed = [row for row in result["trials"] if row["state"] == "FAIL"]
    assert failed
    assert len(result["trials"]) == 6
    assert all("loss of epoch" in str(row["stop_reason"]) for row in failed)
    assert any(text.startswith("Trial") and "failed" in text for text in seen.notices)


def test_a_study_without_a_completed_trial_says_so(phantoms: Path, config: Config, tmp_path: Path) -> None:
    hard = config.replace(
        learning_rate=10.0, weight_decay=10.0, min_learning_rate=1.0, epochs=40, early_stopping_patience=40
    )
    with pytest.raises(BusiTuneError, match="None of the 1 trials"):
        pipeline.search(phantoms, tmp_path / "study", hard, SearchOptions(trials=1, trial_epochs=40), Silent())


def test_a_study_that_had_no_time_for_a_trial_says_so(phantoms: Path, config: Config, tmp_path: Path) -> None:
    hurried = SearchOptions(trial_epochs=2, timeout=1e-9)
    with pytest.raises(BusiTuneError, match="None of the 0 trials"):
        pipeline.search(phantoms, tmp_path / "study", config, hurried, Silent())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SearchOptions(trial_epochs=6), r"trial_epochs must be between 1 and epochs \(5\), not 6"),
    ],
)
def test_wrong_numbers(options: SearchOptions, words: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline.search(tmp_path, tmp_path / "study", config, options, Silent())
    assert not (tmp_path / "study").exists()


def test_a_damaged_database_is_one_sentence(finished: Path, phantoms: Path, config: Config, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "studies")
    database = tmp_path / "studies/tuned/study.db"
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(FileError, match=r"database .*study.db failed \(file is not a database\)"):
        pipeline.search(phantoms, tmp_path / "studies/tuned", config, OPTIONS, Silent())


class Orphan(Recorder):
    """A worker of a killed driver: it keeps the lock on its trial until the search waits for it."""

    def __init__(self, trial: Path) -> None:
        super().__init__()
        self.claim = locks.take(trial / locks.RUN, wait=False)
        assert self.claim is not None

    def notice(self, text: str) -> None:
        super().notice(text)
        if text.endswith("waiting for it.") and self.claim is not None:
            self.claim.release()
            self.claim = None


def test_a_study_is_overwritten_when_the_last_worker_of_a_killed_driver_has_ended(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    options = SearchOptions(trials=1, trial_epochs=1)
    pipeline.search(phantoms, tmp_path / "study", config, options, Silent())
    seen = Orphan(tmp_path / "study/trials/0000")
    pipeline.search(phantoms, tmp_path / "study", config, options, seen, overwrite=True)
    assert seen.claim is None
    assert f"{tmp_path / 'study/trials/0000'} is still in use by a worker" in " ".join(seen.notices)
    assert seen.epochs("trial 0") == [1]


def test_a_study_that_was_refused_before_its_first_trial_is_in_nobodys_way(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    study, options = tmp_path / "study", SearchOptions(trials=1, trial_epochs=1)
    away = replace(options, storage="postgresql+psycopg://me@127.0.0.1:1/db")
    with pytest.raises(FileError, match="run the same command again"):
        pipeline.search(phantoms, study, config, away, Silent())
    with pytest.raises(RunError, match="cannot be the study's first trial"):
        pipeline.search(phantoms, study, config, OPTIONS, Silent(), baseline_run=tmp_path / "nothing")
    assert (study / "study.json").exists()
    assert len(pipeline.search(phantoms, study, config, options, Silent())["trials"]) == 1
    with pytest.raises(RunError, match="holds another study"):
        pipeline.search(phantoms, study, config, OPTIONS, Silent())
