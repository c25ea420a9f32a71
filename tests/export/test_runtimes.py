"""Exported models in ONNX's reference evaluator, and the properties that other runtimes need."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from busi_tune import pipeline, results
from busi_tune.export.network import NETWORK
from busi_tune.export_options import ExportOptions
from busi_tune.inference import Classifier
from busi_tune.inference.certificate import check_folder
from busi_tune.progress import Silent
from busi_tune.results import LabelsFile
from exported import Exported

pytest_plugins = ["exported"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["model.onnx", "model-32.onnx"])
def test_the_reference_evaluator_gives_the_same_answers(name: str, exported: Exported) -> None:
    classifier = Classifier(exported.folder / name)
    evaluator = ReferenceEvaluator(str(exported.folder / name))
    noise = np.random.default_rng(0)
    for height, width in ((32, 32), (45, 61)) if classifier.fixed_size is None else ((32, 32),):
        picture = noise.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        names = ["probabilities", "pixels", "guard"]
        expected = classifier.session.run(names, {"images": picture})
        found = evaluator.run(names, {"images": picture})
        assert isinstance(found, list)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-3, atol=1e-3)


def test_the_graph_asks_for_nothing_that_runtimes_lack(exported: Exported) -> None:
    model = onnx.load(exported.folder / "model.onnx")
    assert ([entry.version for entry in model.opset_import], model.ir_version) == ([18], 8)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    kinds = {value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.DOUBLE not in kinds
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Constant", "CumSum", "NonZero", "Loop", "If"}
    assert all(node.name for node in model.graph.node)
    for node in (node for node in model.graph.node if node.op_type == "Conv"):
        assert {"kernel_shape", "dilations", "strides", "pads"} <= {entry.name for entry in node.attribute}
    last = next(node for node in model.graph.node if node.op_type == "Gemm")
    (before,) = (node for node in model.graph.node if last.input[0] in node.output)
    assert before.op_type == "Flatten"


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["dynamic", "static"])
def test_the_bare_network(batch: str, exported: Exported, tmp_path: Path) -> None:
    options = ExportOptions.from_dict({"network_only": batch, "sensitivity": 0.9})
    certificate = pipeline.export(exported.run, tmp_path / "export", exported.data, Silent(), options=options)
    assert check_folder(tmp_path / "export") == certificate
    assert certificate["models"][NETWORK]["passed"]
    model = onnx.load(tmp_path / "export" / NETWORK)
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (axis.dim_param, axis.dim_value) == (("", 1) if batch == "static" else (axis.dim_param, 0))
    labels = results.read(tmp_path / "export" / "labels.json", LabelsFile)
    assert set(labels["models"]) == {"model.onnx", "model-32.onnx"}
    assert labels["models"]["model.onnx"]["threshold"] == certificate["operating_point"]["threshold"]
    assert labels["classes"] == ["benign", "malignant", "normal"]
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    mean, deviation = (np.array(labels[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
    given = ((picture.transpose(0, 3, 1, 2) / 255 - mean) / deviation).astype(np.float32)
    answers = ReferenceEvaluator(model).run(["logits"], {"input": given})
    assert isinstance(answers, list)
    expected = Classifier(tmp_path / "export" / "model.onnx").run(picture).logits
    np.testing.assert_allclose(answers[0], expected, atol=1e-4)
