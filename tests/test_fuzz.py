"""2,000 mutated files through `images`: an image or a reason, within 2 s and 500 MB each, and no crash."""

import multiprocessing
import resource
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from busi_tune import images
from busi_tune.errors import ImageError
from conftest import encoded

FILES = 2000
MOST_SECONDS = 2
MOST_BYTES = 500_000_000


def seeds() -> list[bytes]:
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 65536, (40, 50), dtype=np.uint16))
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
    ]


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """One to four changes: bytes, 32-bit numbers at a border, pieces cut out or doubled, the end cut off."""
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
    return mended(bytes(content)) if generator.random() < 0.5 else bytes(content)


def mended(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, so that what is inside them is reached."""
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


class TooLong(BaseException):
    """Nothing in between can take it for an unreadable image."""


def too_long(*_: object) -> NoReturn:
    raise TooLong(f"more than {MOST_SECONDS} s")


def as_an_audit_reads(path: Path, size: int) -> images.Pixels:
    return images.resized(images.inspect(path.read_bytes())[1], size)


def read_all(folder: str, results: "Queue[tuple[int, int, list[str]]]") -> None:
    """In a process of its own: how many were read, how many refused, and what else happened."""
    read, refused, odd = 0, 0, []
    signal.signal(signal.SIGPROF, too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    originals, generator, path = seeds(), np.random.default_rng(1), Path(folder, "image.png")
    for number in range(FILES):
        path.write_bytes(mutated(originals[number % len(originals)], generator))
        answers: list[bytes | str] = []
        for way in (images.read, as_an_audit_reads):
            # Processor time, so that a busy machine cannot fail the test.
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                answers.append(way(path, 64).tobytes())
            except ImageError as error:
                answers.append(str(error))
            except (Exception, TooLong) as error:  # noqa: BLE001 - whatever else comes out is what the test looks for
                odd.append(f"{number}: {error!r}")
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(set(answers)) > 1:
            odd.append(f"{number}: an audit reads it otherwise")
        first = next(iter(answers), None)
        read += isinstance(first, bytes) and len(first) == 64 * 64 * 3
        refused += isinstance(first, str) and bool(first.strip())
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    if grown > MOST_BYTES:
        odd.append(f"{grown} bytes more at the peak")
    results.put((read, refused, odd))


def in_a_process(work: Callable[..., None], *arguments: object) -> Any:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    return results.get(timeout=10)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    read, refused, odd = in_a_process(read_all, str(tmp_path))
    assert odd == []
    assert read + refused == FILES
    assert min(read, refused) > FILES / 10


def test_the_unchanged_files_are_read(tmp_path: Path) -> None:
    for number, data in enumerate(seeds()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        assert images.read(path, 16).shape == (16, 16, 3)
