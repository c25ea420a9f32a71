"""The temporary folder of multiprocessing's socket, and its removal after its driver was killed."""

import os
import tempfile
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.util import get_temp_dir
from pathlib import Path

from filelock import FileLock

from busi_tune import files, locks
from busi_tune.errors import FileError

# The locks are held until this process ends. It deletes its temporary folder itself unless it is killed.
_held: dict[Path, FileLock] = {}


def mark_own(study: Path) -> None:
    """Mark the temporary folder of this process, with a locked file, as the folder of a driver of `study`.

    A process that multiprocessing started is not marked. It uses the folder of its parent, which may run longer.
    """
    if parent_process() is not None:
        return
    path = Path(get_temp_dir()) / _mark(study)
    if path not in _held:
        lock = locks.take(path, wait=True)
        assert lock is not None
        _held[path] = lock


def remove_leftovers(study: Path) -> None:
    """Delete the temporary folders of killed drivers of `study`. The caller holds the lock of the study."""
    for path in Path(tempfile.gettempdir()).glob(f"pymp-*/{_mark(study)}"):
        # Files of other users cannot be locked.
        with suppress(FileError):
            lock = None if path in _held else locks.take(path, wait=False)
            if lock is not None:
                files.remove_folder(path.parent)
                lock.release()


def _mark(study: Path) -> str:
    return f"busi-tune-{files.sha256_bytes(os.fsencode(study.resolve()))[:16]}.lock"
