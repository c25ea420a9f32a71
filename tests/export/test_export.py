"""The content of an export, its single writing, and verification on other machines and folders."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from busi_tune import files, images, pipeline, results
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError, DataError, FileError, ParityError, RunError
from busi_tune.export.verification import check_again
from busi_tune.export_options import ExportOptions
from busi_tune.inference import Classifier
from busi_tune.inference.certificate import check_folder
from busi_tune.inference.contents import read_contents
from busi_tune.inference.structure import check_structure
from busi_tune.progress import Silent
from busi_tune.results import VerificationFile
from exported import EXPORT_FILES, Exported, flip_a_bit, linked, names, replace
from recorder import Recorder
from small_export import rewrite

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]


def without_last_digits(certificate: Mapping[str, object]) -> dict[str, object]:
    """A certificate without the measured errors, whose last digits may vary with the load of the machine."""
    models = certificate.get("models", {})
    assert isinstance(models, dict)
    measured = ("errors", "max_error", "probe_error", "models")
    kept = {key: value for key, value in certificate.items() if key not in measured}
    return kept | {name: without_last_digits(entry) for name, entry in models.items()}


@pytest.fixture(scope="module")
def model(exported: Exported) -> onnx.ModelProto:
    """The exported graph."""
    return onnx.load(exported.folder / "model.onnx")


def test_the_file_is_valid_and_whole(exported: Exported, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert names(exported.folder) == EXPORT_FILES
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions
    check_structure(exported.folder / "model.onnx")
    assert {tensor.data_location for tensor in model.graph.initializer} == {onnx.TensorProto.DEFAULT}
    weights = load_file(next((exported.run / "checkpoints").glob("best-*.safetensors")))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    floats = {name: value for name, value in weights.items() if value.dtype == np.float32}
    assert len(floats) > 100
    for name, value in floats.items():
        np.testing.assert_array_equal(held[f"model.{name}"], value)


def test_the_certificate_is_of_its_type(exported: Exported) -> None:
    path = exported.folder / "verification.json"
    assert results.read(path, VerificationFile) == exported.certificate
    assert next(iter(exported.certificate)) == "schema"


def test_input_and_outputs(exported: Exported, model: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [entry.dim_param or entry.dim_value for entry in value.type.tensor_type.shape.dim]

    (given,) = model.graph.input
    batch = shape(given)[0]
    assert isinstance(batch, str)
    assert (given.name, shape(given)) == ("images", [batch, "height", "width", 3])
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [(value.name, shape(value)) for value in model.graph.output] == [
        ("logits", [batch, 3]),
        ("probabilities", [batch, 3]),
        ("pixels", [batch, 3, 32, 32]),
        ("guard", [batch, 4]),
    ]
    classifier = Classifier(exported.folder / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 50, 40, 3), dtype=np.uint8)
    found = classifier.run(pixels)
    logits, probabilities = found.logits, found.probabilities
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    for row in range(5):
        alone = classifier.run(pixels[row : row + 1]).logits[0]
        np.testing.assert_allclose(alone, logits[row], atol=1e-5)


def test_metadata_says_what_a_consumer_needs(exported: Exported, model: onnx.ModelProto) -> None:
    facts = {entry.key: entry.value for entry in model.metadata_props}
    config = Config()
    expected = {
        "classes": ["benign", "malignant", "normal"],
        "image_size": 32,
        "mean": list(config.mean),
        "std": list(config.std),
        "preprocessing_version": images.VERSION,
    }
    assert {key: json.loads(facts[key]) for key in expected} == expected
    assert facts["preprocessing"] == images.DESCRIPTION
    assert facts["arch"] == "resnet18"
    assert facts["split"] == exported.certificate["split"]
    assert float(facts["temperature"]) == exported.certificate["temperature"]
    assert [score["name"] for score in json.loads(facts["guard"])] == ["colour", "blank", "statistics", "features"]
    inside = json.loads(facts["certificate"])
    outside = {**exported.certificate, **exported.certificate["models"]["model.onnx"]}
    assert {"graph_sha256", "weights_sha256", "test_images_sha256", "source_sha256", "errors", "machine"} <= set(inside)
    assert {key: outside[key] for key in inside} == inside
    assert (model.producer_name, model.producer_version) == ("busi-tune", exported.certificate["versions"]["busi-tune"])


def test_no_path_of_this_machine_is_inside(model: onnx.ModelProto) -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        # Among millions of weights, any three bytes occur somewhere.
        tensor.ClearField("raw_data")
    text = bare.SerializeToString()
    found = [word for word in ("/work", "/tmp", "site-packages", ".py", str(Path.home())) if word.encode() in text]  # noqa: S108
    assert found == []
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_predictions_hold_pytorchs_answers(exported: Exported) -> None:
    table = pd.read_csv(exported.folder / "predictions.csv")
    split = pd.read_csv(exported.run / "split.csv").query("split == 'test'")
    assert list(table["path"]) == list(split["path"])
    assert list(table["sha256"]) == list(split["sha256"])
    assert len(table) == exported.certificate["images"]
    of_run = pd.read_csv(exported.run / "predictions.csv")
    assert list(table["predicted"]) == list(of_run["predicted"])
    assert list(of_run.columns) == list(table.columns)[: len(of_run.columns)]
    columns = [name for name in of_run.columns if name.startswith("p_")]
    # The run's own probabilities are uncalibrated.
    powers = of_run[columns].to_numpy() ** (1 / exported.certificate["temperature"])
    np.testing.assert_allclose(table[columns], powers / powers.sum(axis=1, keepdims=True), atol=1e-4)


def test_an_export_is_made_once(exported: Exported) -> None:
    before = (exported.folder / "model.onnx").stat()
    again = pipeline.export(exported.run, exported.folder, exported.data, Silent())
    after = (exported.folder / "model.onnx").stat()
    assert again == exported.certificate
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(exported.folder) == EXPORT_FILES


def test_exporting_again_replaces_a_changed_model(exported: Exported, tmp_path: Path) -> None:
    folder = linked(exported.folder, tmp_path / "export")
    flip_a_bit(folder / "model.onnx")
    seen = Recorder()
    certificate = pipeline.export(exported.run, folder, exported.data, seen)
    assert files.sha256(folder / "model.onnx") == certificate["model_sha256"]
    assert any("model.onnx is not the file that was certified" in text for text in seen.notices)
    assert any(text.endswith("; it is replaced.") for text in seen.notices)


def test_another_run_needs_overwrite(exported: Exported, tiny: Config, tmp_path: Path) -> None:
    folder = linked(exported.folder, tmp_path / "export")
    other = tmp_path / "run"
    pipeline.baseline(exported.data, other, tiny.replace(arch="squeezenet1_1", epochs=1), Silent())
    with pytest.raises(RunError, match=r"another run.*--overwrite"):
        pipeline.export(other, folder, exported.data, Silent())
    assert check_folder(folder) == exported.certificate
    certificate = pipeline.export(other, folder, exported.data, Silent(), overwrite=True)
    assert certificate["source_sha256"] != exported.certificate["source_sha256"]
    assert files.sha256(folder / "model.onnx") == certificate["model_sha256"]
    assert names(folder) == EXPORT_FILES


class Checking(Silent):
    """Checks the old export at each progress step of the new one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checked = folder, 0

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        check_folder(self.folder)
        self.checked += 1


def test_an_export_stays_until_its_successor_is_complete(exported: Exported, tmp_path: Path) -> None:
    """While `--overwrite` runs, `predict` still works with the old export."""
    folder = linked(exported.folder, tmp_path / "export")
    seen = Checking(folder)
    options = ExportOptions(sensitivity=0.9)
    certificate = pipeline.export(exported.run, folder, exported.data, seen, options=options, overwrite=True)
    assert seen.checked >= 5
    assert check_folder(folder) == certificate
    assert "operating_point" in certificate
    assert names(folder) == EXPORT_FILES


def test_a_folder_of_something_else_is_left_alone(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"notes\.txt"):
            pipeline.export(exported.run, tmp_path, exported.data, Silent(), overwrite=overwrite)
    assert names(tmp_path) == {"notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unfinished_run_is_refused(exported: Exported, tmp_path: Path) -> None:
    run = linked(exported.run, tmp_path / "run")
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match="not a finished run"):
        pipeline.export(run, tmp_path / "export", exported.data, Silent())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the same folder", "a copy elsewhere"])
def test_the_check_can_be_repeated(elsewhere: bool, exported: Exported, tmp_path: Path) -> None:
    root = linked(exported.data, tmp_path / "moved" / "images") if elsewhere else exported.data
    certificate = check_again(exported.folder, root, Silent())
    assert certificate["passed"]
    again, before = (entry["models"]["model.onnx"] for entry in (certificate, exported.certificate))
    assert set(again["errors"]) == set(before["errors"])
    assert without_last_digits(certificate) == without_last_digits(exported.certificate)


def test_images_beyond_the_test_split_may_go(exported: Exported, tmp_path: Path) -> None:
    root = linked(exported.data, tmp_path / "data")
    split = pd.read_csv(exported.run / "split.csv")
    (root / split[split["split"] == "train"]["path"].iloc[0]).unlink()
    assert check_again(exported.folder, root, Silent())["passed"]


def flip(name: str) -> Callable[[Path, Path], None]:
    """Flips one bit of a file."""
    return lambda folder, _: flip_a_bit(folder / name)


def drop_model(folder: Path, _: Path) -> None:
    """Deletes the model."""
    (folder / "model.onnx").unlink()


def change_predictions(folder: Path, _: Path) -> None:
    """Changes one of PyTorch's answers."""
    path = folder / "predictions.csv"
    replace(path, path.read_bytes().replace(b"benign", b"normal", 1))


def first_image(folder: Path, root: Path) -> Path:
    """The path of the first test image."""
    return root / str(pd.read_csv(folder / "predictions.csv")["path"].iloc[0])


def change_image(folder: Path, root: Path) -> None:
    """Replaces a test image by another picture."""
    other = pd.read_csv(folder / "predictions.csv")["path"].iloc[1]
    replace(first_image(folder, root), (root / other).read_bytes())


def drop_image(folder: Path, root: Path) -> None:
    """Deletes a test image."""
    first_image(folder, root).unlink()


def other_model(folder: Path, model: onnx.ModelProto, inside: dict[str, Any], beside: dict[str, Any]) -> None:
    """Writes another model and its hash; `inside` changes its inner certificate, `beside` its outer entry."""
    facts = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, facts | {"certificate": json.dumps(json.loads(facts["certificate"]) | inside)})
    path = folder / "model.onnx"
    replace(path, model.SerializeToString())
    sha = files.sha256(path)
    entry = beside | {"model_sha256": sha, "bytes": path.stat().st_size}
    rewrite(folder, lambda content: content["models"]["model.onnx"].update(entry))
    rewrite(folder, lambda content: content.update(model_sha256=sha))


def multiplied(folder: Path) -> onnx.ModelProto:
    """The model with a rescaled weight of the last layer."""
    model = onnx.load(folder / "model.onnx")
    tensor = next(entry for entry in model.graph.initializer if entry.name == "model.fc.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    return model


def forge(folder: Path, _: Path) -> None:
    """Replaces the model, with consistent certificates: only running the model shows other answers."""
    model = multiplied(folder)
    replace(folder / "model.onnx", model.SerializeToString())
    parts = {"weights_sha256": read_contents(folder / "model.onnx").weights_sha256}
    other_model(folder, model, parts, parts)


def forge_the_hash(folder: Path, _: Path) -> None:
    """Replaces the model and the hash of its file, but not the hash of its tensors."""
    other_model(folder, multiplied(folder), {}, {})


def another_certificate(folder: Path, _: Path) -> None:
    """Puts another split into the model's inner certificate only."""
    other_model(folder, onnx.load(folder / "model.onnx"), {"split": "another"}, {})


def loose_certificate(folder: Path, _: Path) -> None:
    """Adds a space to verification.json."""
    path = folder / "verification.json"
    replace(path, path.read_bytes().replace(b": ", b":  ", 1))


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (flip("model.onnx"), ParityError, "model.onnx is not the file that was certified"),
        (flip("model-32.onnx"), ParityError, "model-32.onnx is not the file that was certified"),
        (flip("README.md"), ParityError, "README.md is not the file that was certified"),
        (loose_certificate, ParityError, "verification.json is not the file that was certified"),
        (another_certificate, ParityError, "verification.json and the certificate inside .* differ"),
        (change_predictions, ParityError, "predictions.csv is not the file that was certified"),
        (forge, ParityError, "a logit is off by"),
        (forge_the_hash, ParityError, "The weights of .*model.onnx is not what was certified, whatever its hash"),
        (drop_model, FileError, "model.onnx could not be read"),
        (change_image, DataError, "1 of 12 test images in .* are missing or have changed: .*/"),
        (drop_image, DataError, "1 of 12 test images in .* are missing or have changed: .*/"),
    ],
)
def test_the_check_notices_damage(
    damage: Callable[[Path, Path], None],
    error: type[BusiTuneError],
    reason: str,
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, root = linked(exported.folder, tmp_path / "export"), linked(exported.data, tmp_path / "data")
    damage(folder, root)
    with pytest.raises(error, match=reason) as caught:
        check_again(folder, root, Silent())
    assert exit_code(["verify", str(folder), "--data", str(root)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == f"busi-tune: {caught.value}"


SEALED = ("model.onnx", "model-32.onnx", "README.md", "labels.json", "predictions.csv", "verification.json")


@pytest.mark.parametrize("name", SEALED)
def test_verify_without_data_notices_one_byte(name: str, exported: Exported, tmp_path: Path) -> None:
    folder = linked(exported.folder, tmp_path / "export")
    assert check_folder(folder) == exported.certificate
    flip_a_bit(folder / name)
    with pytest.raises((ParityError, FileError), match=name):
        check_folder(folder)


VERIFY = """
import sys
from busi_tune.cli import exit_code
code = exit_code(["verify", sys.argv[1], "--data", sys.argv[2], "--json"])
heavy = {"torch", "torchvision", "optuna"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


def test_verify_needs_no_pytorch(exported: Exported) -> None:
    command = [sys.executable, "-c", VERIFY, str(exported.folder), str(exported.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert without_last_digits(json.loads(done.stdout)) == without_last_digits(exported.certificate)
