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
from busi_tune.files import explained

STDIN = "-"
CHUNK = 65_536
# More than any system takes as a path.
LONGEST = 1_000_000


def image_paths(arguments: Sequence[str], lists: Sequence[Path] = (), *, nul: bool = False) -> Iterator[Path]:
    """The files that the arguments of a command name, then those in `lists`, in order, found as they are asked for.

    A folder stands for all images in it and below, sorted; a pattern for what it matches, sorted; `-` for the list on
    stdin. Masks are left out of folders and patterns by name. An argument that stands for no image is given as it is,
    so that it gets an error of its own. With `nul` the paths in a list end with a NUL, whatever is in them.

    Raises:
        FileError: the lists, where they are all that is given, are empty.
    """
    named = (path for argument in arguments for path in _found(argument, nul=nul))
    found = chain(named, (path for name in lists for path in _listed_in(name, nul=nul)))
    first = next(found, None)
    if first is None:
        where = lists[0] if lists else "stdin"
        raise FileError(f"The list on {where} names no file; give it the path of an image on each line.")
    return chain([first], found)


def _listed_in(path: Path, *, nul: bool) -> Iterator[Path]:
    with explained(path, "read"), path.open("rb") as file:
        yield from listed(file, str(path), nul=nul)


def _found(argument: str, *, nul: bool) -> Iterator[Path]:
    if argument == STDIN:
        yield from listed(cast("io.BufferedReader", sys.stdin.buffer), "stdin", nul=nul)
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


def listed(stream: io.BufferedReader, name: str, *, nul: bool) -> Iterator[Path]:
    """The paths in a list, one a line, or with a NUL after each as `find -print0` writes them; empty ones are left out.

    UTF-8 or bytes of any kind, and UTF-16 with its mark, which PowerShell writes. A NUL in the first 64 kB is enough
    for a list of the second kind; `nul` states it.

    Raises:
        FileError: what is in the stream is no list.
    """
    start = stream.read1(CHUNK)
    more = iter(lambda: stream.read1(CHUNK), b"")
    separator = b"\n"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = codecs.iterdecode(chain([start], more), "utf-16", errors="replace")
        chunks: Iterator[bytes] = map(os.fsencode, text)
    else:
        chunks = chain([start.removeprefix(codecs.BOM_UTF8)], more)
        separator = b"\0" if nul or b"\0" in start else separator
    rest = b""
    for chunk in chain(chunks, [separator]):
        *names, rest = (rest + chunk).split(separator)
        if len(rest) > LONGEST:
            raise FileError(
                f"The list on {name} has {LONGEST:,} bytes without a line end; give it a path on each line."
            )
        for part in names:
            # After a NUL nothing belongs to the end of a line.
            if path := part if separator == b"\0" else part.rstrip(b"\r"):
                yield Path(os.fsdecode(path))
