"""The check of an ONNX file's bytes before ONNX Runtime opens it: it finds all that onnx's parser finds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from busi_tune.errors import FileError
from busi_tune.inference import structure
from small_export import small_model

EXTERNAL = "a tensor in another file"


def external_initializer(model: onnx.ModelProto) -> None:
    """Weights in an external file."""
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def location_alone(model: onnx.ModelProto) -> None:
    """A tensor marked as external, without the entries for its location."""
    model.graph.initializer[3].data_location = TensorProto.EXTERNAL


def entries_alone(model: onnx.ModelProto) -> None:
    """Entries for an external location, without the mark."""
    model.graph.initializer[3].external_data.add(key="location", value="weights.bin")


def constant() -> TensorProto:
    """A tensor with external data."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "elsewhere")
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def external_attribute(model: onnx.ModelProto) -> None:
    """A constant with external data."""
    model.graph.node.add().CopyFrom(helper.make_node("Constant", [], ["c"], value=constant()))


def external_attributes(model: onnx.ModelProto) -> None:
    """An attribute with several tensors, one of them external."""
    attribute = model.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.extend([numpy_helper.from_array(np.zeros(1)), constant()])


def external_sparse(model: onnx.ModelProto) -> None:
    """A sparse tensor with external values."""
    model.graph.sparse_initializer.add().values.CopyFrom(constant())


def external_sparse_attribute(model: onnx.ModelProto) -> None:
    """A sparse attribute with external indices."""
    model.graph.node[0].attribute.add(name="sparse").sparse_tensor.indices.CopyFrom(constant())


def foreign_operator(model: onnx.ModelProto) -> None:
    """An operator that only ONNX Runtime defines."""
    model.graph.node[5].domain = "com.microsoft"


def foreign_opset(model: onnx.ModelProto) -> None:
    """An import of an operator set that no operator needs."""
    model.opset_import.add(domain="ai.onnx.ml", version=3)


def function(model: onnx.ModelProto) -> None:
    """A function in the file."""
    model.functions.add(name="f", domain="")


def inner_graph(model: onnx.ModelProto) -> None:
    """An inner graph, as in a loop, which may never end."""
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "inner"


def inner_graphs(model: onnx.ModelProto) -> None:
    """An attribute with several inner graphs."""
    model.graph.node[0].attribute.add(name="bodies").graphs.add(name="inner")


def training(model: onnx.ModelProto) -> None:
    """Training information in the file."""
    model.training_info.add()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_initializer, EXTERNAL),
        (location_alone, EXTERNAL),
        (entries_alone, EXTERNAL),
        (external_attribute, EXTERNAL),
        (external_attributes, EXTERNAL),
        (external_sparse, EXTERNAL),
        (external_sparse_attribute, EXTERNAL),
        (foreign_operator, "an operator of the domain 'com.microsoft'"),
        (foreign_opset, "an opset import of the domain 'ai.onnx.ml'"),
        (function, "functions of its own"),
        (inner_graph, "a graph inside an operator"),
        (inner_graphs, "graphs inside an operator"),
        (training, "a training graph"),
    ],
)
def test_what_is_never_loaded(change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path) -> None:
    model = small_model()
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileError) as refusal:
        structure.check_structure(path)
    assert f"{path} holds {words}, which is never loaded" in str(refusal.value)


def test_an_export_is_fit(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    structure.check_structure(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\x3a", "does not end at byte 1"),
        (b"\x3a\x05abc", "does not fit at byte 2"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "does not fit"),
        (b"\x80" * 11, "a number that does not end"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x00\x01", "does not fit"),
        (b"\x09" + b"1234", "does not fit"),
        (b"GIF89a", "wire type 7"),
    ],
)
def test_what_is_no_onnx(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(FileError, match=words):
        structure.check_structure(path)


def test_a_file_of_tiny_fields_does_not_keep_us_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x01" * 2000)
    structure.check_structure(path)
    monkeypatch.setattr(structure, "MOST_FIELDS", 1999)
    with pytest.raises(FileError, match="more than 1,999 fields"):
        structure.check_structure(path)


def unfit(model: onnx.ModelProto) -> bool:
    """Whether onnx's parser finds any of the parts that `structure` refuses."""
    tensors = [*model.graph.initializer]
    sparse = [*model.graph.sparse_initializer]
    graphs = False
    for node in model.graph.node:
        for attribute in node.attribute:
            tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            sparse += [*attribute.sparse_tensors, attribute.sparse_tensor]
            graphs = graphs or attribute.HasField("g") or bool(attribute.graphs)
    tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    domains = {node.domain for node in model.graph.node} | {entry.domain for entry in model.opset_import}
    return (
        graphs
        or not domains <= {"", "ai.onnx"}
        or any(tensor.external_data or tensor.data_location for tensor in tensors)
        or bool(model.functions or model.training_info)
    )


def test_mutated_files_never_pass_with_what_onnx_finds_in_them(tmp_path: Path) -> None:
    model = small_model()
    original = bytearray(model.SerializeToString())
    generator, path = np.random.default_rng(0), tmp_path / "model.onnx"
    passed = found = 0
    for _ in range(3000):
        data = original.copy()
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.choice([generator.integers(0, 256), data[place] ^ 1, 0x6A, 0x70, 0x1A, 0x3A])
        path.write_bytes(data)
        try:
            structure.check_structure(path)
        except FileError:
            found += 1
            continue
        passed += 1
        try:
            parsed = onnx.load_from_string(bytes(data))
        except Exception:  # noqa: BLE001, S112 - whatever onnx cannot parse, ONNX Runtime cannot either
            continue
        assert not unfit(parsed)
    assert min(passed, found) > 100
