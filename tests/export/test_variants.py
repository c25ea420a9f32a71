"""The int8 and float16 models of an export, the operating point, and refused models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.errors import ConfigError, ParityError, RunError
from busi_tune.export import gate
from busi_tune.export.gate import GateError
from busi_tune.export_options import ExportOptions
from busi_tune.inference import open_export, predict_files
from busi_tune.inference.certificate import check_folder
from busi_tune.progress import Silent
from busi_tune.results import VerificationFile
from exported import EXPORT_FILES, Exported, linked, names, replace

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]
ALL = ExportOptions(int8=True, float16=True, sensitivity=0.9, max_drop=0.2)


@pytest.fixture(scope="module")
def everything(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run exported with all options."""
    folder = tmp_path_factory.mktemp("everything") / "export"
    certificate = pipeline.export(exported.run, folder, exported.data, Silent(), options=ALL)
    return Exported(exported.data, exported.run, folder, certificate)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_all_that_was_asked_for_is_there(everything: Exported) -> None:
    assert names(everything.folder) == EXPORT_FILES | {"model.int8.onnx", "model.float16.onnx"}
    assert check_folder(everything.folder) == everything.certificate
    assert results.read(everything.folder / "verification.json", VerificationFile) == everything.certificate
    assert everything.certificate["options"] == {name: value for name, value in ALL.to_dict().items() if name != "cam"}
    for name, model in everything.certificate["models"].items():
        assert (model["passed"], model["reasons"]) == (True, []), name


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_a_smaller_model_has_a_certificate_of_its_own(form: str, everything: Exported) -> None:
    model = everything.certificate["models"][f"model.{form}.onnx"]
    assert model["gate"]["passed"]
    assert model["gate"]["agreement"] >= 0.98
    assert model["agreement"] == 1 - len(model["changed"]) / model["images"]
    assert set(model["latency_ms"]) == {"float32", form}
    assert model["test"]["intervals"]["accuracy"][0] <= model["test"]["accuracy"]
    assert model["bytes"] < 0.7 * (everything.folder / "model.onnx").stat().st_size
    facts = metadata(everything.folder / f"model.{form}.onnx")
    assert facts["precision"] == form
    inside = json.loads(facts["certificate"])
    assert inside["weights_sha256"] == model["weights_sha256"]
    assert inside["weights_sha256"] != everything.certificate["models"]["model.onnx"]["weights_sha256"]


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", "model.float16.onnx"])
def test_each_model_predicts_and_flags_by_its_own_threshold(name: str, everything: Exported) -> None:
    classifier = open_export(everything.folder / name)
    point = json.loads(metadata(everything.folder / name)["operating_point"])
    paths = sorted((everything.data / "malignant").glob("*.png"))[:6]
    found = list(predict_files(classifier, [path for path in paths if "_mask" not in path.name]))
    assert found
    for answer in found:
        assert answer.error == ""
        assert answer.malignant == (answer.probabilities[1] >= point["threshold"])


def test_the_operating_point_has_its_figures(everything: Exported) -> None:
    point = everything.certificate["operating_point"]
    assert (point["class"], point["sensitivity"]) == ("malignant", 0.9)
    claim = point["claim"]
    assert claim["needed"] == 29
    assert claim["supported"] is (claim["at_least"] >= 0.9)
    card = (everything.folder / "README.md").read_text()
    assert f"{point['threshold']:.4f}" in card
    assert point["test"]["sensitivity"]["images"] > 0


def test_an_int8_model_in_the_place_of_the_float32_one_is_refused(everything: Exported, tmp_path: Path) -> None:
    folder = linked(everything.folder, tmp_path / "export")
    replace(folder / "model.onnx", (folder / "model.int8.onnx").read_bytes())
    with pytest.raises(ParityError, match=r"model\.onnx is not the file that was certified"):
        check_folder(folder)


def test_other_options_are_refused_and_named_and_replace_the_export_on_request(
    everything: Exported, tmp_path: Path
) -> None:
    folder = linked(everything.folder, tmp_path / "export")
    for options, said in (
        (ExportOptions(), r"int8: True -> False; float16: True -> False; max_drop: 0\.2 -> 0\.01; sensitivity: 0\.9"),
        (ALL.replace(sensitivity=0.95), r"\(sensitivity: 0\.9 -> 0\.95\)"),
    ):
        with pytest.raises(RunError, match=rf"other options .*{said}.*--overwrite\."):
            pipeline.export(everything.run, folder, everything.data, Silent(), options=options)
        assert check_folder(folder) == everything.certificate
    certificate = pipeline.export(everything.run, folder, everything.data, Silent(), overwrite=True)
    assert names(folder) == EXPORT_FILES
    assert "operating_point" not in certificate
    assert check_folder(folder) == certificate


def test_a_refused_model_leaves_the_others(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    with monkeypatch.context() as patch:
        patch.setattr(gate, "AGREEMENT", 1.1)
        with pytest.raises(GateError, match=r"float16 model does not pass its gate .* --max-drop"):
            pipeline.export(exported.run, folder, exported.data, Silent(), options=ExportOptions(float16=True))
    assert names(folder) == EXPORT_FILES
    assert check_folder(folder)["options"]["float16"] == "refused"


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"max_drop": -0.1}, "max_drop must be at least 0 and below 1, not -0.1"),
        ({"max_drop": 1.0}, "max_drop must be at least 0 and below 1, not 1"),
        ({"sensitivity": 0.0}, "sensitivity must be above 0 and below 1, not 0"),
        ({"sensitivity": 95.0}, "sensitivity must be above 0 and below 1, not 95"),
    ],
)
def test_options_that_make_no_sense(asked: dict[str, Any], problem: str, exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        ExportOptions(**asked)
    ((name, value),) = asked.items()
    flag = f"--{name.replace('_', '-')}={value}"
    assert exit_code(["export", str(exported.run), "--out", str(tmp_path / "out"), flag]) == 2
    assert not (tmp_path / "out").exists()


def test_the_temperature_changes_no_answer(everything: Exported) -> None:
    assert everything.certificate["temperature"] != 1
    classifier = open_export(everything.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), dtype=np.uint8)
    found = classifier.run(pixels)
    powers = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found.probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
