"""Training a list of runs, several at a time: finalists of a study, or any runs whose configuration is known."""

from collections.abc import Callable, Sequence
from pathlib import Path

from busi_tune import locks
from busi_tune.errors import BusiTuneError, ConfigError, OutOfMemory, TrainingDiverged, WorkerLost
from busi_tune.progress import Progress
from busi_tune.training import run_folder
from busi_tune.workers.jobs import Ended, Job, Trained, Workers, work_through

# A job with one of these has failed; any other error stops the command.
FAILURES = (TrainingDiverged, ConfigError, OutOfMemory, WorkerLost)


def train_all(
    jobs: Sequence[Job],
    workers: Workers,
    progress: Progress,
    *,
    show: Callable[[Trained], None],
    keep_model: bool = False,
) -> dict[Path, BusiTuneError]:
    """Train every job to its `until` or its own end; the folders and errors of those that failed.

    A job that is trained already is left out. With `keep_model` the trained model is wanted, not its learning curve
    alone. `show` is called after each new epoch.

    Raises:
        BusiTuneError: anything but a failure of training went wrong.
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
    # A worker may have been killed in its last step.
    with locks.only_writer(job.folder, wait=True):
        run_folder.restore_history(job.folder, progress)
    state = run_folder.read_state(job.folder)
    if state is None or (keep_model and not state["checkpoints"]):
        return False
    # A run that ended with all of its epochs may be asked for more.
    return len(state["history"]) >= job.until or state["stop_reason"] == run_folder.EARLY
