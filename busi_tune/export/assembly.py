"""The exported file: picture to pixels, network, probabilities and guard in one graph; what it says of itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import optimizer

from busi_tune import __version__

IR_VERSION = 10
OUTPUTS = ("logits", "probabilities", "pixels", "guard")
PROBABILITIES = """<ir_version: 10, opset_import: ["": 20]>
probabilities (float[batch, COUNT] logits) => (float[batch, COUNT] probabilities)
{
  probabilities = Softmax <axis = -1> (logits)
}"""


@dataclass(frozen=True)
class Made:
    """A model file that has been verified: its graph, what it says of itself, and its certificate."""

    graph: onnx.ModelProto
    facts: dict[str, Any]
    certificate: dict[str, Any]


def assemble(front: onnx.ModelProto, network: bytes, guard: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of what stands before the network (see resize.py), the network, and what follows it."""
    middle = cleaned(onnx.load_from_string(network))
    classes = next(value for value in middle.graph.output if value.name == "logits").type.tensor_type.shape.dim[1]
    last = onnx.parser.parse_model(PROBABILITIES.replace("COUNT", str(classes.dim_value)))
    parts = [front, middle, last, guard]
    known = {value.name: value for part in parts for value in part.graph.output}
    graph = onnx.helper.make_graph(
        nodes=[node for part in parts for node in part.graph.node],
        name="busi-tune",
        inputs=list(front.graph.input),
        outputs=[known[name] for name in OUTPUTS],
        initializer=[tensor for part in parts for tensor in part.graph.initializer],
    )
    model = onnx.helper.make_model(graph, opset_imports=list(front.opset_import), ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "busi-tune", __version__
    return model


def folded(network: bytes) -> bytes:
    """The network with its constant expressions computed: as such, they keep ONNX Runtime from fusing layers."""
    model = onnx.load_from_string(network)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    return bytes(model.SerializeToString())


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which hold paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def finish(model: onnx.ModelProto, facts: Mapping[str, Any]) -> bytes:
    """The file: checked whole, with `facts` in its metadata; texts as they are, all else as JSON.

    Raises:
        onnx.checker.ValidationError: it is no valid model of one file, which is a defect of ours.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def foreign_tensors(model: onnx.ModelProto, expected: Mapping[str, NDArray[Any]]) -> list[str]:
    """The names of `expected` under which the graph holds another tensor, or none."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        name
        for name, array in expected.items()
        if name not in held or numpy_helper.to_array(held[name]).tobytes() != array.tobytes()
    ]


def weights_sha256(model: onnx.ModelProto) -> str:
    """The SHA-256 of the graph's constants: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def graph_sha256(model: onnx.ModelProto) -> str:
    """The SHA-256 of the graph without its metadata and without the values of its tensors."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.ClearField("metadata_props")
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
