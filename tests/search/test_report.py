"""The content of reports on complete, unfinished, failed and changed results, without a browser."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError, ConfigError, FileError, RunError
from busi_tune.export_options import ExportOptions
from busi_tune.inference.certificate import check_folder
from busi_tune.progress import Silent
from busi_tune.results import MetricsFile, ReportFile
from exported import Exported, linked, replace

pytest_plugins = ["exported"]

pytestmark = pytest.mark.slow


@pytest.fixture
def run(exported: Exported, tmp_path: Path) -> Path:
    """A finished run that tests may change."""
    return linked(exported.run, tmp_path / "studies" / "run")


def report(folder: Path) -> ReportFile:
    return pipeline.report(folder, Silent())


def test_the_report_of_a_run_has_the_figures_of_its_files(run: Path) -> None:
    found = report(run)
    metrics = results.read(run / results.METRICS, MetricsFile)
    assert (found["kind"], found["finished"], found["metrics"]) == ("run", True, metrics)
    assert found == results.read(run / results.REPORT, ReportFile)
    matrix = metrics["test"]["confusion_matrix"]
    wrong = sum(map(sum, matrix)) - sum(row[place] for place, row in enumerate(matrix))
    answers = found["answers"]
    assert answers["wrong"] == wrong
    assert answers["coverage"]["y"][-1] == pytest.approx(1 - metrics["test"]["accuracy"])
    assert sum(each["images"] for each in answers["reliability"]["before"]) == metrics["test"]["images"]
    for mistake in answers["mistakes"]:
        assert mistake["predicted"] != mistake["class"]
        assert mistake["nearest"] is not None
        assert mistake["nearest"]["path"] not in {entry["path"] for entry in answers["mistakes"]}
    for name, curve in answers["curves"].items():
        x, y = curve["roc"]["x"], curve["roc"]["y"]
        area = sum((x[n] - x[n - 1]) * (y[n] + y[n - 1]) / 2 for n in range(1, len(x)))
        assert area == pytest.approx(metrics["test"]["per_class"][name]["roc_auc"], abs=1e-9)
        assert all(
            low <= value <= high for low, value, high in zip(curve["roc"]["low"], y, curve["roc"]["high"], strict=True)
        )
        assert curve["precision_recall"]["y"][-1] == pytest.approx(curve["share"])


def test_a_report_changes_nothing_that_is_checked(run: Path, exported: Exported, tmp_path: Path) -> None:
    export = linked(exported.folder, tmp_path / "export")
    pipeline.report(run, Silent(), export=export)
    pipeline.report(export, Silent(), root=exported.data)
    assert check_folder(export) == exported.certificate
    again = {name: (run / name).read_bytes() for name in (results.REPORT, results.REPORT_PAGE)}
    pipeline.report(run, Silent(), export=export)
    assert again == {name: (run / name).read_bytes() for name in again}


def test_a_run_that_goes_on_and_a_trial_that_failed_say_so(run: Path) -> None:
    (run / results.METRICS).unlink()
    found = report(run)
    assert not found["finished"]
    assert found["verdict"].startswith("This run has not ended: 3 of at most 3 epochs are done.")
    assert found["sections"] == ["summary", "data", "learning", "repeat"]
    trial = run.parent / "study" / "trials" / "0004"
    shutil.copytree(run, trial)
    header = "number,state,value,learning_rate,epochs_run,best_epoch,seconds,stop_reason\n"
    (trial.parent.parent / "trials.csv").write_text(header + "4,FAIL,,0.1,3,,1.5,The training loss is nan\n")
    assert report(trial)["verdict"] == "This trial failed: The training loss is nan. 3 of at most 3 epochs are done."


def test_pictures_are_of_the_images_that_the_run_was_made_of(run: Path, exported: Exported, tmp_path: Path) -> None:
    data = linked(exported.data, tmp_path / "data")
    first = report(run)["answers"]["mistakes"][0]["path"]
    whole = (run / results.REPORT_PAGE).read_text()
    replace(data / first, (data / "benign" / sorted(p.name for p in (data / "benign").glob("*.png"))[0]).read_bytes())
    pipeline.report(run, Silent(), root=data)
    page = (run / results.REPORT_PAGE).read_text()
    assert "1 images have changed since the result, so they have no picture here" in page
    # Neither the picture nor its overlay is there.
    assert page.count("data:image/jpeg") == whole.count("data:image/jpeg") - 2
    pipeline.report(run, Silent(), root=tmp_path / "nowhere")
    page = (run / results.REPORT_PAGE).read_text()
    assert "name their folder with --data" in page
    assert "data:image/jpeg" not in page


def test_what_cannot_be_shown_is_told_in_one_sentence(
    run: Path, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["report", str(tmp_path / "nothing")]) == 1
    assert "is not there; name the folder of a result" in capsys.readouterr().err
    other = linked(exported.folder, tmp_path / "other")
    certificate = json.loads((other / "verification.json").read_text()) | {"source_sha256": "0" * 64}
    del certificate["sha256"]
    replace(other / "verification.json", results.text(certificate).encode())
    with pytest.raises(RunError, match="is not the export of"):
        pipeline.report(run, Silent(), export=other)
    table = (run / results.PREDICTIONS).read_text()
    replace(run / results.PREDICTIONS, table.replace("benign", "benine").encode())
    with pytest.raises(FileError, match="is damaged"):
        report(run)
    replace(run / results.METRICS, b"{}")
    with pytest.raises(BusiTuneError, match=r"metrics\.json has the schema"):
        report(run)


def overlays_in(page: str) -> int:
    return page.count('alt="Where the network looked in')


def test_mistakes_show_where_the_network_looked(run: Path, exported: Exported, tmp_path: Path) -> None:
    answers = report(run)["answers"]
    page = (run / results.REPORT_PAGE).read_text()
    # At 32 pixels a ResNet18 has maps of one cell.
    assert (answers["maps"]["method"], answers["maps"]["cells"]) == ("cam", [1, 1])
    assert overlays_in(page) == len(answers["mistakes"]) > 0
    assert "It does not outline a lesion, and it does not prove a reason." in page
    pipeline.report(run, Silent(), root=tmp_path / "nowhere")
    assert overlays_in((run / results.REPORT_PAGE).read_text()) == 0
    export = linked(exported.folder, tmp_path / "export")
    found = pipeline.report(export, Silent(), root=exported.data)["answers"]["maps"]
    assert found["method"] == "none"
    assert found["sentence"].endswith("has no output cam; `busi-tune export --cam` makes an export with one.")
    replace(next(run.glob("checkpoints/best*.safetensors")), b"damaged")
    found = report(run)["answers"]["maps"]
    assert found["method"] == "none"
    assert found["sentence"].startswith("The page does not show where the network looked: ")


@pytest.mark.slow
def test_other_networks_show_grad_cam_if_it_is_installed(
    exported: Exported, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.replace(arch="mobilenet_v3_small", image_size=64, epochs=1)
    pipeline.baseline(exported.data, tmp_path / "run", config, Silent())
    with pytest.raises(ConfigError, match="one linear layer, and mobilenet_v3_small does not"):
        pipeline.export(tmp_path / "run", tmp_path / "export", exported.data, Silent(), options=ExportOptions(cam=True))
    assert list((tmp_path / "export").glob("[!.]*")) == []
    answers = report(tmp_path / "run")["answers"]
    assert (answers["maps"]["method"], answers["maps"]["cells"]) == ("grad-cam", [2, 2])
    assert overlays_in((tmp_path / "run" / results.REPORT_PAGE).read_text()) == len(answers["mistakes"]) > 0
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    found = report(tmp_path / "run")["answers"]["maps"]
    assert found["sentence"] == (
        "The page does not show where the network looked: mobilenet_v3_small has no exact maps, and Grad-CAM needs "
        "captum, which is not installed; pip install '/path/to/busi-tune[explain]' installs it."
    )
    assert overlays_in((tmp_path / "run" / results.REPORT_PAGE).read_text()) == 0
