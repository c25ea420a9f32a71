"""A tiny model in the form of an export, made without PyTorch: a convolution, a mean and a linear layer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from busi_tune.errors import FileError
from busi_tune.files import sha256
from busi_tune.inference.contents import read_contents
from busi_tune.results import SCHEMAS, VerificationFile, write

CLASSES = ["benign", "malignant", "normal"]
SIZE = 16
POINT = {"class": "malignant", "threshold": 0.3, "sensitivity": 0.95}
GUARD = [
    {"name": "colour", "limit": 20.0, "warning": "colour where the training data is grey"},
    {"name": "brightness", "limit": 250.0, "warning": "brighter than the training data"},
]
FACTS = {
    "classes": json.dumps(CLASSES),
    "image_size": str(SIZE),
    "preprocessing_version": "1",
    "operating_point": json.dumps(POINT),
    "guard": json.dumps(GUARD),
}


def small_model(
    facts: dict[str, str] | None = None, *, side: int | None = None, seed: int = 0, maps: bool = False
) -> onnx.ModelProto:
    """A model for images of any size, or with `side` for resized images of that size; `maps` adds the output `cam`."""
    generator = np.random.default_rng(seed)

    def tensor(name: str, value: Any, kind: Any = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype=kind), name)

    node = helper.make_node
    nodes = [
        node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        node("Resize", ["floats", "", "", "size"], ["wide"], axes=[2, 3], mode="linear"),
        node("Clip", ["wide", "zero", "top"], ["clipped"]),
        node("Cast", ["clipped"], ["pixels"], to=TensorProto.UINT8),
        node("Cast", ["pixels"], ["seen"], to=TensorProto.FLOAT),
        node("Div", ["seen", "top"], ["scaled"]),
        node("Conv", ["scaled", "conv.weight", "conv.bias"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["maps"], ["active"]),
        node("ReduceMean", ["active", "axes"], ["features"], keepdims=0),
        node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
        node("ReduceMax", ["seen", "channel"], ["high"]),
        node("ReduceMin", ["seen", "channel"], ["low"]),
        node("Sub", ["high", "low"], ["spread"]),
        node("ReduceMean", ["spread", "places"], ["colour"], keepdims=0),
        node("ReduceMean", ["seen", "places"], ["bright"], keepdims=0),
        node("ReduceMean", ["bright", "channel"], ["brightness"]),
        node("Concat", ["colour", "brightness"], ["guard"], axis=1),
    ]
    weights = [
        tensor("conv.weight", generator.normal(size=(4, 3, 3, 3))),
        tensor("conv.bias", generator.normal(size=4)),
        tensor("fc.weight", generator.normal(size=(3, 4)) * 2),
        tensor("fc.bias", np.zeros(3)),
        tensor("size", [SIZE, SIZE], np.int64),
        tensor("zero", 0),
        tensor("top", 255),
        tensor("axes", [2, 3], np.int64),
        tensor("places", [2, 3], np.int64),
        tensor("channel", [1], np.int64),
    ]
    if maps:
        nodes += [
            node("Transpose", ["active"], ["cells"], perm=[0, 2, 3, 1]),
            node("Transpose", ["fc.weight"], ["turned"], perm=[1, 0]),
            node("MatMul", ["cells", "turned"], ["added"]),
            node("Transpose", ["added"], ["cam"], perm=[0, 3, 1, 2]),
        ]
    shape: list[int | str] = ["batch", side or "height", side or "width", 3]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("logits", "probabilities")]
    outputs.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, SIZE, SIZE]))
    outputs.append(helper.make_tensor_value_info("guard", TensorProto.FLOAT, ["batch", 2]))
    if maps:
        cells: list[int | str] = ["batch", 3, SIZE // 2, SIZE // 2]
        outputs.append(helper.make_tensor_value_info("cam", TensorProto.FLOAT, cells))
    entry = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    graph = helper.make_graph(nodes, "export", [entry], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, FACTS if facts is None else facts)
    onnx.checker.check_model(model, full_check=True)
    return model


def without(*names: str) -> dict[str, str]:
    """The metadata without these entries."""
    return {name: value for name, value in FACTS.items() if name not in names}


SUMMARY = {
    "accuracy": 1.0,
    "macro_precision": 1.0,
    "macro_recall": 1.0,
    "macro_f1": 1.0,
    "balanced_accuracy": 1.0,
    "matthews_correlation": 1.0,
    "macro_roc_auc": 1.0,
    "macro_average_precision": 1.0,
    "log_loss": 0.0,
    "brier": 0.0,
    "calibration_error": 0.0,
    "per_class": {
        name: dict.fromkeys(("precision", "recall", "f1", "roc_auc", "average_precision"), 1.0) | {"images": 1}
        for name in CLASSES
    },
    "images": 3,
    "confusion_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "groups": 3,
    "intervals": {},
    "without_interval": {},
}
PERFECT = {"brier": 0.0, "log_loss": 0.0, "calibration_error": 0.0}
CALIBRATION = {"before": PERFECT, "after": PERFECT}
# Equal in all models of an export.
COMMON: dict[str, Any] = {
    "source_sha256": "5" * 64,
    "options": {"int8": False, "float16": False, "max_drop": 0.01, "sensitivity": 0.95},
    "split": "a" * 64,
    "test_images_sha256": "b" * 64,
    # The hash of the empty list.
    "seen_images_sha256": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
    "predictions_sha256": "c" * 64,
    "probe_logits": [[0.0, 1.0, 2.0]],
    "test": SUMMARY,
    "temperature": 1.0,
    "calibration": {"validation": CALIBRATION, "test": CALIBRATION},
    "guard": {"scores": [entry | {"false_alarms": 0.01} for entry in GUARD], "test": {}},
    "versions": {},
    "machine": {},
    "warnings": [],
}
ENTRY: dict[str, Any] = {
    "passed": True,
    "reasons": [],
    "images": 3,
    "max_error": 1e-6,
    "tolerance": 1e-5,
    "answers_changed": 0,
}


def write_export(folder: Path, models: Mapping[str, onnx.ModelProto | bytes], failed: Sequence[str] = ()) -> Path:
    """Writes an export folder: these models with inner certificates, predictions.csv and verification.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.csv").write_text("path,class\na.png,benign\nb.png,normal\n")
    common = COMMON | {"predictions_sha256": sha256(folder / "predictions.csv")}
    entries = {}
    for name, model in models.items():
        path = folder / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        entry = ENTRY | {"passed": name not in failed} | parts(path)
        if isinstance(model, onnx.ModelProto):
            model.metadata_props.add(key="certificate", value=json.dumps(common | entry))
            path.write_bytes(model.SerializeToString())
        entries[name] = entry | {"model_sha256": sha256(path), "bytes": path.stat().st_size}
    top = {name: next(iter(entries.values()))[name] for name in (*ENTRY, "model_sha256")}
    document = {"schema": SCHEMAS[VerificationFile], **top, **common, "models": entries}
    write(folder / "verification.json", document | {"files": {"predictions.csv": common["predictions_sha256"]}})
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the content of verification.json and renews its SHA-256, as a forger would."""
    path = folder / "verification.json"
    content: dict[str, Any] = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    # The file may be a hard link to the file of another export.
    path.unlink()
    write(path, content)


def parts(model: Path) -> dict[str, str]:
    """The hashes of a model's parts; empty for a file that is not ONNX."""
    try:
        contents = read_contents(model)
    except FileError:
        return {"graph_sha256": "", "weights_sha256": ""}
    return {"graph_sha256": contents.graph_sha256, "weights_sha256": contents.weights_sha256}
