"""Training of a list of runs, several at a time, such as the finalists of a study."""

from collections.abc import Callable, Sequence
from pathlib import Path

from busi_tune import locks
from busi_tune.errors import BusiTuneError, ConfigError, OutOfMemory, TrainingDiverged, WorkerLost
from busi_tune.progress import Progress
from busi_tune.training import run_folder
from busi_tune.workers.jobs import Ended, Job, Trained, Workers, work_through

# These errors fail only their own job. Any other error stops the command.
FAILURES = (TrainingDiverged, ConfigError, OutOfMemory, WorkerLost)


def train_all(
    jobs: Sequence[Job],
    workers: Workers,
    progress: Progress,
    *,
    show: Callable[[Trained], None],
    keep_model: bool = False,
) -> dict[Path, BusiTuneError]:
    """Train every job to its `until` or to the end of its run. Returns the errors of failed jobs, by their folders.

    A job that is already trained is skipped. With `keep_model`, it is skipped only if it still has its checkpoints.
    `show` is called after each new epoch.

    Raises:
        BusiTuneError: an error that is not one of `FAILURES`.
    """
    failed: dict[Path, BusiTuneError] = {}
    rest = iter([job for job in jobs if not _is_trained(job, keep_model, progress)])

    def trained(event: Trained) -> bool:
        if event.new:
            show(event)
        return True

    def ended(event: Ended) -> None:
        progress.close(event.job.name)
        if event.error is None:
            return
        if not isinstance(event.error, FAILURES):
            raise event.error
        progress.notice(f"{event.job.name.capitalize()} failed: {event.error}")
        failed[event.job.folder] = event.error

    work_through(workers, lambda: next(rest, None), trained, ended, progress)
    return failed


def _is_trained(job: Job, keep_model: bool, progress: Progress) -> bool:
    # A killed worker may have left an incomplete history.csv.
    with locks.only_writer(job.folder, wait=True):
        run_folder.restore_history(job.folder, progress)
    state = run_folder.read_state(job.folder)
    if state is None or (keep_model and not state["checkpoints"]):
        return False
    # A run that has all of its epochs may be extended, but not after early stopping.
    return len(state["history"]) >= job.until or state["stop_reason"] == run_folder.EARLY
