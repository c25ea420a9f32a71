"""Mutated images and models."""

import contextlib
import struct
import zlib
from collections.abc import Callable

import numpy as np
import onnx
from PIL import Image

from image_folders import encoded
from picture_files import png, tiff

Generator = np.random.Generator
EXTREMES = [-(2**63), -(2**31), -1, 0, 1, 2, 7, 65536, 2**31 - 1, 2**31, 2**40, 2**63 - 1]


def seeds() -> list[bytes]:
    """Images in all kinds of files, as a start for mutations."""
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 65536, (40, 50), dtype=np.uint16))
    words = generator.integers(0, 4096, (40, 50, 4), dtype=np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        encoded(colour, "PNG"),
        encoded(colour.convert("P"), "PNG", transparency=3),
        encoded(deep, "PNG"),
        encoded(colour, "JPEG"),
        encoded(colour, "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(40)),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour, "TIFF"),
        encoded(colour, "TIFF", compression="tiff_lzw"),
        encoded(colour, "TIFF", compression="jpeg"),
        encoded(colour.convert("1"), "TIFF", compression="group4"),
        encoded(deep, "TIFF", compression="tiff_deflate"),
        encoded(colour, "WEBP", lossless=True, exif=turned, save_all=True, append_images=[colour.rotate(90)]),
        encoded(colour, "PNG", exif=turned),
        png(words[:, :, :3], 2, more=[(b"sBIT", b"\x0c\x0c\x0c"), (b"tRNS", bytes(6))]),
        png(words[:, :, :2], 4),
        tiff(words, 2, t338=[1], t274=[6]),
        tiff(words[:, :, :1], 0, t281=[4095]),
    ]


def mutated(data: bytes, generator: Generator) -> bytes:
    """Makes one to four changes: bytes, extreme 32-bit numbers, and pieces removed, doubled or cut off at the end."""
    content = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        place = int(generator.integers(0, min(len(content), generator.choice([40, 400, 10**6]))))
        kind = generator.integers(0, 5)
        if kind == 0:
            content[place] = generator.integers(0, 256)
        elif kind == 1:
            content[place : place + 4] = int(generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65536])).to_bytes(4, "big")
        elif kind == 2:
            content[place : place + 4] = int(generator.choice([0, 1, 0x7FFFFFFF, 5000])).to_bytes(4, "little")
        elif kind == 3:
            content[place:place] = content[place : place + 30]
        elif len(content) > 60:
            del content[max(place, 30) :: int(generator.choice([1, len(content)]))]
    return repaired(bytes(content)) if generator.random() < 0.5 else bytes(content)


def repaired(data: bytes) -> bytes:
    """A PNG with corrected checksums of its chunks, so that decoders read their content."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    content, place = bytearray(data), 8
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, place)
        end = place + 8 + size
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(content)


def mutated_model(data: bytes, generator: Generator) -> bytes:
    """A model with one to three changes: in its bytes, or in its nodes, tensors and metadata."""
    if generator.random() < 0.4:
        return mutated_bytes(data, generator)
    model = onnx.load_from_string(data)
    for _ in range(generator.integers(1, 4)):
        change = CHANGES[generator.integers(0, len(CHANGES))]
        with contextlib.suppress(ValueError, IndexError):
            change(model, generator)
    return bytes(model.SerializeToString())


def mutated_bytes(data: bytes, generator: Generator) -> bytes:
    """Changes, doubles or removes bytes; large weights are mostly spared, because changes there are harmless."""
    large = [t.raw_data for t in onnx.load_from_string(data).graph.initializer if len(t.raw_data) > 1000]
    weights = [(data.find(raw), data.find(raw) + len(raw)) for raw in large]
    content = bytearray(data)
    for _ in range(generator.integers(1, 4)):
        place = int(generator.integers(0, len(data)))
        while any(first <= place < last for first, last in weights) and generator.random() < 0.95:
            place = int(generator.integers(0, len(data)))
        kind = generator.integers(0, 4)
        if kind == 0:
            content[place : place + 1] = bytes([generator.integers(0, 256)])
        elif kind == 1:
            content[place : place + 1] = bytes(
                [content[min(place, len(content) - 1)] ^ (1 << generator.integers(0, 8))]
            )
        elif kind == 2:
            content[place:place] = content[place : place + int(generator.integers(1, 200))]
        else:
            del content[place : place + int(generator.choice([1, 2, 30, 10**9]))]
    return bytes(content)


def _node(model: onnx.ModelProto, generator: Generator) -> onnx.NodeProto:
    node: onnx.NodeProto = model.graph.node[int(generator.integers(0, len(model.graph.node)))]
    return node


def _value(model: onnx.ModelProto, generator: Generator) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return str(generator.choice([*names, "", "nowhere"]))


def other_operator(model: onnx.ModelProto, generator: Generator) -> None:
    """Changes the operator of a node."""
    _node(model, generator).op_type = str(generator.choice(OPERATORS))


def other_edge(model: onnx.ModelProto, generator: Generator) -> None:
    """Renames an input or output of a node, which may create a cycle."""
    node = _node(model, generator)
    names = node.input if generator.random() < 0.7 else node.output
    names[int(generator.integers(0, len(names)))] = _value(model, generator)


def other_attribute(model: onnx.ModelProto, generator: Generator) -> None:
    """Removes an attribute, or changes its type, its number of values, or its values to extreme ones."""
    nodes = [node for node in model.graph.node if node.attribute]
    node = nodes[int(generator.integers(0, len(nodes)))]
    attribute = node.attribute[int(generator.integers(0, len(node.attribute)))]
    extreme = int(generator.choice(EXTREMES))
    kind = generator.integers(0, 4)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.type = int(generator.integers(0, 15))
    elif attribute.ints:
        attribute.ints[int(generator.integers(0, len(attribute.ints)))] = extreme
        attribute.ints.extend([extreme] * int(generator.integers(0, 3)))
    else:
        attribute.i, attribute.f = extreme, float(generator.choice([np.nan, np.inf, -1, 0, 1e30]))


def other_tensor(model: onnx.ModelProto, generator: Generator) -> None:
    """Changes the shape, the type or the data of a tensor."""
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    tensor = tensors[int(generator.integers(0, len(tensors)))]
    kind = generator.integers(0, 4)
    if kind == 0:
        tensor.data_type = int(generator.integers(0, 26))
    elif kind == 1:
        tensor.dims.append(int(generator.choice(EXTREMES)))
    elif kind == 2 and tensor.dims:
        tensor.dims[int(generator.integers(0, len(tensor.dims)))] = int(generator.choice(EXTREMES))
    elif tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data:
        count = len(tensor.raw_data) // 8
        tensor.raw_data = generator.choice(EXTREMES, count).astype("<i8").tobytes()
    else:
        tensor.raw_data = tensor.raw_data[: int(generator.integers(0, len(tensor.raw_data) + 1))]


def other_nodes(model: onnx.ModelProto, generator: Generator) -> None:
    """Removes, doubles or moves a node."""
    node, kind = _node(model, generator), generator.integers(0, 3)
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    if kind != 1:
        model.graph.node.remove(node)
    if kind != 0:
        model.graph.node.insert(int(generator.integers(0, len(model.graph.node) + 1)), copy)


def other_metadata(model: onnx.ModelProto, generator: Generator) -> None:
    """Changes a metadata entry: its value is cut or changed, or its key replaced."""
    props = model.metadata_props
    entry = props[int(generator.integers(0, len(props)))]
    place = int(generator.integers(0, max(1, len(entry.value))))
    odd = str(generator.choice(["", "[", "9" * 5000, "NaN", "-1", "null", '"', "\x1b[2J", "[" * 5000, "é\u202e"]))
    entry.value = entry.value[:place] + odd + entry.value[place + int(generator.integers(0, 3)) :]
    if generator.random() < 0.2:
        entry.key = str(generator.choice(["classes", "guard", "image_size", "", "ort_config"]))


def other_signature(model: onnx.ModelProto, generator: Generator) -> None:
    """Changes the type, shape or name of an input or output, or the version of the file."""
    values = [*model.graph.input, *model.graph.output]
    value = values[int(generator.integers(0, len(values)))]
    kind = generator.integers(0, 5)
    if kind == 0:
        value.type.tensor_type.elem_type = int(generator.integers(0, 26))
    elif kind == 1:
        dims = value.type.tensor_type.shape.dim
        dims[int(generator.integers(0, len(dims)))].dim_value = int(generator.choice(EXTREMES))
    elif kind == 2:
        value.name = _value(model, generator)
    elif kind == 3:
        model.opset_import[0].version = int(generator.choice([*range(1, 30), 2**31, 2**62]))
    else:
        model.ir_version = int(generator.choice([*range(15), 2**31, 2**62]))


OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
CHANGES: list[Callable[[onnx.ModelProto, Generator], None]] = [
    other_operator,
    other_edge,
    other_attribute,
    other_tensor,
    other_nodes,
    other_metadata,
    other_signature,
]
