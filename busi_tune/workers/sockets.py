"""The temporary folder in which multiprocessing keeps its socket, and what a driver that was killed left of it."""

import os
import tempfile
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.util import get_temp_dir
from pathlib import Path

from filelock import FileLock

from busi_tune import files, locks
from busi_tune.errors import FileError

# Held to the end of this process, which deletes its folder itself unless it is killed.
_held: dict[Path, FileLock] = {}


def mark_own(study: Path) -> None:
    """Lock a file in this process's folder, which says that it is the folder of a driver of `study`.

    A process that multiprocessing started has the folder of the one that started it, which may live on.
    """
    if parent_process() is not None:
        return
    path = Path(get_temp_dir()) / _mark(study)
    if path not in _held:
        lock = locks.take(path, wait=True)
        assert lock is not None
        _held[path] = lock


def remove_leftovers(study: Path) -> None:
    """Delete the folders of drivers of `study` that were killed; the caller holds the study's lock."""
    for path in Path(tempfile.gettempdir()).glob(f"pymp-*/{_mark(study)}"):
        # Other users' cannot be locked.
        with suppress(FileError):
            lock = None if path in _held else locks.take(path, wait=False)
            if lock is not None:
                files.remove_folder(path.parent)
                lock.release()


def _mark(study: Path) -> str:
    return f"busi-tune-{files.sha256_bytes(os.fsencode(study.resolve()))[:16]}.lock"
