"""SHA-256 of files, remembered within the process while a file does not change, and the folder of the cache."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from busi_tune import files
from busi_tune.errors import FileError

# A file system may give two changes within this time, in nanoseconds, the same time stamp.
COARSEST = 2_000_000_000


class State(NamedTuple):
    """Facts of a file that change when its content changes. Times are in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def cache_folder() -> Path:
    """The cache folder: `$XDG_CACHE_HOME/busi-tune`, by default `~/.cache/busi-tune`. It can be deleted at any time.

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
    """The state of a file; None if the file is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def digest(path: Path) -> str:
    """The SHA-256 of a file. A file whose state has not changed since the last call is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    now = state(path)
    known, sha256 = _remembered.get(path.absolute(), (None, ""))
    return sha256 if now is not None and known == now else _remember(path, now, files.digest(path))


def content(path: Path) -> tuple[bytes, str]:
    """The content of a file and its SHA-256, which is remembered for `digest`.

    Raises:
        OSError: the file cannot be read.
    """
    before = state(path)
    data = path.read_bytes()
    return data, _remember(path, before, files.sha256_bytes(data))


def _remember(path: Path, before: State | None, sha256: str) -> str:
    """Remember the digest, unless the file changed just now: another change could leave it in the state `before`."""
    if before is not None and time.time_ns() - max(before.modified, before.changed) > COARSEST:
        _remembered[path.absolute()] = before, sha256
    return sha256
