"""A study in Optuna Dashboard: its content, and a driver that other readers of the database do not disturb."""

import io
import json
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna_dashboard import wsgi

from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.results import SearchResult
from busi_tune.search_options import SearchOptions
from result_files import rows
from search_overhead import Load, measure

pytestmark = pytest.mark.slow


def test_no_lock_errors_beside_a_dashboard() -> None:
    measured = measure(Load(8, 40, 0.2, "sqlite"), watched=True)
    assert measured.trials == 40
    assert measured.reads > 0


def shown(study: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    """A study and its trials, as Optuna Dashboard sends them to its own page."""
    application = wsgi(RDBStorage(f"sqlite:///{study / 'study.db'}"))

    def answer(path: str) -> dict[str, object]:
        status: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "after=0",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
        }
        body = b"".join(application(environ, lambda code, *_: status.append(code)))
        assert status == ["200 OK"], body
        found: dict[str, object] = json.loads(body)
        return found

    studies = answer("/api/studies")["study_summaries"]
    assert isinstance(studies, list)
    [summary] = studies
    detail = answer(f"/api/studies/{summary['study_id']}")
    trials = detail["trials"]
    assert isinstance(trials, list)
    return summary | detail, trials


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies") / "by accuracy"


@pytest.fixture(scope="module")
def result(study: Path, phantoms: Path, tiny: Config) -> SearchResult:
    options = SearchOptions(trials=2, trial_epochs=3, metric="val_accuracy")
    return pipeline.search(phantoms, study, tiny, options, Silent())


def test_the_dashboard_names_study_metric_data_architecture_and_split(
    study: Path, result: SearchResult, phantoms: Path
) -> None:
    found, _ = shown(study)
    assert found["study_name"] == "by accuracy"
    assert found["objective_names"] == ["val_accuracy"]
    assert found["directions"] == ["maximize"]
    attributes = found["user_attrs"]
    assert isinstance(attributes, list)
    assert {one["key"]: one["value"] for one in attributes} == {
        "data": str(phantoms),
        "architecture": "resnet18",
        "split": json.loads((study / "study.json").read_text())["split"],
    }
    assert len(result["trials"]) == 2


def test_the_dashboard_has_the_curve_accuracy_and_f1_of_each_trial(study: Path, result: SearchResult) -> None:
    _, trials = shown(study)
    for trial, row in zip(trials, result["trials"], strict=True):
        number = row["number"]
        values = trial["intermediate_values"]
        assert isinstance(values, list)
        curve = [float(epoch["val_accuracy"]) for epoch in rows(study / f"trials/{number:04d}/history.csv")]
        assert [one["value"] for one in values] == pytest.approx(curve)
        attributes = trial["user_attrs"]
        assert isinstance(attributes, list)
        known = {one["key"]: one["value"] for one in attributes}
        assert float(known["val_accuracy"]) == pytest.approx(max(curve))
        assert float(known["val_macro_f1"]) == pytest.approx(row["val_macro_f1"])
