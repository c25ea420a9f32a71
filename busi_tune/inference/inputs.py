"""The image files that arguments name: files, folders, patterns, or a list on stdin. They are found one at a time."""

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
# Longer than a path can be on any system.
LONGEST = 1_000_000


def image_paths(arguments: Sequence[str], lists: Sequence[Path] = (), *, nul: bool = False) -> Iterator[Path]:
    """The files that the arguments of a command name, then those in `lists`, in order. They are found on demand.

    A folder means all images in it and its subfolders, sorted. A pattern means its matches, sorted. `-` means the list
    on stdin. Files that are masks by name are left out of folders and patterns. An argument without images is returned
    unchanged, so that it gets its own error. With `nul`, each path in a list ends with a NUL.

    Raises:
        FileError: there are only lists, and they are empty.
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
        # Sorted, because systems return matches in any order. Text takes less memory if there are very many.
        for name in sorted(glob.iglob(argument, recursive=True)):
            match = Path(name)
            if match.is_dir():
                # A pattern with ** matches the files of the folder as well.
                yield from () if "**" in argument else _unmasked(match)
            elif not images.is_mask(match):
                yield match


def mode_of(path: Path) -> int:
    """The mode of a file from `stat`; 0 if the file does not exist, or if its folder may not be searched."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _unmasked(folder: Path) -> Iterator[Path]:
    # Pictures of other formats follow, so that each gets an error with its reason.
    foreign = (path for path in images.walk(folder, others=True) if images.is_foreign(path))
    return (path for path in chain(images.walk(folder), foreign) if not images.is_mask_in(folder, path))


def listed(stream: io.BufferedReader, name: str, *, nul: bool) -> Iterator[Path]:
    """The paths in a list: one on each line, or each with a NUL after it, as `find -print0` writes them.

    Empty paths are left out. The list is in UTF-8, in any other bytes, or in UTF-16 with a byte order mark, as
    PowerShell writes it. Paths end with a NUL if `nul` is true, or except in UTF-16 if the first 64 kB have a NUL.

    Raises:
        FileError: the content of the stream is not a list of paths.
    """
    start = stream.read1(CHUNK)
    more = iter(lambda: stream.read1(CHUNK), b"")
    separator = b"\0" if nul else b"\n"
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
            raise FileError(
                f"The list on {name} has {LONGEST:,} bytes without a line end; give it a path on each line."
            )
        for part in names:
            # If paths end with a NUL, a carriage return belongs to the path.
            if path := part if separator == b"\0" else part.rstrip(b"\r"):
                yield Path(os.fsdecode(path))
