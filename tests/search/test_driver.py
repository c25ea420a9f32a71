"""The driver on real studies of tiny networks: reports, prunings, kept files, confirmations and audits."""

import json
import statistics
from pathlib import Path
from typing import Literal

import optuna
import pandas as pd
import pytest
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from busi_tune import locks, pipeline, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.data.listing import Listing
from busi_tune.data.split import Split
from busi_tune.progress import Silent
from busi_tune.results import SearchResult, VerdictFile
from busi_tune.search.driver import Budget, Driver, Search
from busi_tune.search.plan import Plan
from busi_tune.search.storage import Database
from busi_tune.search.trials import Trials
from busi_tune.search_options import SearchOptions
from busi_tune.training.epochs import Epoch
from busi_tune.workers.claims import Claims
from busi_tune.workers.jobs import Here, Trained
from recorder import Recorder
from result_files import rows

pytestmark = pytest.mark.slow

TRIAL_EPOCHS = 6
SPACE = "learning_rate = {low = 1e-5, high = 0.1, log = true}\nscheduler_patience = {low = 0, high = 1}\n"


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(
        arch="squeezenet1_1",
        weights="none",
        image_size=32,
        batch_size=16,
        epochs=7,
        scheduler_patience=1,
        early_stopping_patience=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SearchOptions:
    space = tmp_path_factory.mktemp("space") / "space.toml"
    space.write_text(SPACE)
    return SearchOptions(
        trials=14,
        trial_epochs=TRIAL_EPOCHS,
        pruner="median",
        keep_trials=2,
        space=space,
        workers=2,
        confirm=2,
        confirm_seeds=2,
        audit_pruned=2,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, config: Config, options: SearchOptions) -> Path:
    folder = tmp_path_factory.mktemp("driver") / "study"
    result = pipeline.search(phantoms, folder, config, options, Silent())
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def told(study: Path) -> SearchResult:
    return results.read(study / "result.json", SearchResult)


@pytest.fixture(scope="module")
def trials(study: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{study / 'study.db'}").trials


def test_every_trial_has_ended_and_some_were_pruned_and_some_stopped_early(trials: list[FrozenTrial]) -> None:
    states = [trial.state for trial in trials]
    assert len(states) == 14
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert any(trial.user_attrs["stop_reason"] == "early stopping" for trial in trials)


def test_a_trial_that_stopped_early_counts_at_later_steps(trials: list[FrozenTrial]) -> None:
    early = [trial for trial in trials if trial.user_attrs["stop_reason"] == "early stopping"]
    short = [trial for trial in early if trial.user_attrs["epochs_run"] < TRIAL_EPOCHS]
    assert short
    for trial in short:
        assert trial.state == TrialState.COMPLETE
        later = range(trial.user_attrs["epochs_run"], TRIAL_EPOCHS + 1)
        last = trial.intermediate_values[trial.user_attrs["epochs_run"]]
        assert [trial.intermediate_values[step] for step in later] == [last] * len(later)
        assert trial.value == min(trial.intermediate_values.values())


def test_nothing_is_pruned_before_its_scheduler_could_act_nor_against_few(trials: list[FrozenTrial]) -> None:
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            assert trial.params["scheduler_patience"] + 1 < trial.user_attrs["epochs_run"] < TRIAL_EPOCHS
            assert trial.datetime_complete is not None
            before = [t for t in trials if t.datetime_complete and t.datetime_complete < trial.datetime_complete]
            assert sum(t.state == TrialState.COMPLETE for t in before) >= 3


def test_a_trial_that_stopped_by_itself_was_not_pruned(trials: list[FrozenTrial], study: Path) -> None:
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            state = json.loads((study / f"trials/{trial.number:04d}/state.json").read_text())
            assert state["stop_reason"] == "" or len(state["history"]) > trial.user_attrs["epochs_run"]


def test_reports_are_the_curve_as_it_was(trials: list[FrozenTrial], study: Path) -> None:
    rising = 0
    for trial in trials:
        losses = [float(row["val_loss"]) for row in rows(study / f"trials/{trial.number:04d}/history.csv")]
        for step in range(1, trial.user_attrs["epochs_run"] + 1):
            assert trial.intermediate_values[step] == losses[step - 1]
        rising += losses[: trial.user_attrs["epochs_run"]] != sorted(losses, reverse=True)
    assert rising


def test_checkpoints_are_kept_of_the_best_and_the_baseline(trials: list[FrozenTrial], study: Path) -> None:
    complete = sorted((trial.value, trial.number) for trial in trials if trial.state == TrialState.COMPLETE)
    kept = {int(path.parent.name) for path in study.glob("trials/*/checkpoints")}
    assert kept == {number for _, number in complete[:2]} | {0}


def test_finalists_are_ranked_by_their_mean(told: SearchResult, study: Path) -> None:
    first, second = told["finalists"]
    assert len(list(study.glob("confirm/*/1/history.csv"))) == 2
    assert list(study.glob("confirm/*/1/checkpoints")) == []
    for entry in (first, second):
        number = entry["trial"]
        folders = [study / f"trials/{number:04d}", study / f"confirm/{number:04d}/1"]
        best = [min(float(row["val_loss"]) for row in rows(folder / "history.csv")) for folder in folders]
        assert entry["values"] == best
        assert entry["mean"] == statistics.fmean(best)
        seeds = [json.loads((folder / "config.json").read_text())["config"]["seed"] for folder in folders]
        assert seeds == [0, 1]
    assert first["mean"] <= second["mean"]
    assert told["best"]["trial"] == first["trial"]


def test_an_audited_trial_is_trained_again_to_the_bit_and_then_on(
    told: SearchResult, study: Path, trials: list[FrozenTrial]
) -> None:
    best = min(trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None)
    assert told["audit"] is not None
    assert len(told["audit"]) == min(2, sum(trial.state == TrialState.PRUNED for trial in trials))
    for entry in told["audit"]:
        trial = trials[entry["trial"]]
        history = [float(row["val_loss"]) for row in rows(study / f"trials/{trial.number:04d}/history.csv")]
        pruned_at = trial.user_attrs["epochs_run"]
        # The audit had no checkpoint and trained all epochs again; the first ones equal the reported ones.
        assert min(history[:pruned_at]) == entry["value_then"]
        assert history[pruned_at - 1] == trial.value
        assert len(history) > pruned_at
        assert entry["value_at_end"] == min(history[:TRIAL_EPOCHS])
        assert entry["regret"] == max(0, best - entry["value_at_end"])


def test_the_same_command_trains_nothing(
    study: Path, phantoms: Path, config: Config, options: SearchOptions, told: SearchResult
) -> None:
    seen = Recorder()
    again = pipeline.search(phantoms, study, config, options, seen)
    assert [task for task, _ in seen.steps if task.startswith("trial ")] == []
    assert json.loads(json.dumps(again)) | {"disk_bytes": 0} == told | {"disk_bytes": 0}


def test_the_verdict_is_written(study: Path, told: SearchResult) -> None:
    assert results.read(study / "verdict.json", VerdictFile) == told["verdict"]


@pytest.mark.parametrize(
    ("budget", "begun", "elapsed", "allowed"),
    [
        (Budget(trials=2), (1, 20), 1e9, True),
        (Budget(trials=2), (2, 23), 0, False),
        (Budget(trials=9, seconds=60), (1, 20), 59, True),
        (Budget(trials=9, seconds=60), (1, 20), 60, False),
        (Budget(trials=9, epochs=24), (2, 23), 0, True),
        (Budget(trials=9, epochs=24), (2, 24), 0, False),
        (Budget(trials=1, seconds=60, epochs=24), (0, 0), 0, True),
    ],
)
def test_a_budget(budget: Budget, begun: tuple[int, int], elapsed: float, allowed: bool) -> None:
    assert budget.allows(*begun, elapsed) is allowed


def test_more_epochs_continue_the_same_study(phantoms: Path, config: Config, tmp_path: Path) -> None:
    few = SearchOptions(trials=9, trial_epochs=2, epochs_total=3)
    first = pipeline.search(phantoms, tmp_path / "study", config, few, Silent())
    assert len(first["trials"]) == 2
    more = SearchOptions(trials=9, trial_epochs=2, epochs_total=7)
    then = pipeline.search(phantoms, tmp_path / "study", config, more, Silent())
    assert len(then["trials"]) == 4
    assert then["trials"][:2] == first["trials"]


@pytest.mark.parametrize("pruner", ["hyperband", "none"])
def test_other_pruners(
    pruner: Literal["hyperband", "none"], phantoms: Path, config: Config, options: SearchOptions, tmp_path: Path
) -> None:
    own = SearchOptions(trials=14, trial_epochs=TRIAL_EPOCHS, space=options.space, pruner=pruner)
    result = pipeline.search(phantoms, tmp_path / "study", config, own, Silent())
    states = [row["state"] for row in result["trials"]]
    assert len(states) == 14
    assert ("PRUNED" in states) == (pruner == "hyperband")


class OtherDriver(Recorder):
    """Another driver: it takes the lock of a trial after the first two trials and keeps it."""

    def __init__(self, study: Path, number: int) -> None:
        super().__init__()
        self.path = locks.trial_lock(study / "trials", number)
        self.lock: FileLock | None = None

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        super().step(task, done, total, detail)
        if task == "trials" and done == 2:
            self.lock = locks.take(self.path, wait=False)
            assert self.lock is not None


def kept(study: Path) -> set[int]:
    return {int(path.parent.name) for path in study.glob("trials/*/checkpoints")}


@pytest.mark.parametrize("number", [0, 1])
def test_no_checkpoint_is_deleted_while_another_driver_may_need_it(
    number: int, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    few, study = SearchOptions(trials=4, trial_epochs=2, keep_trials=1), tmp_path / "study"
    seen = OtherDriver(study, number)
    result = pipeline.search(phantoms, study, config, few, seen)
    assert seen.lock is not None
    # Trial 0 takes part in the final comparison, so its lock delays the end of the study. Other locks do not.
    assert ("best" in result) == (number != 0)
    assert any("Another driver is still running" in text for text in seen.notices) == (number == 0)
    best = min(result["trials"], key=lambda row: (float(str(row["value"])), row["number"]))["number"]
    assert best != 1
    assert kept(study) == {0, best, number}
    seen.lock.release()
    assert pipeline.search(phantoms, study, config, few, Silent())["best"]["trial"] == best
    assert kept(study) == {0, best}


def test_a_best_trial_that_cannot_be_trained_to_its_end_gives_way_to_the_next(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    """All trials are equal after two epochs, so the first is the best, but its further training diverges."""
    space = tmp_path / "space.toml"
    space.write_text("learning_rate = {choices = [0.22, 1e-8, 1e-7, 1e-6]}\n")
    hard = config.replace(
        learning_rate=0.22, min_learning_rate=0.22, weight_decay=10.0, epochs=30, early_stopping_patience=30
    ).replace(precision="float32")
    alike = SearchOptions(trials=3, trial_epochs=2, metric="val_accuracy", space=space)
    seen = Recorder()
    result = pipeline.search(phantoms, tmp_path / "study", hard, alike, seen)
    assert [row["state"] for row in result["trials"]] == ["COMPLETE"] * 3
    first, *others = (float(str(row["value"])) for row in result["trials"])
    assert first >= max(others)
    assert any(text.startswith("Trial 0 in full failed: The training loss of epoch") for text in seen.notices)
    assert result["best"]["trial"] in (1, 2)
    assert result["verdict"] is None
    assert (tmp_path / "study/best/metrics.json").exists()


def test_the_decision_on_an_epoch_that_a_kill_lost_is_taken_when_it_is_trained_again(tmp_path: Path) -> None:
    """The killed driver had reported two epochs. Only the first was saved, and the decision on the second was lost."""
    plan = Plan(
        config=Config(scheduler_patience=0),
        space={"learning_rate": FloatDistribution(1e-5, 1e-2, log=True)},
        metric="val_loss",
        trial_epochs=5,
        split="",
        pruner="median",
    )
    trials = Trials(Database.of(tmp_path, None, Silent()), "study", plan)
    for _ in range(5):
        good = trials.ask()
        assert good is not None
        for epoch in range(1, 6):
            trials.report(good, epoch, 1 / epoch)
        trials.tell(good, TrialState.COMPLETE, {"epochs_run": 5}, 0.2)
    bad = trials.ask()
    assert bad is not None
    for epoch in (1, 2):
        trials.report(bad, epoch, 9.0)
    empty = Dataset(Listing(Path(), (), (), 0), Split(pd.DataFrame(), pd.DataFrame()))
    search = Search(tmp_path, plan, empty, Silent(), trials, Here(empty, Silent()), Claims(tmp_path))
    driver = Driver(search, Budget(trials=6), keep=1)
    resumed = trials.resume(bad.number)
    assert resumed is not None
    job = driver._job(resumed)
    records = [Epoch(number, 9.0, 9.0, 0.5, 0.5, 0.1, 1.0, 1.0) for number in (1, 2)]
    assert driver._trained(Trained(job, records[:1], new=False)) is True
    assert driver._trained(Trained(job, records)) is False
    assert trials.all()[bad.number].user_attrs["pruned_at"] == 2
