"""The exported file: resize, network, probabilities and guard in one graph, with metadata."""

import json
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import FLOAT, script
from onnxscript import opset18 as op

from busi_tune import __version__
from busi_tune.export.graphs import cleaned, graph_of, ir_version_of, opset_of
from busi_tune.inference.classifier import MAPS

OUTPUTS = ("logits", "probabilities", "pixels", "guard")
# The description of the output with class activation maps.
MAP_TEXT = (
    "float32 (batch, classes, h, w); class activation maps in the order of the classes, over the whole picture; the "
    "mean over h and w is the logit"
)


@script()
def softmax(logits: FLOAT[...]) -> FLOAT[...]:
    """Probabilities of logits."""
    return op.Softmax(logits, axis=-1)


def assemble(front: onnx.ModelProto, network: bytes, guard: onnx.ModelProto) -> onnx.ModelProto:
    """Join the front (see resize.py), the network, its probabilities and the guard in one graph.

    A network with class activation maps adds the output `cam`.
    """
    middle = cleaned(onnx.load_from_string(network))
    classes = next(value for value in middle.graph.output if value.name == "logits").type.tensor_type.shape.dim[1]
    scores = FLOAT["batch", classes.dim_value]
    last = graph_of(softmax, [scores], {"probabilities": scores}, "probabilities")
    parts = [front, middle, last, guard]
    known = {value.name: value for part in parts for value in part.graph.output}
    graph = onnx.helper.make_graph(
        nodes=[node for part in parts for node in part.graph.node],
        name="busi-tune",
        inputs=list(front.graph.input),
        outputs=[known[name] for name in (*OUTPUTS, MAPS) if name in known],
        initializer=[tensor for part in parts for tensor in part.graph.initializer],
    )
    opset = opset_of(*parts)
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version_of(opset))
    model.producer_name, model.producer_version = "busi-tune", __version__
    return model


def finish(model: onnx.ModelProto, facts: Mapping[str, object]) -> bytes:
    """Add `facts` to the model's metadata, check the whole model, and return the bytes of its file.

    Texts are stored unchanged, all other facts as JSON.

    Raises:
        onnx.checker.ValidationError: the model is not valid or not complete in one file, which is a bug in busi-tune.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def input_text(model: onnx.ModelProto) -> str:
    """The description of a model's input for its metadata."""
    (entry,) = model.graph.input
    shape = ", ".join(axis.dim_param or str(axis.dim_value) for axis in entry.type.tensor_type.shape.dim)
    inside = "normalisation is" if entry.type.tensor_type.shape.dim[1].dim_value else "resize and normalisation are"
    return f"{entry.name}: uint8 RGB, ({shape}); {inside} in the graph"


def foreign_tensors(model: onnx.ModelProto, expected: Mapping[str, NDArray[np.generic]]) -> list[str]:
    """The names in `expected` whose tensor is different, unused or missing in the graph."""
    used = {name for node in model.graph.node for name in node.input}
    held = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in used}
    return [name for name, array in expected.items() if name not in held or not _is(held[name], array)]


def _is(tensor: onnx.TensorProto, array: NDArray[np.generic]) -> bool:
    """Whether a tensor is `array`, bit for bit."""
    held = numpy_helper.to_array(tensor)
    return (held.dtype, held.shape, held.tobytes()) == (array.dtype, array.shape, array.tobytes())
