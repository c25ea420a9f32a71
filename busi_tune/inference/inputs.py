"""The image files that arguments name: files, folders, patterns, and a list on stdin; never all of them in memory."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from busi_tune import images
from busi_tune.errors import FileError
from busi_tune.names import is_mask_folder

STDIN = "-"


def image_paths(arguments: Sequence[str]) -> Iterator[Path]:
    """The files that the arguments of a command name, in their order; checked first, found as they are asked for.

    A folder stands for all images in it and below, sorted; a pattern for what it matches, sorted; `-` for the paths on
    stdin, one a line. Masks are left out of folders and patterns by name.

    Raises:
        FileError: an argument does not exist, or stands for no image; the list on stdin is empty.
    """
    for argument in arguments:
        if argument != STDIN and next(_found(argument), None) is None:
            raise FileError(_reason(argument))
    found = (path for argument in arguments for path in _found(argument))
    first = next(found, None)
    if first is None:
        raise FileError("The list on stdin names no file; give it the path of an image on each line.")
    return chain([first], found)


def _found(argument: str) -> Iterator[Path]:
    path = Path(argument)
    if argument == STDIN:
        yield from listed_on_stdin()
    elif path.is_dir():
        yield from _unmasked(path)
    elif path.exists():
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


def _unmasked(folder: Path) -> Iterator[Path]:
    # Pictures that are not read follow, each for its reason.
    foreign = (path for path in images.walk(folder, others=True) if images.is_foreign(path))
    for path in chain(images.walk(folder), foreign):
        inside = path.relative_to(folder).parts[:-1]
        if not images.is_mask(path) and not any(map(is_mask_folder, inside)):
            yield path


def listed_on_stdin() -> Iterator[Path]:
    """The paths on stdin, one a line; empty lines are left out."""
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield Path(os.fsdecode(name))


def _reason(argument: str) -> str:
    if Path(argument).is_dir():
        return f"{argument} holds no image ({', '.join(sorted(images.SUFFIXES))}); name another folder."
    if glob.has_magic(argument):
        return f"{argument} matches no image; name image files, folders of them, or a pattern that matches some."
    return f"{argument} does not exist; name image files or folders of them."
