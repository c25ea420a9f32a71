"""`--log`: event files read by TensorBoard's own reader, runs read by MLflow's own client, and unchanged results."""

import csv
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.errors import FileError
from busi_tune.logs import Tracker
from busi_tune.logs.records import read_records
from busi_tune.logs.trackers import check_tracker, logged, write_logs
from busi_tune.progress import Silent
from busi_tune.results import MetricsFile
from busi_tune.search_options import SearchOptions
from recorder import Recorder
from result_files import tree

pytestmark = pytest.mark.slow

OPTIONS = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "2", "--device", "cpu"]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each curve in a folder of event files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def history(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same curves, from history.csv."""
    with (run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["epoch"]), float(row[name])) for row in rows] for name in rows[0] if name != "epoch"}


def same(curves: Mapping[str, list[tuple[int, float]]], expected: Mapping[str, list[tuple[int, float]]]) -> None:
    """Check that all expected curves exist, in float32, with each point once."""
    for name, values in expected.items():
        assert [step for step, _ in curves[name]] == [step for step, _ in values], name
        assert [value for _, value in curves[name]] == pytest.approx([value for _, value in values], rel=1e-6), name


def content(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def runs(place: Path, experiment: str) -> tuple[MlflowClient, dict[str, Run]]:
    """MLflow's runs in a database, by their names."""
    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    return client, {str(run.info.run_name): run for run in client.search_runs([known.experiment_id])}


def curve(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny: Config) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "run"
    pipeline.baseline(phantoms, folder, tiny.replace(epochs=2), Silent())
    return folder


def test_event_files_hold_curves_metrics_and_parameters(run: Path) -> None:
    before = content(run)
    write_logs(run, "tensorboard")
    own = run.parent / "logs/tensorboard/run"
    found, metrics = points(own), results.read(run / "metrics.json", MetricsFile)
    same(found, history(run))
    same(found, {"test/accuracy": [(metrics["best_epoch"], metrics["test"]["accuracy"])]})
    assert found["test/per_class/benign/recall"][0][1] == pytest.approx(
        metrics["test"]["per_class"]["benign"]["recall"]
    )
    events = EventAccumulator(str(own))
    events.Reload()
    start = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    parameters = start.session_start_info.hparams
    assert parameters["arch"].string_value == "resnet18"
    assert parameters["learning_rate"].number_value == 1e-3
    assert parameters["fractions"].string_value == "0.7,0.15,0.15"
    assert content(run) == before
    # A second call does not change the file.
    files = content(own)
    write_logs(run, "tensorboard")
    assert content(own) == files
    assert len(files) == 1


def test_mlflow_holds_curves_metrics_and_parameters(run: Path) -> None:
    before = content(run)
    write_logs(run, "mlflow")
    client, found = runs(run.parent / "logs", "run")
    assert list(found) == ["run"]
    one, metrics = found["run"], results.read(run / "metrics.json", MetricsFile)
    for name, values in history(run).items():
        assert curve(client, one, name) == values
    assert one.data.metrics["test/accuracy"] == metrics["test"]["accuracy"]
    assert one.data.params["arch"] == "resnet18"
    assert one.data.params["learning_rate"] == "0.001"
    assert (one.info.status, one.data.tags["state"]) == ("FINISHED", "COMPLETE")
    assert content(run) == before
    write_logs(run, "mlflow")
    client, again = runs(run.parent / "logs", "run")
    assert again["run"].info.run_id == one.info.run_id
    assert curve(client, one, "test/accuracy") == [(metrics["best_epoch"], metrics["test"]["accuracy"])]
    assert not Path("mlruns").exists()


class Interrupting(Recorder):
    """Ctrl-C after the second epoch."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        super().step(task, done, total, detail)
        if (task, done) == ("training", 2):
            raise KeyboardInterrupt


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_an_interrupted_run_is_logged_and_its_points_are_not_doubled(
    tracker: Tracker, phantoms: Path, tiny: Config, tmp_path: Path
) -> None:
    folder, place = tmp_path / "run", tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt), logged(tracker, [folder], Silent()):
        pipeline.baseline(phantoms, folder, tiny, Interrupting())
    # This TensorBoard runs during the whole test.
    watching = EventAccumulator(str(place / "tensorboard/run"))
    steps = []
    for _ in range(2):
        if tracker == "tensorboard":
            watching.Reload()
            steps.append([one.step for one in watching.Scalars("val_loss")])
            assert [step for step, _ in points(place / "tensorboard/run")["val_loss"]] == steps[-1]
        else:
            client, found = runs(place, "run")
            steps.append([step for step, _ in curve(client, found["run"], "val_loss")])
            assert found["run"].info.status == ("RUNNING" if len(steps) == 1 else "FINISHED")
        with logged(tracker, [folder], Silent()):
            pipeline.baseline(phantoms, folder, tiny, Silent())
    assert steps == [[1, 2], [1, 2, 3]]


def test_a_command_with_logs_writes_the_same_result(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["baseline", "--data", str(phantoms), *OPTIONS, "--json"]
    assert exit_code([*command, "--out", "plain/run"]) == 0
    plain = capsys.readouterr().out
    assert exit_code([*command, "--out", "logged/run", "--log", "tensorboard"]) == 0
    output = capsys.readouterr()
    assert output.out == plain
    assert f"Logs for tensorboard are in {tmp_path / 'logged/logs'}." in output.err
    assert tree(Path("logged/run")) == tree(Path("plain/run"))
    assert points(Path("logged/logs/tensorboard/run")).keys() >= {"val_loss", "test/accuracy"}
    assert exit_code(["list", "logged", "--json"]) == 0
    assert '"damaged"' not in (listed := capsys.readouterr().out)
    assert listed.count('"path"') == 1


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_before_training(
    tracker: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    command = ["baseline", "--data", str(phantoms), *OPTIONS, "--out", str(tmp_path / "run"), "--log", tracker]
    assert exit_code(command) == 1
    assert capsys.readouterr().err == (
        f"busi-tune: This command needs {tracker}, which is not installed; "
        f"pip install '/path/to/busi-tune[{tracker}]' installs all it takes.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FileError, match="MLflow could not use the server of MLFLOW_TRACKING_URI") as found:
        check_tracker("mlflow", tmp_path / "run")
    assert "secret" not in str(found.value)


def test_the_trials_of_a_study_are_logged_with_their_states(phantoms: Path, tiny: Config, tmp_path: Path) -> None:
    study = tmp_path / "study"
    options = SearchOptions(trials=3, trial_epochs=2, confirm=1, confirm_seeds=2)
    with logged("mlflow", [study], Silent()):
        found = pipeline.search(phantoms, study, tiny, options, Silent())
    client, logs = runs(tmp_path / "logs", "study")
    [confirmed] = [entry["trial"] for entry in found["finalists"]]
    assert set(logs) == {"trial-0000", "trial-0001", "trial-0002", f"trial-{confirmed:04d}/seed-1"}
    for row in found["trials"]:
        one = logs[f"trial-{row['number']:04d}"]
        assert one.data.tags["state"] == row["state"]
        assert one.data.metrics["value"] == row["value"]
        assert curve(client, one, "val_loss") == history(study / f"trials/{row['number']:04d}")["val_loss"]
    assert logs[f"trial-{confirmed:04d}"].data.metrics["test/accuracy"] == found["best"]["test"]["accuracy"]
    # If a study is started over with fewer trials, the event files of the other trials are deleted.
    write_logs(study, "tensorboard")
    shutil.rmtree(study / "trials/0002")
    table = (study / "trials.csv").read_text().splitlines(keepends=True)
    (study / "trials.csv").write_text("".join(line for line in table if not line.startswith("2,")))
    write_logs(study, "tensorboard")
    kept = {path.parent.name for path in (tmp_path / "logs/tensorboard/study").rglob("events.*")}
    assert kept == {"trial-0000", "trial-0001", *(["seed-1"] if confirmed != 2 else [])}


def test_a_cross_validation_is_logged_by_fold_and_pooled(phantoms: Path, tiny: Config, tmp_path: Path) -> None:
    folder = tmp_path / "crossval"
    found = pipeline.crossval(phantoms, folder, tiny.replace(epochs=1), CrossvalOptions(folds=2), Silent())
    records = {record.name: record for record in read_records(folder)}
    assert list(records) == ["pooled", "fold-1", "fold-2"]
    assert records["pooled"].metrics["pooled/accuracy"] == found["pooled"]["accuracy"]
    write_logs(folder, "tensorboard")
    pooled = points(tmp_path / "logs/tensorboard/crossval/pooled")
    same(pooled, {"pooled/accuracy": [(0, found["pooled"]["accuracy"])]})
