"""The image files that arguments name: files, folders, patterns, and a list on stdin; never all of them in memory."""

import codecs
import glob
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

from busi_tune import images
from busi_tune.errors import FileError

STDIN = "-"
CHUNK = 65_536
# More than any system takes as a path.
LONGEST = 1_000_000


def image_paths(arguments: Sequence[str]) -> Iterator[Path]:
    """The files that the arguments of a command name, in their order, found as they are asked for.

    A folder stands for all images in it and below, sorted; a pattern for what it matches, sorted; `-` for the list on
    stdin. Masks are left out of folders and patterns by name. An argument that stands for no image is given as it is,
    so that it gets an error of its own.

    Raises:
        FileError: the list on stdin, where it is all that is given, is empty.
    """
    found = (path for argument in arguments for path in _found(argument))
    first = next(found, None)
    if first is None:
        raise FileError("The list on stdin names no file; give it the path of an image on each line.")
    return chain([first], found)


def _found(argument: str) -> Iterator[Path]:
    if argument == STDIN:
        yield from listed_on_stdin()
        return
    found = _named(argument)
    yield next(found, Path(argument))
    yield from found


def _named(argument: str) -> Iterator[Path]:
    path = Path(argument)
    mode = mode_of(path)
    if stat.S_ISDIR(mode):
        yield from _unmasked(path)
    elif mode:
        yield path
    elif glob.has_magic(argument):
        # Sorted, because a system gives them in any order of its own; as text, because there may be very many.
        for name in sorted(glob.iglob(argument, recursive=True)):
            match = Path(name)
            if match.is_dir():
                # A pattern that goes down matches the files of the folder, too.
                yield from () if "**" in argument else _unmasked(match)
            elif not images.is_mask(match):
                yield match


def mode_of(path: Path) -> int:
    """The mode of a file as `stat` has it; 0 where there is none, or a folder above it may not be searched."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _unmasked(folder: Path) -> Iterator[Path]:
    # Pictures that are not read follow, each for its reason.
    foreign = (path for path in images.walk(folder, others=True) if images.is_foreign(path))
    return (path for path in chain(images.walk(folder), foreign) if not images.is_mask_in(folder, path))


def listed_on_stdin() -> Iterator[Path]:
    """The paths on stdin, one a line, or with a NUL after each as `find -print0` writes them; empty ones are left out.

    UTF-8 or bytes of any kind, and UTF-16 with its mark, which PowerShell writes.

    Raises:
        FileError: what is on stdin is no list.
    """
    stream = cast("io.BufferedIOBase", sys.stdin.buffer)
    start = stream.read1(CHUNK)
    more = iter(lambda: stream.read1(CHUNK), b"")
    separator = b"\n"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = codecs.iterdecode(chain([start], more), "utf-16", errors="replace")
        chunks: Iterator[bytes] = map(os.fsencode, text)
    else:
        chunks = chain([start.removeprefix(codecs.BOM_UTF8)], more)
        separator = b"\0" if b"\0" in start else separator
    rest = b""
    for chunk in chain(chunks, [separator]):
        *names, rest = (rest + chunk).split(separator)
        if len(rest) > LONGEST:
            raise FileError(f"The list on stdin has {LONGEST:,} bytes without a line end; give it a path on each line.")
        for name in names:
            # After a NUL nothing belongs to the end of a line.
            if path := name if separator == b"\0" else name.rstrip(b"\r"):
                yield Path(os.fsdecode(path))
