"""SHA-256 of files, remembered within the process for files that have not changed; and the cache's folder."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from busi_tune import files
from busi_tune.errors import FileError

# A file system may give two changes within this time, in nanoseconds, the same time stamp.
COARSEST = 2_000_000_000


class State(NamedTuple):
    """Facts of a file that differ once its content does; times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/busi-tune`, by default `~/.cache/busi-tune`; safe to delete at any time.

    Raises:
        FileError: this user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "busi-tune"
    except RuntimeError:
        raise FileError(
            "This user has no home folder for the cache of decoded images; set XDG_CACHE_HOME to a folder."
        ) from None


_remembered: dict[Path, tuple[State, str]] = {}


def state(path: Path) -> State | None:
    """The state of a file; None for a missing one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def digest(path: Path) -> str:
    """The SHA-256 of a file; a file in the state of the last call is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    now = state(path)
    known, sha256 = _remembered.get(path.absolute(), (None, ""))
    return sha256 if now is not None and known == now else _remember(path, now, files.digest(path))


def content(path: Path) -> tuple[bytes, str]:
    """The content of a file and its SHA-256, which `digest` then knows.

    Raises:
        OSError: the file cannot be read.
    """
    before = state(path)
    data = path.read_bytes()
    return data, _remember(path, before, files.sha256_bytes(data))


def _remember(path: Path, before: State | None, sha256: str) -> str:
    """Remember the digest, unless a later change could leave the file in the state that it had `before`."""
    if before is not None and time.time_ns() - max(before.modified, before.changed) > COARSEST:
        _remembered[path.absolute()] = before, sha256
    return sha256
