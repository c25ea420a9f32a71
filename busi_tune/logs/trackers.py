"""The trackers of `--log`, and the folder of their files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from busi_tune import files, locks
from busi_tune.errors import TrainingDiverged
from busi_tune.logs import Tracker
from busi_tune.logs.records import read_records
from busi_tune.progress import Progress

# The folder of all logs, beside the folders of results.
FOLDER = "logs"


def place_of(folder: Path) -> Path:
    """The folder for the logs of the result in `folder`."""
    return folder.resolve().parent / FOLDER


def check_tracker(tracker: Tracker, folder: Path) -> None:
    """Check that a tracker can be used.

    Raises:
        ModuleNotFoundError: its package is not installed.
        FileError: its folder, its database or its server cannot be used.
    """
    if find_spec(tracker) is None:
        raise ModuleNotFoundError(f"No module named {tracker!r}", name=tracker)
    place = files.make_folder(place_of(folder))
    if tracker == "mlflow":
        from busi_tune.logs import mlflow

        mlflow.check(place)


def write_logs(folder: Path, tracker: Tracker) -> None:
    """Write the trainings in a result folder to a tracker. Values that the tracker already has are not written again.

    The result folder does not change.

    Raises:
        ModuleNotFoundError: the tracker's package is not installed.
        FileError: a file cannot be read, or the tracker cannot be used.
    """
    check_tracker(tracker, folder)
    place, name = place_of(folder), folder.resolve().name
    with locks.only_writer(place, wait=True):
        if tracker == "mlflow":
            from busi_tune.logs import mlflow

            mlflow.write(place, name, read_records(folder))
        else:
            from busi_tune.logs import tensorboard

            tensorboard.write(place, name, read_records(folder))


@contextmanager
def logged(tracker: Tracker | None, folders: Sequence[Path], progress: Progress) -> Iterator[None]:
    """Write the results in `folders` to a tracker at the end of the block, also after Ctrl-C or a diverged loss.

    Raises:
        ModuleNotFoundError: the tracker's package is not installed.
        FileError: the tracker cannot be used.
    """
    if tracker is None:
        yield
        return
    for folder in folders:
        check_tracker(tracker, folder)
    try:
        yield
    except (KeyboardInterrupt, TrainingDiverged):
        _write_all(tracker, folders, progress)
        raise
    _write_all(tracker, folders, progress)


def _write_all(tracker: Tracker, folders: Sequence[Path], progress: Progress) -> None:
    for folder in folders:
        write_logs(folder, tracker)
    progress.notice(f"Logs for {tracker} are in {place_of(folders[0])}.")
