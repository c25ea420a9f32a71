"""Verification tells a correct export from every kind of wrong one; each wrong one is really built."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from busi_tune import images, pipeline
from busi_tune.errors import DataError, FileError, ParityError
from busi_tune.export.make import finish_graph
from busi_tune.export.parity import Reference, Verification, make_reference, verify
from busi_tune.images import Pixels
from busi_tune.progress import Silent
from busi_tune.training import serving
from busi_tune.training.folder import Identity, read_identity
from busi_tune.training.serving import ServedModel
from exported import EXPORT_FILES, Exported, flip_a_bit, linked, names, replace

pytest_plugins = ["exported"]


@dataclass(frozen=True)
class Case:
    """What verification starts from: an export, the test images, and what PyTorch answers on them."""

    exported: Exported
    identity: Identity
    root: Path
    paths: tuple[str, ...]
    pixels: Pixels
    labels: NDArray[np.int64]
    reference: Reference

    @property
    def size(self) -> int:
        """Height and width of the model's input."""
        return self.identity.config.image_size

    def model(self) -> ServedModel:
        """The trained model, loaded anew."""
        return serving.served(self.exported.run, self.identity)

    def export(self, model: ServedModel) -> bytes:
        """An ONNX file of `model`, made as every export is."""
        return finish_graph(serving.to_onnx(model, self.size), self.identity)

    def verify(self, model: Path) -> Verification:
        """The verdict on an ONNX file."""
        return verify(model, self.pixels, self.labels, self.reference, Silent())


def reference_of(model: ServedModel, pixels: Pixels, labels: NDArray[np.int64]) -> Reference:
    """What PyTorch answers, in both precisions."""
    return make_reference(partial(serving.served_logits, model), pixels, labels)


@pytest.fixture(scope="module")
def case(exported: Exported) -> Case:
    """The shared export, and its reference computed anew."""
    identity = read_identity(exported.run)
    part = pipeline.run_data(exported.run, exported.data, Silent()).part("test", identity.config.image_size, Silent())
    reference = reference_of(serving.served(exported.run, identity), part.pixels(), part.labels)
    return Case(exported, identity, exported.data, part.paths, part.pixels(), part.labels, reference)


def test_a_correct_export_passes(case: Case) -> None:
    result = case.verify(case.exported.folder / "model.onnx")
    assert (result.passed, result.reasons, result.answers_changed) == (True, [], 0)
    assert set(result.errors) == {
        "batch 32, all optimisations",
        "batch 1",
        "batch 2",
        "batch 7",
        f"batch {len(case.pixels)} (all)",
        "optimisation none",
        "optimisation basic",
        "threads 1",
        "threads 2",
    }
    assert max(result.errors.values()) == result.max_error
    assert result.max_error <= result.tolerance == 4 * result.pytorch_float32_error
    assert result.confusion_matrix["pytorch"] == result.confusion_matrix["onnxruntime"]
    assert np.sum(result.confusion_matrix["onnxruntime"]) == result.images == len(case.pixels)
    recorded = json.loads((case.exported.folder / "verification.json").read_text())
    assert recorded == case.exported.certificate
    assert recorded["model_sha256"] == result.model_sha256


class Swapped(ServedModel):
    """A consumer that reads BGR: what comes in as RGB is taken for BGR."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities."""
        return super().forward(images.flip(3))


def bgr(case: Case) -> bytes:
    """The channels in the wrong order."""
    config = case.identity.config
    return case.export(Swapped(case.model().model, config.mean, config.std).eval())


def unnormalised(case: Case) -> bytes:
    """Pixels in 0..1, mean and deviation forgotten."""
    return case.export(ServedModel(case.model().model, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval())


def raw_pixels(case: Case) -> bytes:
    """Pixels in 0..255, nothing done to them."""
    return case.export(ServedModel(case.model().model, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)).eval())


def batch_statistics(case: Case) -> bytes:
    """Batch norm as in training: with the statistics of the batch that it is given."""
    model = case.model()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = False
    return case.export(model)


def with_weight(case: Case, kinds: set[str], change: Callable[[NDArray[np.float32]], float]) -> bytes:
    """The export with one number changed: the largest weight of the last layer of one of these kinds."""
    graph = onnx.load(case.exported.folder / "model.onnx")
    layers = [node for node in graph.graph.node if node.op_type in kinds]
    name = (layers[0] if "Conv" in kinds else layers[-1]).input[1]
    tensor = next(entry for entry in graph.graph.initializer if entry.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    position = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[position] = change(weights)
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    return bytes(graph.SerializeToString())


def first_weight(case: Case) -> bytes:
    """One weight of the first convolution, off by the layer's standard deviation."""
    return with_weight(case, {"Conv"}, lambda weights: float(weights.flat[np.abs(weights).argmax()] + weights.std()))


def last_weight(case: Case) -> bytes:
    """One weight of the last layer, off by a thousandth."""
    return with_weight(
        case, {"Gemm", "MatMul"}, lambda weights: float(weights.flat[np.abs(weights).argmax()] * (1 + 1e-3))
    )


def not_a_number(case: Case) -> bytes:
    """One weight of the last layer that is NaN."""
    return with_weight(case, {"Gemm", "MatMul"}, lambda _: float("nan"))


@pytest.mark.parametrize(
    "mutant", [bgr, unnormalised, raw_pixels, batch_statistics, first_weight, last_weight, not_a_number]
)
def test_a_wrong_graph_fails(mutant: Callable[[Case], bytes], case: Case, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(mutant(case))
    result = case.verify(model)
    model.unlink()
    assert not result.passed
    assert any("a logit is off by" in reason for reason in result.reasons)


def test_channels_in_the_wrong_order_fail_on_grey_images_too(case: Case, tmp_path: Path) -> None:
    pixels = np.repeat(case.pixels[..., :1], 3, axis=3)
    reference = reference_of(case.model(), pixels, case.labels)
    model = tmp_path / "model.onnx"
    model.write_bytes(bgr(case))
    wrong = verify(model, pixels, case.labels, reference, Silent())
    model.unlink()
    assert not wrong.passed
    assert wrong.probe_error > wrong.probe_tolerance
    assert wrong.max_error <= wrong.tolerance
    assert verify(case.exported.folder / "model.onnx", pixels, case.labels, reference, Silent()).passed


def test_a_model_left_in_training_mode_fails(case: Case) -> None:
    reference = reference_of(case.model().train(), case.pixels, case.labels)
    result = verify(case.exported.folder / "model.onnx", case.pixels, case.labels, reference, Silent())
    assert not result.passed
    assert result.max_error > 100 * result.tolerance


def resized(case: Case, resample: Image.Resampling) -> Pixels:
    """The test images read from their files with some filter."""
    size = (case.size, case.size)
    return np.stack([np.asarray(images.decode(case.root / path).resize(size, resample)) for path in case.paths])


def squeezed(case: Case) -> Pixels:
    """Bilinear without the widening of the filter that a reduction needs: what OpenCV and most GPU code do."""
    found = []
    for path in case.paths:
        image = images.decode(case.root / path)
        across, down = image.width / case.size, image.height / case.size
        matrix = (across, 0.0, 0.0, 0.0, down, 0.0)
        small = image.transform((case.size, case.size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        found.append(np.asarray(small))
    return np.stack(found)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda case: resized(case, Image.Resampling.BICUBIC), id="bicubic"),
        pytest.param(lambda case: resized(case, Image.Resampling.NEAREST), id="nearest"),
        pytest.param(squeezed, id="bilinear without antialiasing"),
        pytest.param(lambda case: case.pixels[..., ::-1].copy(), id="BGR"),
        pytest.param(lambda case: np.roll(case.pixels, 1, axis=0), id="another image's pixels"),
    ],
)
def test_wrong_pixels_fail(wrong: Callable[[Case], Pixels], case: Case) -> None:
    pixels = wrong(case)
    assert pixels.shape == case.pixels.shape
    result = verify(case.exported.folder / "model.onnx", pixels, case.labels, case.reference, Silent())
    assert not result.passed
    assert result.reasons[0].startswith("a logit is off by")


def test_an_answer_that_flips_within_rounding_is_counted_but_passes(case: Case) -> None:
    # Two classes whose logits PyTorch holds apart by less than its own error: either answer is right.
    given = case.reference.logits.copy()
    first, second = np.argsort(given[0])[-2:][::-1]
    close = dataclasses.replace(case.reference, logits=given, float32_error=1.0)
    given[0, [first, second]] = given[0, [first, second]].mean() + np.array([-1e-9, 1e-9])
    result = verify(case.exported.folder / "model.onnx", case.pixels, case.labels, close, Silent())
    assert (result.passed, result.answers_changed) == (True, 1)
    assert result.smallest_margin == pytest.approx(2e-9, rel=1e-3)


def nan_for_batches_of_seven(case: Case, column: int) -> bytes:
    """The export with one logit NaN whenever seven images come at once."""
    model = onnx.load(case.exported.folder / "model.onnx")
    graph = model.graph
    last = next(node for node in graph.node if node.output[0] == "logits")
    last.output[0] = "raw"
    hole = np.zeros((1, 3), dtype=np.float32)
    hole[0, column] = np.nan
    for name, value in (("seven", np.array([7])), ("hole", hole), ("none", np.zeros((1, 3), dtype=np.float32))):
        graph.initializer.append(numpy_helper.from_array(value, name))
    added = [
        helper.make_node("Shape", ["images"], ["count"], end=1),
        helper.make_node("Equal", ["count", "seven"], ["is_seven"]),
        helper.make_node("Where", ["is_seven", "hole", "none"], ["addend"]),
        helper.make_node("Add", ["raw", "addend"], ["logits"]),
    ]
    place = list(graph.node).index(last) + 1
    for number, node in enumerate(added):
        graph.node.insert(place + number, node)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_nan_in_one_way_of_running_fails(case: Case, tmp_path: Path) -> None:
    column = int(case.reference.logits[0].argmax())
    model = tmp_path / "model.onnx"
    model.write_bytes(nan_for_batches_of_seven(case, column))
    chosen = np.zeros(14, dtype=np.int64)
    labels = case.labels[chosen]
    reference = reference_of(case.model(), case.pixels[chosen], labels)
    result = verify(model, case.pixels[chosen], labels, reference, Silent())
    model.unlink()
    assert np.isnan(result.errors["batch 7"])
    assert not result.passed
    assert json.dumps(result.to_dict(), allow_nan=False).count("null") == 2


def test_an_altered_checkpoint_is_refused(exported: Exported, tmp_path: Path) -> None:
    run = linked(exported.run, tmp_path / "run")
    checkpoint = next((run / "checkpoints").glob("best-*.safetensors"))
    flip_a_bit(checkpoint)
    with pytest.raises(FileError, match=f"{checkpoint.name} is not the file that was written"):
        pipeline.export(run, tmp_path / "out", exported.data, Silent())
    assert names(tmp_path / "out") == {".lock"}


def test_altered_images_are_refused(exported: Exported, tmp_path: Path) -> None:
    data = linked(exported.data, tmp_path / "data")
    image = next(path for path in images.walk(data) if not images.is_mask(path))
    replace(image, image.read_bytes() + b"x")
    with pytest.raises(DataError, match="changed"):
        pipeline.export(exported.run, tmp_path / "out", data, Silent())
    assert not (tmp_path / "out").exists()


def test_a_failed_verification_leaves_no_model(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("busi_tune.export.parity.FACTOR", 1e-6)
        with pytest.raises(ParityError, match="a logit is off by"):
            pipeline.export(exported.run, folder, exported.data, Silent())
    assert names(folder) == EXPORT_FILES - {"model.onnx"}
    certificate = json.loads((folder / "verification.json").read_text())
    assert certificate["passed"] is False
    assert certificate["reasons"]
    assert pipeline.export(exported.run, folder, exported.data, Silent())["passed"]
    assert names(folder) == EXPORT_FILES
