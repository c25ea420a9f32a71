"""The bare network of an export: normalised pixels to logits, for runtimes that cannot run the whole graph."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import InferenceSession
from onnxscript import ir, optimizer

from busi_tune.export import assembly
from busi_tune.export.draft import Draft, Made
from busi_tune.export.graphs import cleaned, ir_version_of, opset_of, passes
from busi_tune.export.parity import BATCH, Logits, distance
from busi_tune.images import Pixels
from busi_tune.inference.contents import read_contents
from busi_tune.results import ModelCertificate
from busi_tune.training import exportable

NETWORK = "network.onnx"
INPUT, OUTPUT = "input", "logits"
Floats = NDArray[np.float32]


def make_network(draft: Draft, *, static: bool) -> Made:
    """Write the bare network of a draft and verify it on the test pictures; `static` fixes the batch size to 1.

    It passes under the same conditions as `model.onnx`: no logit's error exceeds the tolerance, no prediction differs
    by more than rounding, and its tensors equal the run's.
    """
    source, reference = draft.source, draft.reference
    graph = bare(draft.fitted.network, static=static)
    batch = "1" if static else "batch"
    facts: dict[str, object] = {
        "classes": list(source.classes),
        "image_size": str(source.size),
        "input": f"{INPUT}: float32 RGB, ({batch}, 3, {source.size}, {source.size}); (pixel / 255 - mean) / std",
        "mean": list(source.identity.config.mean),
        "std": list(source.identity.config.std),
        "arch": source.identity.config.arch,
    }
    path = draft.write(NETWORK, graph, facts)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    tensors = exportable.tensors(draft.fitted.model)
    mean, deviation = (tensors.pop(name).astype(np.float32) for name in ("pixel_mean", "pixel_deviation"))

    def logits_of(pixels: Pixels) -> Logits:
        inputs = ((pixels.transpose(0, 3, 1, 2).astype(np.float32) - mean) / deviation).astype(np.float32)
        step = 1 if static else BATCH
        parts = [session.run([OUTPUT], {INPUT: inputs[k : k + step]})[0] for k in range(0, len(inputs), step)]
        return np.concatenate(parts).astype(np.float64)

    found, exact = logits_of(draft.shown.pixels), reference.logits
    error, probe_error = distance(found, exact), distance(logits_of(draft.shown.probe_pixels), reference.probe)
    changed = found.argmax(axis=1) != exact.argmax(axis=1)
    margins = np.diff(np.sort(exact, axis=1)[:, -2:], axis=1)[:, 0]
    foreign = assembly.foreign_tensors(graph, tensors)
    checks = {
        f"a logit is off by {error:.3g}, more than {reference.tolerance:.3g}": not error <= reference.tolerance,
        f"on noise a logit is off by {probe_error:.3g}": not probe_error <= reference.probe_tolerance,
        "predictions differ by more than rounding": bool((changed & (margins > 2 * error)).any()),
        f"tensors are not those of the run: {', '.join(foreign[:3])}": bool(foreign),
    }
    reasons = [reason for reason, failed in checks.items() if failed]
    contents = read_contents(path)
    certificate: ModelCertificate = {
        "passed": not reasons,
        "reasons": reasons,
        "images": len(found),
        "max_error": error if np.isfinite(error) else None,
        "tolerance": reference.tolerance if np.isfinite(reference.tolerance) else None,
        "answers_changed": int(changed.sum()),
        "probe_error": probe_error if np.isfinite(probe_error) else None,
        "graph_sha256": contents.graph_sha256,
        "weights_sha256": contents.weights_sha256,
    }
    return Made(graph, facts, certificate, np.zeros((len(found), 0), np.float32))


def bare(network: bytes, *, static: bool) -> onnx.ModelProto:
    """The part of a network from after its normalisation to the logits."""
    model = cleaned(onnx.load_from_string(network))
    (normalised,) = (node.output[0] for node in model.graph.node if "pixel_deviation" in node.input)
    part = onnx.utils.Extractor(model).extract_model([normalised], [OUTPUT])
    for node in part.graph.node:
        node.input[:] = [INPUT if name == normalised else name for name in node.input]
    (entry,) = part.graph.input
    entry.name = INPUT
    (answer,) = part.graph.output
    if static:
        for value in (entry, answer):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        # The recorded shapes still have a free batch size.
        del part.graph.value_info[:]
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(part))
        optimizer.fold_constants(inferred, input_size_limit=64)
        passes.RemoveUnusedNodesPass()(inferred)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(inferred)
        part = ir.to_proto(inferred)
    _pool_globally(part)
    part.producer_name, part.ir_version = "busi-tune", ir_version_of(opset_of(part))
    return part


def _pool_globally(model: onnx.ModelProto) -> None:
    """Replace means over height and width by GlobalAveragePool.

    Some runtimes ignore the axes of ReduceMean, which opset 18 made an input: OpenCV 4.8 takes the mean over all axes.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == "ReduceMean" and len(node.input) == 2):
        kept = all(entry.i == 1 for entry in node.attribute if entry.name == "keepdims")
        axes = numpy_helper.to_array(held[node.input[1]]) if node.input[1] in held else np.zeros(0)
        if kept and ranks.get(node.input[0]) == 4 and sorted(axes % 4) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    used = {name for node in model.graph.node for name in node.input}
    for name in held.keys() - used:
        model.graph.initializer.remove(held[name])
