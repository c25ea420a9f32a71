"""Smaller forms of a network: int8 and float16, the accuracy gate, and layers that stay in float32."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.export import quantisation
from busi_tune.export.gate import Gate, GateError, Pair, compare, failure, latency, through_gate
from busi_tune.export.graphs import folded
from busi_tune.images import Pixels
from busi_tune.progress import Silent
from busi_tune.training import exportable
from busi_tune.training.run_folder import read_identity

pytestmark = pytest.mark.slow

CLASSES = ("benign", "malignant", "normal")
HOSTILE = "model.layer2.0"


@dataclass(frozen=True)
class Trained:
    """A trained network, its calibration images, its evaluation images with labels, and its logits on the latter."""

    network: bytes
    calibration: Pixels
    pixels: Pixels
    labels: NDArray[np.int64]
    exact: NDArray[np.float64]

    def gate(self, candidate: bytes) -> Gate:
        """The accuracy loss of a smaller form of the network."""
        return compare(self.exact, quantisation.logits(candidate, self.pixels), self.labels, CLASSES)


@pytest.fixture(scope="module")
def trained(phantoms: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A ResNet18 that separates the phantoms, judged on training images, too, as the validation split is small."""
    run = tmp_path_factory.mktemp("int8") / "run"
    pipeline.baseline(phantoms, run, replace(tiny, epochs=40, early_stopping_patience=40), Silent())
    data = pipeline.run_data(run, phantoms, Silent())
    parts = [data.part(name, tiny.image_size, Silent()) for name in ("train", "validation")]
    network = exportable.to_onnx(exportable.exportable_model(run, read_identity(run)), tiny.image_size)
    pixels = np.concatenate([part.pixels() for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Trained(network, parts[0].pixels(), pixels, labels, quantisation.logits(network, pixels))


@pytest.fixture(scope="module")
def int8(trained: Trained) -> bytes:
    """The trained network in int8."""
    return quantisation.int8(trained.network, trained.calibration)


def hostile(network: bytes) -> bytes:
    """The same function with one channel scaled up by 10,000 between two layers, beyond the range of one int8 scale."""
    model = onnx.load_from_string(network)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in {f"{HOSTILE}.bn1.weight", f"{HOSTILE}.bn1.bias"}:
            values[0] *= 1e4
        elif tensor.name == f"{HOSTILE}.conv2.weight":
            values[:, 0] /= 1e4
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    data: bytes = model.SerializeToString()
    return data


def layer_with(network: bytes, weight: str) -> str:
    """The name of the layer with this weight."""
    name: str = next(node.name for node in onnx.load_from_string(network).graph.node if weight in node.input[1:])
    return name


def kernels(network: bytes, folder: Path) -> Counter[str]:
    """The operators of ONNX Runtime's optimised graph, counted by type."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def interface(network: bytes) -> list[Any]:
    """The names, types and shapes of a network's inputs and outputs."""
    running = quantisation.session(network)
    return [(value.name, value.type, value.shape) for value in (*running.get_inputs(), *running.get_outputs())]


def test_int8_quantises_activations_unsigned_and_weights_signed_by_channel(int8: bytes) -> None:
    graph = onnx.load_from_string(int8).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    by_output = {node.output[0]: node for node in weights}
    for node in convolutions:
        weight = by_output[node.input[1]]
        assert tensors[weight.input[0]].data_type == TensorProto.INT8
        assert list(tensors[weight.input[1]].dims) == [tensors[weight.input[0]].dims[0]]
    activations = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(convolutions) == 20
    assert {tensors[node.input[2]].data_type for node in activations} == {TensorProto.UINT8}


def test_int8_runs_in_integer_kernels_from_the_first_convolution_to_the_last_sum(int8: bytes, tmp_path: Path) -> None:
    found = kernels(int8, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["Conv"], found["Add"]) == (20, 8, 0, 0)
    # Quantised before the first convolution, dequantised before the pooling.
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_a_form_keeps_inputs_and_outputs_and_holds_standard_operators_alone(
    trained: Trained, int8: bytes, form: str
) -> None:
    data = int8 if form == "int8" else quantisation.float16(trained.network)
    model = onnx.load_from_string(data)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert (model.ir_version, {node.domain for node in model.graph.node}) == (8, {""})
    assert not model.metadata_props
    assert interface(data) == interface(trained.network)
    assert len(data) < len(trained.network) * (0.3 if form == "int8" else 0.55)
    assert trained.gate(data).agreement >= 0.98
    one_by_one = [quantisation.logits(data, trained.pixels[number : number + 1]) for number in range(3)]
    np.testing.assert_allclose(np.concatenate(one_by_one), quantisation.logits(data, trained.pixels[:3]), atol=1e-2)


def test_int8_of_the_same_images_is_the_same_bytes(trained: Trained, int8: bytes) -> None:
    assert quantisation.int8(trained.network, trained.calibration) == int8


def test_layers_that_are_kept_stay_in_float32(trained: Trained, tmp_path: Path) -> None:
    first, second = (layer_with(trained.network, f"model.layer3.0.conv{number}.weight") for number in (1, 2))
    nodes = {node.name: node for node in onnx.load_from_string(trained.network).graph.node}
    between = next(name for name, node in nodes.items() if nodes[second].input[0] in node.output)
    data = quantisation.int8(trained.network, trained.calibration, keep=[first, between, second])
    found = kernels(data, tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (18, 2)


def test_folding_leaves_every_tensor_as_it_was_and_lets_layers_fuse(trained: Trained, tmp_path: Path) -> None:
    data = folded(trained.network)
    before, after = (
        {
            tensor.name: numpy_helper.to_array(tensor).tobytes()
            for tensor in onnx.load_from_string(graph).graph.initializer
        }
        for graph in (trained.network, data)
    )
    assert before.items() <= after.items()
    assert kernels(data, tmp_path)["BatchNormalization"] == 0


def test_a_network_that_int8_serves_goes_through_whole(trained: Trained, int8: bytes) -> None:
    assert through_gate(trained.network, trained.calibration, trained.gate) == (int8, trained.gate(int8), [])


def test_the_layers_that_int8_breaks_go_back_to_float32(trained: Trained) -> None:
    network = hostile(trained.network)
    np.testing.assert_allclose(quantisation.logits(network, trained.pixels), trained.exact, atol=1e-3)
    assert not trained.gate(quantisation.int8(network, trained.calibration)).passed
    data, gate, kept = through_gate(network, trained.calibration, trained.gate)
    assert gate.passed
    assert gate == trained.gate(data)
    assert layer_with(network, f"{HOSTILE}.conv2.weight") in kept
    assert len(kept) <= 15


def test_a_gate_that_nothing_passes_says_by_how_much_it_fails(trained: Trained) -> None:
    def judge(candidate: bytes) -> Gate:
        return compare(-trained.exact, quantisation.logits(candidate, trained.pixels), trained.labels, CLASSES)

    with pytest.raises(GateError, match=r"^The int8 model does not pass .* less than 98%; .* float32 model\.$"):
        through_gate(trained.network, trained.calibration, judge)


# 100 images: 50 benign, 30 malignant, 20 normal. float32 is wrong on 2 benign and 2 malignant ones.
TRUTH = np.repeat([0, 1, 2], [50, 30, 20])
WRONG = {0: 1, 1: 2, 50: 0, 51: 0}


def answers(changes: dict[int, int]) -> NDArray[np.float64]:
    """Logits for the true class, except for the images in `changes`."""
    given = TRUTH.copy()
    given[list(changes)] = list(changes.values())
    return np.asarray(np.eye(3)[given])


LESS_SENSITIVE = "its sensitivity falls by 3.3% from 93.3%, more than 1.0%"


@pytest.mark.parametrize(
    ("changes", "max_drop", "reasons"),
    [
        pytest.param(WRONG, 0.0, [], id="the same"),
        pytest.param({0: 1, 1: 2}, 0.0, [], id="better"),
        pytest.param(WRONG | {2: 1}, 0.01, [], id="a drop of just the limit"),
        pytest.param(
            WRONG | {2: 1}, 0.005, ["its accuracy falls by 1.0% from 96.0%, more than 0.5%"], id="a tighter limit"
        ),
        pytest.param(WRONG | {52: 0}, 0.01, [LESS_SENSITIVE], id="a malignant one missed"),
        pytest.param(WRONG | {52: 0}, 0.04, [], id="a malignant one missed, allowed"),
        pytest.param(WRONG | {2: 1, 0: 0}, 0.01, [], id="one lost, one won"),
        pytest.param(
            WRONG | {2: 1, 3: 1, 0: 0, 1: 0},
            0.01,
            ["only 96.0% of its predictions equal those of float32, less than 98%"],
            id="as good, but another",
        ),
        pytest.param(
            WRONG | {2: 1, 3: 1, 52: 0},
            0.01,
            [
                "its accuracy falls by 3.0% from 96.0%, more than 1.0%",
                LESS_SENSITIVE,
                "only 97.0% of its predictions equal those of float32, less than 98%",
            ],
            id="all at once",
        ),
    ],
)
def test_the_gate(changes: dict[int, int], max_drop: float, reasons: list[str]) -> None:
    gate = compare(answers(WRONG), answers(changes), TRUTH, CLASSES, max_drop)
    assert (gate.passed, gate.reasons, gate.images) == (not reasons, reasons, 100)
    assert gate.accuracy.float32 == 0.96


def test_the_gate_counts_what_changed() -> None:
    gate = compare(answers(WRONG), answers(WRONG | {2: 1, 52: 0}), TRUTH, CLASSES, 0.04)
    assert gate == Gate(
        passed=True,
        reasons=[],
        images=100,
        accuracy=Pair(0.96, 0.94),
        sensitivity=Pair(28 / 30, 27 / 30),
        agreement=0.98,
        answers_changed=2,
    )


def test_a_data_set_without_malignant_has_no_sensitivity() -> None:
    gate = compare(answers(WRONG), answers(WRONG | {52: 0}), TRUTH, ("a", "b", "c"))
    assert (gate.passed, gate.sensitivity) == (True, None)


def test_answers_that_are_not_numbers_do_not_pass() -> None:
    candidate = answers(WRONG)
    candidate[99, 0] = np.nan
    gate = compare(answers(WRONG), candidate, TRUTH, CLASSES)
    assert "its logits are not finite" in gate.reasons
    assert failure("int8", gate).startswith(
        "The int8 model does not pass its gate on 100 validation images, not even with half of its layers in float32: "
    )


def test_latency_takes_the_models_in_turn() -> None:
    calls: list[str] = []
    times = latency({name: partial(calls.append, name) for name in ("float32", "int8")}, rounds=2)
    assert list(times) == ["float32", "int8"]
    assert calls == ["float32", "int8"] * (len(calls) // 2)
