"""The whole pipeline on phantoms, and on a sample of the real images where these are available."""

import json
import shutil
from pathlib import Path

import pytest

from busi_tune import pipeline
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.progress import Silent
from image_folders import BUSI, needs_busi

pytestmark = pytest.mark.slow

OPTIONS = ["--arch", "resnet18", "--weights", "none", "--image-size", "48", "--batch-size", "16", "--device", "cpu"]
SHORT = ["--epochs", "3", "--trials", "3", "--trial-epochs", "2", "--json"]


def run(data: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    """The JSON of `busi-tune run` on `data` in the working folder."""
    code = exit_code(["run", "--data", str(data), *OPTIONS, *SHORT])
    output = capsys.readouterr()
    assert code == 0, output.err
    result: dict[str, dict[str, object]] = json.loads(output.out)
    return result


def check(result: dict[str, dict[str, object]], here: Path) -> None:
    """Checks the results of `run`: a verified export, complete folders and six predictions."""
    assert result["export"]["passed"] is True
    assert result["export"]["answers_changed"] == 0
    for place in ("studies/baseline", "studies/tuned/best"):
        names = {path.name for path in (here / place).iterdir()}
        documented = {"config.json", "split.csv", "history.csv", "metrics.json", "predictions.csv", "checkpoints"}
        assert documented | {"learning_curves.png", "confusion_matrix.png"} <= names
    assert {path.name for path in (here / "exports/tuned").iterdir()} >= {"model.onnx", "verification.json"}
    assert len(result["predictions"]) == 6
    for prediction in result["predictions"]:
        assert isinstance(prediction, dict)
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_run_on_phantoms_and_again(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = run(phantoms, capsys)
    check(first, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run(phantoms, capsys) == first
    # `run` passes its export options on, and refuses changed ones before it trains.
    more = ["--sensitivity", "0.9", "--int8", "--epochs", "4"]
    assert exit_code(["run", "--data", str(phantoms), *OPTIONS, *SHORT, *more]) == 1
    said = capsys.readouterr().err
    assert "holds an export with other options (int8: False -> True; sensitivity: None -> 0.9)" in said
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--space", "space.toml"], "low of learning_rate must not be above high"),
        (["--storage", "mysql://host/db"], "storage must be a URL like"),
        (["--scheduler-patience", "12"], "scheduler_patience must be below early_stopping_patience"),
    ],
)
def test_run_looks_at_the_search_before_it_trains_the_baseline(
    wrong: list[str],
    said: str,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text("learning_rate = {low = 0.1, high = 0.01}\n")
    assert exit_code(["run", "--data", str(phantoms), *OPTIONS, *SHORT, *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not Path("studies").exists()


def test_a_baseline_on_the_demos_phantoms_clearly_beats_chance(phantoms: Path, tmp_path: Path, tiny: Config) -> None:
    """The interval of balanced accuracy is above chance, 1/3. The demo has three times as many phantoms."""
    config = tiny.replace(epochs=20, fractions=(0.5, 0.2, 0.3))
    figures = pipeline.baseline(phantoms, tmp_path / "run", config, Silent())
    assert figures["test"]["intervals"]["balanced_accuracy"][0] > 1 / 3
    assert (figures["test"]["balanced_accuracy"] or 0) > 0.5


def test_the_result_does_not_depend_on_where_the_data_lies(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name in ("a", "b c [d]"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        data = phantoms if name == "a" else Path(shutil.copytree(phantoms, folder / "my images"))
        assert exit_code(["baseline", "--data", str(data), *OPTIONS, "--epochs", "2", "--out", "run"]) == 0
        folders.append(folder / "run")
    capsys.readouterr()
    for name in ("config.json", "split.csv", "metrics.json", "predictions.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@needs_busi
def test_run_on_a_sample_of_the_real_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("benign", "malignant", "normal"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for path in sorted((BUSI / label).iterdir())[::4]:
            shutil.copy(path, tmp_path / "data" / label)
    monkeypatch.chdir(tmp_path)
    check(run(Path("data"), capsys), tmp_path)
