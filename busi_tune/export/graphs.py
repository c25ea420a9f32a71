"""ONNX graphs from onnxscript functions: typed, inlined, and with their constants folded."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import OnnxFunction, ir, optimizer
from onnxscript.onnx_types import TensorType

IR_VERSION = 10
passes = ir.passes.common


def graph_of(
    function: OnnxFunction, inputs: Sequence[TensorType], outputs: Mapping[str, TensorType], prefix: str
) -> onnx.ModelProto:
    """The model of an onnxscript function; its results are named `outputs`, all other names begin with `prefix`.

    The functions that it calls are inlined, because a model with functions of its own is never loaded.
    """
    script = function.to_model_proto(input_types=inputs, output_types=list(outputs.values()), ir_version=IR_VERSION)
    model = ir.from_proto(script)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    # A literal is cast to the type of the other operand, which must be known before the cast is folded.
    model = ir.passes.Sequential(passes.InlinePass(), passes.ShapeInferencePass())(model).model
    optimizer.fold_constants(model, onnx_shape_inference=False)
    tidy = ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    )
    proto: onnx.ModelProto = ir.to_proto(tidy(model).model)
    del proto.graph.value_info[:]
    onnx.compose.add_prefix(proto, f"{prefix}.", rename_inputs=False, rename_outputs=False, inplace=True)
    return proto


def folded(network: bytes) -> bytes:
    """The network with its constant expressions computed: as such, they keep ONNX Runtime from fusing layers.

    Expressions of weights stay, so that each weight stands in the file as it was trained: ONNX Runtime transposes,
    folds and fuses them when it loads the file.
    """
    model = onnx.load_from_string(network)
    weights = {tensor.name for tensor in model.graph.initializer}

    def of_weights(node: ir.Node) -> bool | None:
        """False for a node that must stay; None leaves it to the folding's own rules."""
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    optimizer.fold_constants(model, should_fold=of_weights)
    optimizer.remove_unused_nodes(model)
    return bytes(model.SerializeToString())


def with_tensor(network: bytes, name: str, value: NDArray[np.float32]) -> bytes:
    """The network with another value of one of its tensors."""
    model = onnx.load_from_string(network)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes, which hold paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
