"""Worker processes that are killed, starved or refused, and the driver's reaction."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.data.listing import Listing
from busi_tune.data.split import Split
from busi_tune.errors import BusiTuneError, TrainingDiverged, WorkerLost
from busi_tune.progress import Progress, Silent
from busi_tune.training.epochs import Epoch
from busi_tune.workers import sockets
from busi_tune.workers.jobs import MOST_DEATHS, Ended, Events, Job, Trained, work_through
from busi_tune.workers.processes import Processes

pytestmark = pytest.mark.slow


def epoch(number: int) -> Epoch:
    return Epoch(number, 1.0, 1.0, 0.5, 0.5, 0.1, float(os.getpid()), 1.0)


def task(job: Job, _: Dataset, progress: Progress) -> Events:
    """A job that counts its epochs in a file; the job's name selects what happens in the third epoch."""
    state = job.folder / job.name.replace(" ", "_")
    records = [epoch(1)] * (len(state.read_text()) if state.exists() else 0)
    yield Trained(job, records)
    for number in range(len(records) + 1, job.until + 1):
        if number == 3 and (job.name == "always dies" or (job.name == "dies" and not (job.folder / "died").exists())):
            (job.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3 and job.name == "fails":
            raise ValueError("an error that nobody thought of")
        if number == 3 and job.name == "diverges":
            yield Ended(job, "", TrainingDiverged("The training loss of epoch 3 is nan."))
            return
        with state.open("a") as file:
            file.write("x")
        records = [*records, epoch(number)]
        progress.within(job.name, number - 1, 5, 0.5)
        progress.notice(f"{job.name} has epoch {number}")
        if not (yield Trained(job, records)):
            yield Ended(job, "stopped")
            return
    yield Ended(job, "all epochs done")


class Heard(Silent):
    """Records the notices, and the jobs that reported progress within an epoch."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.parts: set[str] = set()

    def within(self, task: str, done: int, total: int, share: float) -> None:
        assert 0 <= done + share <= total
        self.parts.add(task)

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def crew(heard: Heard) -> Iterator[Processes]:
    empty = Dataset(Listing(Path(), (), (), 0), Split(pd.DataFrame(), pd.DataFrame()))
    processes = Processes(2, empty, heard, task)
    yield processes
    processes.close()


def outcome(
    crew: Processes, heard: Heard, folder: Path, *names: str, stop_at: int = 99
) -> dict[str, str | BusiTuneError]:
    """Runs jobs of five epochs with these names, and returns the end of each: a reason or an error."""
    jobs = iter([Job(name, folder, Config(), 5) for name in names])
    ends: dict[str, str | BusiTuneError] = {}

    def trained(event: Trained) -> bool:
        return len(event.records) < stop_at

    def ended(event: Ended) -> None:
        ends[event.job.name] = event.error or event.reason

    work_through(crew, lambda: next(jobs, None), trained, ended, heard)
    return ends


def test_more_jobs_than_processes(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    names = [f"job {number}" for number in range(5)]
    assert outcome(crew, heard, tmp_path, *names) == dict.fromkeys(names, "all epochs done")
    assert crew.idle == 2
    assert "job 4 has epoch 5" in heard.notices
    assert heard.parts == set(names)


def test_a_stopped_job_trains_no_further_epoch(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    assert outcome(crew, heard, tmp_path, "a", "b", stop_at=2) == {"a": "stopped", "b": "stopped"}
    assert [(tmp_path / name).read_text() for name in "ab"] == ["xx", "xx"]
    assert outcome(crew, heard, tmp_path, "c") == {"c": "all epochs done"}


def test_a_job_goes_on_when_its_worker_dies(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    assert outcome(crew, heard, tmp_path, "dies", "other") == {"dies": "all epochs done", "other": "all epochs done"}
    assert (tmp_path / "dies").read_text() == "xxxxx"
    assert "The worker of dies died (signal SIGKILL)." in heard.notices


def test_a_job_whose_workers_always_die_is_given_up(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    heard.notices.clear()
    ends = outcome(crew, heard, tmp_path, "always dies", "other")
    assert isinstance(ends["always dies"], WorkerLost)
    assert str(ends["always dies"]) == (
        f"{MOST_DEATHS} workers died in one epoch (signal SIGKILL); lower --workers or --batch-size."
    )
    assert ends["other"] == "all epochs done"
    assert heard.notices.count("The worker of always dies died (signal SIGKILL).") == MOST_DEATHS


def test_an_error_that_nobody_thought_of_is_no_lack_of_memory(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    error = outcome(crew, heard, tmp_path, "fails")["fails"]
    assert str(error) == f"{MOST_DEATHS} workers died in one epoch (exit code 1); resolve the error above."


def test_an_error_arrives_whole(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    error = outcome(crew, heard, tmp_path, "diverges")["diverges"]
    assert isinstance(error, TrainingDiverged)
    assert str(error) == "The training loss of epoch 3 is nan."


def test_threads_are_divided(crew: Processes) -> None:
    from busi_tune.training.hardware import threads

    assert crew.threads == max(1, threads() // 2)


def test_idle_processes_that_were_killed_are_replaced(crew: Processes, heard: Heard, tmp_path: Path) -> None:
    for worker in crew.workers:
        worker.process.kill()
        worker.process.join()
    assert outcome(crew, heard, tmp_path, "d", "e") == {"d": "all epochs done", "e": "all epochs done"}


UNGUARDED = """
from pathlib import Path

import pandas as pd

from busi_tune import locks
from busi_tune.data.dataset import Dataset
from busi_tune.data.listing import Listing
from busi_tune.data.split import Split
from busi_tune.progress import Silent
from busi_tune.workers.processes import Processes


def work():
    with locks.only_writer(Path("study")):
        with Path("study/begun").open("a") as file:
            file.write("x")
        Processes(2, Dataset(Listing(Path(), (), (), 0), Split(pd.DataFrame(), pd.DataFrame())), Silent()).close()
        print("done")


GUARD
"""


@pytest.mark.parametrize("guard", ["work()", 'if __name__ == "__main__":\n    work()'], ids=["without", "with"])
def test_a_script_without_a_main_guard_is_told_to_have_one(guard: str, tmp_path: Path) -> None:
    """Without the guard, workers stop before they repeat the script's work, and the script before the first job."""
    (tmp_path / "script.py").write_text(UNGUARDED.replace("GUARD", guard))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "study/begun").read_text() == "x"
    if "__main__" in guard:
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        return
    what = 'put the work of the script under `if __name__ == "__main__":`.'
    assert (done.returncode, done.stdout) == (1, "")
    # The processes write to one pipe, so the parts of their last lines may be mixed.
    assert f"A worker process ended before it could begin, as the error above says; {what}" in done.stderr
    assert f"script.py, which would start its work again; {what}" in done.stderr


DRIVER = """
import os, signal, sys
from multiprocessing.util import get_temp_dir
from pathlib import Path
from busi_tune.workers import sockets

for study in sys.argv[2:]:
    sockets.mark_own(Path(study))
    sockets.mark_own(Path(study))
print(get_temp_dir(), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_driver_left_goes_with_the_next_one_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other folders stay: those of a running driver and of another study."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def driver(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", DRIVER, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment)

    def said(process: subprocess.Popen[str]) -> Path:
        assert process.stdout is not None
        return Path(process.stdout.readline().strip())

    killed, other, ended = driver("kill", "study"), driver("kill", "other"), driver("end", "study")
    places = [said(process) for process in (killed, other, ended)]
    assert [process.wait() for process in (killed, other, ended)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    alive = subprocess.Popen(
        [sys.executable, "-c", DRIVER + "sys.stdin.read()", "stay", "study"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    living = said(alive)
    assert [place.exists() for place in places] == [True, True, False]
    sockets.remove_leftovers(Path("study"))
    assert [place.exists() for place in places] == [False, True, False]
    assert living.exists()
    alive.communicate("")
    assert not living.exists()
