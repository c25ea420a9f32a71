"""The check of an ONNX file's bytes for forbidden content, before ONNX Runtime opens the file.

The check skips the data of the tensors, so that 100 MB take milliseconds and no memory. Sources: the encoding of
Protocol Buffers (protobuf.dev/programming-guides/encoding) and the field numbers of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busi_tune import files
from busi_tune.errors import FileError

# For each kind of message, the numbers of the fields that hold other messages, and the kinds of these messages.
INSIDE = {
    "model": {7: "graph", 8: "opset import"},
    "graph": {1: "operator", 5: "tensor", 15: "sparse tensor"},
    "operator": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "opset import": {},
    "tensor": {},
}
REFUSED = {
    ("model", 20): "a training graph",
    ("model", 25): "functions of its own",
    ("attribute", 6): "a graph inside an operator",
    ("attribute", 11): "graphs inside an operator",
    ("tensor", 13): "a tensor in another file",
}
DATA_LOCATION = ("tensor", 14)
DOMAINS = {("operator", 7), ("opset import", 1)}
# A file that has only tiny fields would take minutes to check. ResNet50 has 11,000 fields.
MOST_FIELDS = 1_000_000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# The number, the wire type, and the start and end offsets of the value.
Field = tuple[int, int, tuple[int, int]]


class MalformedError(Exception):
    """Bytes that are not Protocol Buffers. The message names the problem."""


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map the bytes of an ONNX file without reading them into memory.

    Raises:
        FileError: the file cannot be read or is empty, or the block raises a MalformedError.
    """
    with files.explained(path, "read"), path.open("rb") as file:
        # An empty file cannot be mapped.
        if not file.read(1):
            raise FileError(f"{path} is empty; name a model that busi-tune exported.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                yield data
            except MalformedError as error:
                raise FileError(
                    f"{path} is not an ONNX file ({error}); name a model that busi-tune exported."
                ) from None


def check_structure(path: Path) -> None:
    """Refuse an ONNX file that needs other files, or operators that ONNX itself does not define.

    Raises:
        FileError: the file is not ONNX, or holds external data, operators of another domain, functions or inner graphs.
    """
    with mapped(path) as data:
        found = next(_refused(data), None)
    if found is not None:
        raise FileError(
            f"{path} holds {found}, which is never loaded; a model must be one file with ONNX's own operators: export "
            "it again."
        )


def _refused(data: mmap.mmap) -> Iterator[str]:
    """A description of each refused part of the model."""
    left = MOST_FIELDS
    messages = [("model", 0, len(data))]
    while messages:
        kind, start, end = messages.pop()
        for number, wire, (first, last) in fields(data, start, end):
            left -= 1
            if left < 0:
                raise MalformedError(f"more than {MOST_FIELDS:,} fields")
            if (kind, number) in REFUSED:
                yield REFUSED[kind, number]
            elif (kind, number) == DATA_LOCATION and _varint(data, first, last)[0] != 0:
                yield REFUSED["tensor", 13]
            elif wire == BYTES and (kind, number) in DOMAINS and data[first:last] not in {b"", b"ai.onnx"}:
                name = data[first : min(last, first + 60)].decode("ascii", "backslashreplace")
                yield f"an {kind} of the domain {name!r}"
            elif wire == BYTES and number in INSIDE[kind]:
                messages.append((INSIDE[kind][number], first, last))


def fields(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[Field]:
    """The number, the wire type and the offsets of the value of each field of a message."""
    while start < end:
        key, start = _varint(data, start, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            last = _varint(data, start, end)[1]
        elif wire == BYTES:
            size, start = _varint(data, start, end)
            last = start + size
        elif wire in {FIXED64, FIXED32}:
            last = start + (8 if wire == FIXED64 else 4)
        else:
            raise MalformedError(f"wire type {wire} at byte {start}")
        if number == 0 or last > end:
            raise MalformedError(f"a field that does not fit at byte {start}")
        yield number, wire, (start, last)
        start = last


def _varint(data: mmap.mmap | bytes, start: int, end: int) -> tuple[int, int]:
    """Decode a number of up to ten bytes, with seven bits in each. Returns the number and the offset after it."""
    value = 0
    for place in range(start, min(end, start + 10)):
        value |= (data[place] & 0x7F) << 7 * (place - start)
        if data[place] < 0x80:
            return value, place + 1
    raise MalformedError(f"a number that does not end at byte {start}")
