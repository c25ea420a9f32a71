"""The lock files, of three kinds. The lock goes with the process that holds it, however that process ends.

Its holder deletes the file, so that finished folders keep none; a killed holder leaves it to the next one.

| kind | file | held by |
|---|---|---|
| run | `.lock` in a folder of results | the process that writes there: a run, an audit, an export, the pixel cache |
| trial | `trials/.0007.lock` in a study | the driver that trains the trial, or that may need its checkpoints |
| study | `.study.lock` in a study | a driver while it begins the study, asks for a trial or writes the table |
"""

import inspect
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from busi_tune.errors import RunError
from busi_tune.files import TEMPORARY, explained, make_folder, remove_leftovers

# What a script has to do that starts several workers.
GUARD = 'put what the script does under `if __name__ == "__main__":`'
RUN, STUDY = ".lock", ".study.lock"
# Seconds between two attempts.
POLL = 0.02


def trial_lock(trials: Path, number: int) -> Path:
    """The lock file of a trial in the folder `trials` of a study."""
    return trials / f".{number:04d}.lock"


def take(path: Path, *, wait: bool) -> FileLock | None:
    """Take the lock on `path`, creating the file: a lock to release, or None where another process holds it.

    Raises:
        FileError: the file cannot be created.
        RunError: a worker process is running the script that started it.
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

    Others may wait with the file open. filelock, from 3.20.4 on, sees that what it has locked is deleted, and takes the
    file that has the name now: a new one, or another waiter's.
    """
    # Windows deletes no file that others have open.
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def _refuse_unguarded_script() -> None:
    """Stop a script that a new process of multiprocessing imports, under this name, before it does its work again.

    Raises:
        RunError: the caller is the top level of such a script.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise RunError(
                f"Each worker process imports {frame.f_code.co_filename}, which begins the work of the script again; "
                f"{GUARD}."
            )
        frame = frame.f_back


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on `path`, and hold it."""
    lock = take(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_writer(folder: Path, *, wait: bool = False, name: str = RUN, finished: str = "") -> Iterator[None]:
    """Hold `folder` for this process by its lock file `name`, creating both, and delete a killed writer's leftovers.

    A folder that this process may only read needs no lock to be shown, if it holds the file `finished`. A folder that
    was created here goes again, where the work inside fails before it has written anything.

    Raises:
        RunError: another process holds the folder, and `wait` is false.
    """
    if finished and (folder / finished).exists() and not os.access(folder, os.W_OK):
        yield
        return
    created = not folder.exists()
    lock = take(make_folder(folder) / name, wait=wait)
    if lock is None:
        raise RunError(f"{folder} is in use by another busi-tune process; wait until it has ended.")
    try:
        # Folders further down have writers of their own.
        remove_leftovers([*folder.glob(f".*{TEMPORARY}"), *folder.glob(f"*/.*{TEMPORARY}")])
        yield
    except BaseException:
        if created and all(entry.name == name for entry in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        drop(lock)
