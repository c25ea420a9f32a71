"""A network in int8, by ONNX Runtime's static quantiser, or in float16. Its inputs and outputs do not change."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from busi_tune.export.graphs import folded, ir_version_of, opset_of
from busi_tune.images import Pixels

Logits = NDArray[np.float64]
BATCH = 8
WEIGHTED = ("Conv", "Gemm", "MatMul")
STRETCHES = 16
SHORTEST_STRETCH = 4
RANKING_IMAGES = 16


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images as batches of the network's input."""

    def __init__(self, images: Pixels) -> None:
        self.batches = batches(images)

    def get_next(self) -> dict[str, Pixels] | None:
        """The next batch, or None at the end."""
        return next(self.batches, None)


def batches(images: Pixels) -> Iterator[dict[str, Pixels]]:
    """Batches of a network's input, from images (n, size, size, 3)."""
    for start in range(0, len(images), BATCH):
        yield {"pixels": np.ascontiguousarray(images[start : start + BATCH].transpose(0, 3, 1, 2))}


def session(network: bytes, threads: int = 0) -> ort.InferenceSession:
    """A session of a network on the CPU. Its threads do not spin between runs, which would slow other sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def outputs(network: bytes, images: Pixels, *names: str) -> list[NDArray[np.float32]]:
    """The named outputs of a network for images (n, size, size, 3)."""
    running = session(network)
    parts = [running.run(names, batch) for batch in batches(images)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def logits(network: bytes, images: Pixels) -> Logits:
    """A network's logits (n, classes) of images (n, size, size, 3)."""
    return outputs(network, images, "logits")[0].astype(np.float64)


class Quantiser:
    """Makes int8 forms of one network, which is calibrated once on training images (n, size, size, 3)."""

    def __init__(self, network: bytes, calibration: Pixels, place: Path) -> None:
        self.calibration, self.place, self.network = calibration, place, folded(network)
        source, self.prepared, self.ranges = place / "network.onnx", place / "prepared.onnx", place / "ranges.json"
        source.write_bytes(self.network)
        # Symbolic shape inference fails on constants of PyTorch's exporter; ONNX's shape inference finds all shapes.
        quant_pre_process(source, self.prepared, skip_symbolic_shape=True)
        nodes = onnx.load(self.prepared).graph.node
        # The last layer stays in float32: it is cheap, and 256 different logits are too few to separate classes.
        self.always = [node.name for node in nodes if node.op_type in WEIGHTED][-1:]
        quantised = {*QDQRegistry, *QLinearOpsRegistry}
        self.layers = [node.name for node in nodes if node.op_type in quantised and node.name not in self.always]

    def int8(self, keep: Sequence[str] = (), only: Sequence[str] = ()) -> bytes:
        """The network in int8 with the layers of `keep` in float32; with `only`, no other layers are in int8."""
        target = self.place / "int8.onnx"
        with quiet():
            quantize_static(
                self.prepared,
                target,
                _Images(self.calibration),
                calibration_cache_path=self.ranges,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_quantize=list(only),
                nodes_to_exclude=[*self.always, *keep],
            )
        return finished(onnx.load(target))

    def ranking(self) -> list[list[str]]:
        """Stretches of neighbouring layers, sorted by the error in the logits if only they are int8, the worst first.

        Neighbours stay together, because a tensor is in float32 only if all layers that touch it are. ONNX Runtime
        also computes a single convolution between two int8 tensors in int8, whatever its weights are.
        """
        length = max(SHORTEST_STRETCH, math.ceil(len(self.layers) / STRETCHES))
        stretches = [self.layers[start : start + length] for start in range(0, len(self.layers), length)]
        images = self.calibration[:: math.ceil(len(self.calibration) / RANKING_IMAGES)]
        exact = logits(self.network, images)
        harm = [float(np.abs(logits(self.int8(only=names), images) - exact).mean()) for names in stretches]
        return [stretches[number] for number in np.argsort(harm)[::-1]]


@contextmanager
def quantiser(network: bytes, calibration: Pixels) -> Iterator[Quantiser]:
    """A `Quantiser` whose temporary files are deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="busi-tune-int8-") as place:
        yield Quantiser(network, calibration, Path(place))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the quantiser's warnings, which go to the root logger."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def int8(network: bytes, calibration: Pixels, *, keep: Sequence[str] = ()) -> bytes:
    """The network in int8, calibrated on training images (n, size, size, 3); the layers of `keep` stay in float32."""
    with quantiser(network, calibration) as maker:
        return maker.int8(keep)


def float16(network: bytes) -> bytes:
    """The network in half precision. Its inputs and outputs keep their types."""
    return finished(convert_float_to_float16(onnx.load_from_string(folded(network)), keep_io_types=True))


def finished(model: onnx.ModelProto) -> bytes:
    """The checked model with only standard operators and without metadata of the tools that made it."""
    del model.metadata_props[:]
    standard = [entry for entry in model.opset_import if not entry.domain]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    model.ir_version = ir_version_of(opset_of(model))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
