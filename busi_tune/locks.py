"""Lock files of three kinds. The system releases a lock when its process ends, even after a kill.

The holder deletes the lock file, so that finished folders have none. A killed holder leaves the file behind; the next
holder uses and deletes it.

| kind | file | held by |
|---|---|---|
| run | `.lock` in a folder of results | the process that writes there: a run, an audit, an export, the pixel cache |
| trial | `trials/.0007.lock` in a study | the driver that trains the trial, or that may need its checkpoints |
| study | `.study.lock` in a study | a driver while it begins the study, asks for a trial or writes the table |
"""

import inspect
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from busi_tune.errors import RunError
from busi_tune.files import LOCK, TEMPORARY, check_folder, explained, lock_open, make_folder, remove_leftovers

# The advice for a script that starts several workers.
GUARD = 'put the work of the script under `if __name__ == "__main__":`'
RUN, STUDY = LOCK, ".study.lock"
# Seconds between two attempts to take a lock.
POLL = 0.02


def trial_lock(trials: Path, number: int) -> Path:
    """The lock file of a trial in the folder `trials` of a study."""
    return trials / f".{number:04d}.lock"


def take(path: Path, *, wait: bool) -> FileLock | None:
    """Take the lock on `path`, creating the file. Without `wait`, return None if another process holds the lock.

    Raises:
        FileError: the file cannot be created.
        RunError: a worker process has imported the script that started it, and the script has no main guard.
    """
    _refuse_unguarded_script()
    lock = FileLock(path, thread_local=False)
    with explained(path, "locked"):
        try:
            lock.acquire(blocking=wait, poll_interval=POLL)
        except Timeout:
            return None
    return lock


def drop(lock: FileLock) -> None:
    """Delete the file of a lock that this process holds, then release the lock.

    Other processes may wait with the deleted file open. filelock 3.20.4 and later notice the deletion and lock the
    file that has the name now.
    """
    # Windows cannot delete a file that another process has open.
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def _refuse_unguarded_script() -> None:
    """Refuse a script without a main guard, which would start its work again in each worker process.

    Each new process of multiprocessing imports the script under the name `__mp_main__`.

    Raises:
        RunError: the top level of such a script is among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise RunError(
                f"Each worker process imports {frame.f_code.co_filename}, which would start its work again; {GUARD}."
            )
        frame = frame.f_back


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on `path` and hold it during the block."""
    lock = take(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_writer(folder: Path, *, wait: bool = False, name: str = RUN, finished: str = "") -> Iterator[None]:
    """Lock `folder` during the block with its lock file `name`, creating both. Delete the leftovers of killed writers.

    A read-only folder with the file `finished` is not locked, because its results are only shown. A folder that was
    created here is deleted if the block fails before it has written anything.

    Raises:
        RunError: another process holds the lock, and `wait` is false.
    """
    if finished and is_read_only(folder, finished):
        yield
        return
    created = not folder.exists()
    lock = take(make_folder(folder) / name, wait=wait)
    if lock is None:
        raise _in_use(folder)
    try:
        # Deeper folders have their own writers.
        remove_leftovers([*folder.glob(f".*{TEMPORARY}"), *folder.glob(f"*/.*{TEMPORARY}")])
        yield
    except BaseException:
        if created and all(entry.name == name for entry in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        drop(lock)


def is_read_only(folder: Path, finished: str) -> bool:
    """Whether a result, which has the file `finished`, can be shown but not changed."""
    return (folder / finished).exists() and not os.access(folder, os.W_OK)


def check_writable(folder: Path, *, name: str = RUN, finished: str = "") -> None:
    """Refuse a folder that `only_writer` would refuse. Nothing is created or changed.

    Raises:
        RunError: another process holds the lock.
        FileError: the folder cannot be created or written.
    """
    if finished and is_read_only(folder, finished):
        return
    check_folder(folder)
    if is_held(folder / name):
        raise _in_use(folder)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock on `path`. Nothing is created or changed."""
    try:
        # A `FileLock` would truncate the file, which changes its time.
        with path.open("rb") as file:
            free = lock_open(file, wait=False)
    except OSError:
        # No process holds a lock without its file, or in a folder that this user may not read.
        return False
    if sys.platform != "win32":
        return not free
    lock = take(path, wait=False)
    if lock is not None:
        lock.release()
    return lock is None


def _in_use(folder: Path) -> RunError:
    return RunError(f"{folder} is in use by another busi-tune process; wait until it has ended.")
