"""PNG and TIFF files that Pillow cannot write: 16-bit, packed, inverted, and with any chunk or tag."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SHORT, LONG = 3, 4


def png(values: NDArray[Any], colour_type: int, depth: int = 16, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG of values (height, width, channels) of up to 16 bits; `more` are chunks before the pixels."""
    height, width = values.shape[:2]
    kind = ">u2" if depth == 16 else "u1"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in values)
    if depth < 8:
        rows = b"".join(b"\0" + pack(row, depth) for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def pack(row: NDArray[Any], depth: int) -> bytes:
    """The values of a row, packed with `depth` bits each."""
    bits = (row.ravel()[:, None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def tiff(
    values: NDArray[Any], photometric: int, order: Literal["<", ">"] = "<", packed: int = 0, **tags: Sequence[int]
) -> bytes:
    """An uncompressed TIFF of values (height, width, channels); `packed` is the number of bits of a packed value."""
    height, width, channels = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if packed:
        data = b"".join(pack(row, packed) for row in values)
    numbers = {
        "t256": [width],
        "t257": [height],
        "t258": [packed or values.dtype.itemsize * 8] * channels,
        "t259": [1],
        "t262": [photometric],
        "t273": [8],
        "t277": [channels],
        "t278": [height],
        "t279": [len(data)],
    } | {name: list(found) for name, found in tags.items()}
    end = 8 + len(data)
    entries, spare = b"", b""
    place = end + 2 + 12 * len(numbers) + 4
    for name, found in sorted(numbers.items(), key=lambda item: int(item[0][1:])):
        kind = LONG if name in {"t273", "t279"} else SHORT
        content = struct.pack(f"{order}{len(found)}{'I' if kind == LONG else 'H'}", *found)
        if len(content) > 4:
            spare, content = spare + content, struct.pack(f"{order}I", place + len(spare))
        entries += struct.pack(f"{order}HHI", int(name[1:]), kind, len(found)) + content.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(f"{order}HI", 42, end)
    return start + data + struct.pack(f"{order}H", len(numbers)) + entries + bytes(4) + spare
