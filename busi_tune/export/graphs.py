"""ONNX graphs from onnxscript functions: typed, inlined, and with their constants folded."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import OnnxFunction, ir, optimizer
from onnxscript.onnx_types import TensorType

# The oldest versions with all operators; ONNX Runtime 1.15 and many other runtimes support them.
OPSET, IR_VERSION = 18, 8
# The IR version for later opsets, which are used for networks that opset 18 cannot express.
LATER_IR_VERSION = 9
passes = ir.passes.common


def graph_of(
    function: OnnxFunction, inputs: Sequence[TensorType], outputs: Mapping[str, TensorType], prefix: str
) -> onnx.ModelProto:
    """The model of an onnxscript function. Its results are named `outputs`; all other names begin with `prefix`.

    Called functions are inlined, because prediction never loads a model that contains functions.
    """
    script = function.to_model_proto(input_types=inputs, output_types=list(outputs.values()), ir_version=IR_VERSION)
    model = ir.from_proto(script)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    # A literal is cast to the other operand's type, so types must be inferred before casts are folded.
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
    """The network with its constant expressions folded, because these keep ONNX Runtime from fusing layers.

    Expressions of weights are kept, so that the file holds each weight exactly as trained. ONNX Runtime transposes,
    folds and fuses them when it loads the file.
    """
    model = ir.from_proto(onnx.load_from_string(network))
    weights = set(model.graph.initializers)

    def of_weights(node: ir.Node) -> bool | None:
        """False for a node that must stay; None leaves the decision to the folding."""
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    optimizer.fold_constants(model, should_fold=of_weights)
    # This must follow the folding, which infers the shapes that `_fix_shape` reads.
    for node in list(model.graph):
        _fix_shape(node)
    tidy = ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    )
    return bytes(ir.to_proto(tidy(model).model).SerializeToString())


def _fix_shape(node: ir.Node) -> None:
    """Replace a reshape whose shape is computed from the batch by one with a constant shape, for other runtimes."""
    if node.op_type != "Reshape" or ir.convenience.get_const_tensor(node.inputs[1]) is not None:
        return
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if after is None or sum(not isinstance(length, int) for length in after) != 1:
        return
    if before is not None and len(after) == 2 and before[0] == after[0]:
        new = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, outputs=[_like(node.outputs[0])], name=node.name)
        added = [new]
    else:
        lengths = [length if isinstance(length, int) else -1 for length in after]
        shape = ir.node("Constant", [], {"value_ints": lengths}, name=f"{node.name}_shape")
        shape.outputs[0].name = f"{node.name}_shape"
        new = ir.node("Reshape", [node.inputs[0], shape.outputs[0]], outputs=[_like(node.outputs[0])], name=node.name)
        added = [shape, new]
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], added, node.outputs, new.outputs)


def _like(value: ir.Value) -> ir.Value:
    """A new value with the same name, type and shape."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def with_outputs(network: bytes, names: Sequence[str]) -> bytes:
    """The network with these outputs only, without the nodes and tensors that they do not need."""
    model = onnx.load_from_string(network)
    part = onnx.utils.Extractor(model).extract_model([value.name for value in model.graph.input], list(names))
    return bytes(part.SerializeToString())


def with_tensor(network: bytes, name: str, value: NDArray[np.float32]) -> bytes:
    """The network with another value of one of its tensors."""
    model = onnx.load_from_string(network)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())


def opset_of(*models: onnx.ModelProto) -> int:
    """The lowest opset of ONNX's standard operators that covers all of `models`."""
    return int(max(entry.version for model in models for entry in model.opset_import if not entry.domain))


def ir_version_of(opset: int) -> int:
    """The IR version that goes with an opset."""
    return IR_VERSION if opset <= OPSET else LATER_IR_VERSION


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's metadata, which contains paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
