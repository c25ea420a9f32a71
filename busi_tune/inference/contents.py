"""The parts of a model file that a certificate covers: its graph, its tensors and its metadata, read from the bytes.

Reading them needs neither onnx nor a session of ONNX Runtime, so every installation can compare them. The field numbers
are those of onnx.proto.
"""

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from busi_tune.inference.structure import Field, MalformedError, fields, mapped

GRAPH, METADATA = 7, 14
TENSOR = 5
KEY, VALUE = 1, 2
# The metadata entry that holds the certificate, which cannot cover itself.
CERTIFICATE = "certificate"


@dataclass(frozen=True)
class Contents:
    """The SHA-256 of a model's tensors, the SHA-256 of all else except its certificate, and its metadata."""

    weights_sha256: str
    graph_sha256: str
    metadata: dict[str, str]


def read_contents(model: Path) -> Contents:
    """The contents of a model file.

    Raises:
        FileError: the file cannot be read, or is not ONNX.
    """
    with mapped(model) as data, memoryview(data) as view:
        return _gathered(data, view)


def _gathered(data: mmap.mmap, view: memoryview) -> Contents:
    tensors: list[str] = []
    metadata: dict[str, str] = {}
    graph = hashlib.sha256()
    for kind, (number, wire, (first, last)) in _parts(data):
        with view[first:last] as part:
            if (kind, number) == ("graph", TENSOR):
                tensors.append(hashlib.sha256(part).hexdigest())
                continue
            key, value = _entry(bytes(part)) if (kind, number) == ("model", METADATA) else ("", "")
            metadata |= {key: value} if key else {}
            if key != CERTIFICATE:
                graph.update(f"{kind} {number} {wire} {last - first}\n".encode() + part)
    weights = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()
    return Contents(weights, graph.hexdigest(), metadata)


def _parts(data: mmap.mmap) -> Iterator[tuple[str, Field]]:
    """The fields of the model, with the fields of the graph in place of the graph."""
    for field in fields(data, 0, len(data)):
        if field[0] == GRAPH:
            yield from (("graph", inner) for inner in fields(data, *field[2]))
        else:
            yield "model", field


def _entry(data: bytes) -> tuple[str, str]:
    """The key and the value of a metadata entry."""
    texts = {number: data[first:last] for number, _, (first, last) in fields(data, 0, len(data))}
    try:
        return texts.get(KEY, b"").decode(), texts.get(VALUE, b"").decode()
    except UnicodeDecodeError:
        raise MalformedError("metadata that are not text") from None
