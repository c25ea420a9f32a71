"""Verification of exports: correct ones pass, and wrong ones of every kind, built for real, fail."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
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
from busi_tune.evaluation.metrics import Labels, confusion_matrix
from busi_tune.export import assembly, parity, quantisation, resize
from busi_tune.export.draft import Draft
from busi_tune.export.exporter import certify
from busi_tune.export.graphs import folded
from busi_tune.export.guard import guard_graph
from busi_tune.export.parity import WAYS, Reference, Shown, Verification, verify
from busi_tune.export.source import Fitted, Source, at_temperature, fit, reference_of
from busi_tune.export_options import ExportOptions
from busi_tune.images import Pixels
from busi_tune.progress import Silent
from busi_tune.training import exportable
from busi_tune.training.exportable import ExportableModel, last_layer
from exported import EXPORT_FILES, MODELS, Exported, flip_a_bit, linked, names, replace

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]
ONE_WAY = dict(list(WAYS.items())[:1])


@dataclass(frozen=True)
class Case:
    """The inputs of verification: an export, its run, the test pictures, and PyTorch's answers on them."""

    exported: Exported
    source: Source
    fitted: Fitted
    shown: Shown
    labels: Labels
    reference: Reference

    def model(self) -> ExportableModel:
        """The trained model, loaded again."""
        fresh = exportable.exportable_model(self.exported.run, self.source.identity)
        return at_temperature(dataclasses.replace(self.source, model=fresh), self.fitted.temperature)

    def export(self, model: ExportableModel, front: onnx.ModelProto | None = None) -> onnx.ModelProto:
        """The graph of `model`, built in the same way as a real export."""
        network = folded(exportable.to_onnx(model, self.source.size))
        front = front or resize.any_size(self.source.size)
        return assembly.assemble(front, network, guard_graph(self.fitted.guard))

    def draft(self, place: Path) -> Draft:
        """A draft of the export, staged in `place`."""
        given = (self.fitted, self.shown, self.reference, self.reference.logits * self.fitted.temperature)
        return Draft(place, self.source, ExportOptions(), *given)

    def verify(self, model: onnx.ModelProto | Path, place: Path) -> Verification:
        """The verification result of a model, with one way of running it."""
        path = model if isinstance(model, Path) else place / "model.onnx"
        if isinstance(model, onnx.ModelProto):
            self.draft(place).write(path.name, model, self.draft(place).facts(model, self.fitted.guard, None))
        return verify(path, self.shown, self.labels, self.reference, Silent(), how=ONE_WAY).result


@pytest.fixture(scope="module")
def case(exported: Exported) -> Case:
    """The shared export with a newly computed reference."""
    source = Source.of(exported.run, pipeline.run_data(exported.run, exported.data, Silent()), Silent())
    fitted = fit(source, None)
    shown = Shown.of(source.pictures("test"), source.size)
    labels = source.labels("test")
    reference, _ = reference_of(fitted.model, shown, labels)
    return Case(exported, source, fitted, shown, labels, reference)


def test_a_correct_export_passes(case: Case) -> None:
    count = len(case.shown.pictures)
    result = verify(case.exported.folder / "model.onnx", case.shown, case.labels, case.reference, Silent()).result
    assert (result.passed, result.reasons, result.answers_changed, result.resized_differently) == (True, [], 0, 0)
    assert (
        set(result.errors)
        == set(result.changed)
        == {
            "batch 32, all optimisations",
            "batch 1",
            "batch 2",
            "batch 7",
            "batch 8",
            "optimisation none",
            "optimisation basic",
            "threads 1",
            "threads 2",
        }
    )
    assert max(result.errors.values()) == result.max_error
    assert result.max_error <= result.tolerance == 4 * max(result.pytorch_float32_error, result.float32_step_error)
    assert result.confusion_matrix["pytorch"] == result.confusion_matrix["onnxruntime"]
    assert np.sum(result.confusion_matrix["onnxruntime"]) == result.images == count
    recorded = json.loads((case.exported.folder / "verification.json").read_text())
    # The file also holds its own SHA-256.
    assert recorded == case.exported.certificate | {"sha256": recorded["sha256"]}


def test_ready_images_are_answered_alike(case: Case) -> None:
    path = case.exported.folder / f"model-{case.source.size}.onnx"
    result = verify(path, case.shown.resized(), case.labels, case.reference, Silent(), how=ONE_WAY).result
    assert (result.passed, result.resized_differently) == (True, 0)


class Swapped(ExportableModel):
    """A network that takes RGB input as BGR."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits (n, classes) and features (n, features)."""
        return super().forward(pixels.flip(1))


def normalised(
    case: Case, mean: tuple[float, ...], std: tuple[float, ...], kind: type[ExportableModel] = ExportableModel
) -> onnx.ModelProto:
    """The trained network with another normalisation, or with swapped channels."""
    return case.export(kind(case.model().model, mean, std, case.fitted.temperature).eval())


def bgr(case: Case) -> onnx.ModelProto:
    """The channels are in the wrong order."""
    config = case.source.identity.config
    return normalised(case, config.mean, config.std, Swapped)


def unnormalised(case: Case) -> onnx.ModelProto:
    """Pixels from 0 to 1, without mean and standard deviation."""
    return normalised(case, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def raw_pixels(case: Case) -> onnx.ModelProto:
    """Pixels from 0 to 255, without normalisation."""
    return normalised(case, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def without_temperature(case: Case) -> onnx.ModelProto:
    """The temperature is missing."""
    assert case.fitted.temperature != 1
    return case.export(case.source.model)


def batch_statistics(case: Case) -> onnx.ModelProto:
    """Batch norm uses the statistics of the current batch, as in training."""
    model = case.model()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = False
    return case.export(model)


def int8(case: Case) -> onnx.ModelProto:
    """An int8 network with the certificate of a float32 one."""
    network = exportable.to_onnx(case.model(), case.source.size)
    small = quantisation.int8(network, case.source.part("train").pixels())
    return assembly.assemble(resize.any_size(case.source.size), small, guard_graph(case.fitted.guard))


def with_weight(case: Case, name: str, change: Callable[[NDArray[np.float32]], float]) -> onnx.ModelProto:
    """The export with a changed value in place of the largest weight of one layer."""
    graph = onnx.load(case.exported.folder / "model.onnx")
    tensor = next(entry for entry in graph.graph.initializer if entry.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    position = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[position] = change(weights)
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    return graph


def first_weight(case: Case) -> onnx.ModelProto:
    """One weight of the first convolution, changed by the layer's standard deviation."""
    return with_weight(
        case, "model.conv1.weight", lambda weights: float(weights.flat[np.abs(weights).argmax()] + weights.std())
    )


def last_weight(case: Case) -> onnx.ModelProto:
    """One weight of the last layer, changed by a thousandth of its value."""
    return with_weight(
        case, "model.fc.weight", lambda weights: float(weights.flat[np.abs(weights).argmax()] * (1 + 1e-3))
    )


def not_a_number(case: Case) -> onnx.ModelProto:
    """One weight of the last layer is NaN."""
    return with_weight(case, "model.fc.weight", lambda _: float("nan"))


MUTANTS = [bgr, unnormalised, raw_pixels, without_temperature, batch_statistics, int8, first_weight, last_weight]


@pytest.mark.parametrize("mutant", [*MUTANTS, not_a_number])
def test_a_wrong_graph_fails(mutant: Callable[[Case], onnx.ModelProto], case: Case, tmp_path: Path) -> None:
    result = case.verify(mutant(case), tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert not result.passed
    assert any("a logit is off by" in reason for reason in result.reasons)


@pytest.mark.parametrize("layer", ["model.layer2.0.conv1.weight", "model.layer4.1.bn2.running_var", "model.fc.bias"])
def test_one_weight_moved_by_a_thousandth_of_its_layers_scale_fails(layer: str, case: Case, tmp_path: Path) -> None:
    graph = with_weight(
        case, layer, lambda weights: float(weights.flat[np.abs(weights).argmax()] + 1e-3 * weights.std())
    )
    certificate = certify(case.draft(tmp_path), "model.onnx", graph, case.shown, ONE_WAY).certificate
    assert not certificate["passed"]
    assert f"tensors are not those of the run: {layer}" in certificate["reasons"]
    right = case.export(case.model())
    assert certify(case.draft(tmp_path), "model.onnx", right, case.shown, ONE_WAY).certificate["passed"]


def height_first(size: int) -> onnx.ModelProto:
    """A resize with height before width: the picture is transposed, resized and transposed back."""
    front = resize.any_size(size)
    for node in front.graph.node:
        for names_ in (node.input, node.output):
            for place, name in enumerate(names_):
                names_[place] = {"images": "turned", "pixels": "turned_back"}.get(name, name)
    front.graph.node.insert(0, helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 2, 1, 3]))
    front.graph.node.append(helper.make_node("Transpose", ["turned_back"], ["pixels"], perm=[0, 1, 3, 2]))
    return front


def resized_by_onnx(size: int, mode: str, antialias: int) -> onnx.ModelProto:
    """A resize with ONNX's own operator."""
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
    front (uint8[batch, height, width, 3] images) => (uint8[batch, 3, {size}, {size}] pixels)
    <int64[2] wanted = {{{size}, {size}}}, float least = {{0}}, float most = {{255}}> {{
      planes = Transpose <perm = [0, 3, 1, 2]> (images)
      levels = Cast <to = 1> (planes)
      wide = Resize <axes = [2, 3], mode = "{mode}", antialias = {antialias}> (levels, , , wanted)
      clipped = Clip (wide, least, most)
      round = Round (clipped)
      pixels = Cast <to = 2> (round)
    }}""")
    return onnx.compose.add_prefix(model, "resize.", rename_inputs=False, rename_outputs=False)


@pytest.mark.parametrize(
    "front",
    [
        pytest.param(height_first, id="height first"),
        pytest.param(lambda size: resized_by_onnx(size, "cubic", 1), id="bicubic"),
        pytest.param(lambda size: resized_by_onnx(size, "linear", 1), id="ONNX's bilinear"),
        pytest.param(lambda size: resized_by_onnx(size, "linear", 0), id="without antialiasing"),
    ],
)
def test_another_resize_fails(front: Callable[[int], onnx.ModelProto], case: Case, tmp_path: Path) -> None:
    result = case.verify(case.export(case.model(), front(case.source.size)), tmp_path)
    assert not result.passed
    assert result.resized_differently
    assert any("not resized as they were for training" in reason for reason in result.reasons)


def test_channels_in_the_wrong_order_fail_on_grey_images_too(case: Case, tmp_path: Path) -> None:
    shown = Shown.of([np.repeat(picture[..., :1], 3, axis=2) for picture in case.shown.pictures], case.source.size)
    grey = dataclasses.replace(case, shown=shown, reference=reference_of(case.model(), shown, case.labels)[0])
    wrong = grey.verify(bgr(case), tmp_path)
    assert not wrong.passed
    assert wrong.probe_error > wrong.probe_tolerance
    assert wrong.max_error <= wrong.tolerance
    assert grey.verify(case.exported.folder / "model.onnx", tmp_path).passed


def test_a_model_left_in_training_mode_fails(case: Case, tmp_path: Path) -> None:
    reference, _ = reference_of(case.model().train(), case.shown, case.labels)
    training = dataclasses.replace(case, reference=reference)
    result = training.verify(case.exported.folder / "model.onnx", tmp_path)
    assert not result.passed
    assert result.max_error > 100 * result.tolerance


def resized(case: Case, resample: Image.Resampling) -> list[Pixels]:
    """The test pictures, resized with another filter."""
    size = (case.source.size, case.source.size)
    return [np.asarray(Image.fromarray(picture).resize(size, resample)) for picture in case.shown.pictures]


def squeezed(case: Case) -> list[Pixels]:
    """Bilinear without antialiasing, as in OpenCV and most GPU code."""
    found = []
    size = case.source.size
    for picture in case.shown.pictures:
        image = Image.fromarray(picture)
        matrix = (image.width / size, 0.0, 0.0, 0.0, image.height / size, 0.0)
        small = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        found.append(np.asarray(small))
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda case: resized(case, Image.Resampling.BICUBIC), id="bicubic"),
        pytest.param(lambda case: resized(case, Image.Resampling.NEAREST), id="nearest"),
        pytest.param(squeezed, id="bilinear without antialiasing"),
        pytest.param(lambda case: [picture[..., ::-1] for picture in case.shown.pictures], id="BGR"),
        pytest.param(lambda case: [*case.shown.pictures[1:], case.shown.pictures[0]], id="another image's pixels"),
    ],
)
def test_wrong_pictures_fail(wrong: Callable[[Case], list[Pixels]], case: Case) -> None:
    given = Shown(wrong(case), case.shown.probes, case.source.size)
    path = case.exported.folder / "model.onnx"
    result = verify(path, given, case.labels, case.reference, Silent(), how=ONE_WAY).result
    assert not result.passed
    assert result.reasons[0].startswith("a logit is off by")


def test_an_answer_that_flips_within_rounding_is_counted_but_passes(case: Case, tmp_path: Path) -> None:
    # The two largest logits differ by less than PyTorch's own error, so either answer is correct.
    given = case.reference.logits.copy()
    first, second = np.argsort(given[0])[-2:][::-1]
    given[0, [first, second]] = given[0, [first, second]].mean() + np.array([-1e-9, 1e-9])
    matrix = confusion_matrix(case.labels, given.argmax(axis=1), 3).tolist()
    reference = dataclasses.replace(case.reference, logits=given, float32_error=1.0, confusion_matrix=matrix)
    close = dataclasses.replace(case, reference=reference)
    result = close.verify(case.exported.folder / "model.onnx", tmp_path)
    assert (result.passed, result.answers_changed) == (True, 1)
    assert result.smallest_margin == pytest.approx(2e-9, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_the_tolerance_goes_with_the_scale_of_the_logits(scale: float, case: Case, tmp_path: Path) -> None:
    model, graph = case.model(), onnx.load(case.exported.folder / "model.onnx")
    head = last_layer(model.model).state_dict()
    for name, value in head.items():
        value.mul_(scale)
        (tensor,) = (entry for entry in graph.graph.initializer if entry.name == f"model.fc.{name}")
        tensor.CopyFrom(numpy_helper.from_array(value.numpy(), tensor.name))
    reference, _ = reference_of(model, case.shown, case.labels)
    result = dataclasses.replace(case, reference=reference).verify(graph, tmp_path)
    assert result.passed
    assert result.tolerance == pytest.approx(scale * case.reference.tolerance, rel=2)


def test_a_lucky_own_error_of_pytorch_fails_no_correct_export(case: Case, tmp_path: Path) -> None:
    lucky = dataclasses.replace(case.reference, float32_error=0.0, probe_float32_error=0.0)
    assert lucky.step_error > 0
    assert dataclasses.replace(case, reference=lucky).verify(case.exported.folder / "model.onnx", tmp_path).passed


def nan_for_batches_of_seven(case: Case, column: int) -> bytes:
    """The export, changed so that one logit is NaN in every batch of seven."""
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
    shown = Shown([case.shown.pictures[0]] * 14, case.shown.probes, case.source.size)
    labels = case.labels[np.zeros(14, dtype=np.int64)]
    result = verify(model, shown, labels, reference_of(case.model(), shown, labels)[0], Silent()).result
    model.unlink()
    assert np.isnan(result.errors["batch 7"])
    assert not result.passed
    assert json.dumps(result.entry(), allow_nan=False).count("null") == 2


def test_an_altered_checkpoint_is_refused(exported: Exported, tmp_path: Path) -> None:
    run = linked(exported.run, tmp_path / "run")
    checkpoint = next((run / "checkpoints").glob("best-*.safetensors"))
    flip_a_bit(checkpoint)
    with pytest.raises(FileError, match=f"{checkpoint.name} is not the file that was written"):
        pipeline.export(run, tmp_path / "out", exported.data, Silent())
    assert not (tmp_path / "out").exists()


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
        patch.setattr(parity, "FACTOR", 1e-6)
        with pytest.raises(ParityError, match="a logit is off by"):
            pipeline.export(exported.run, folder, exported.data, Silent())
    assert names(folder) == EXPORT_FILES - MODELS - {"labels.json"}
    certificate = json.loads((folder / "verification.json").read_text())
    assert certificate["passed"] is False
    assert certificate["reasons"]
    assert pipeline.export(exported.run, folder, exported.data, Silent())["passed"]
    assert names(folder) == EXPORT_FILES
