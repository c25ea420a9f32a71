"""A study on a real PostgreSQL: several drivers, an outage of the server, and a password that stays hidden."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from busi_tune import locks, pipeline
from busi_tune.errors import ConfigError, FileError, RunError
from busi_tune.progress import Silent
from busi_tune.search import storage
from busi_tune.search.storage import server_url, shown
from busi_tune.search_options import SearchOptions
from outages import TINY, Saboteur, options
from postgres import Server

ROOT = Path(__file__).resolve().parents[2]


def test_a_database_that_goes_away_is_waited_for(postgres: Server, phantoms: Path, tmp_path: Path) -> None:
    seen = Saboteur(postgres, seconds=3)
    result = pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres), seen)
    assert seen.back is not None
    seen.back.join()
    assert [row["state"] for row in result["trials"]] == ["COMPLETE"] * 3
    [waited] = [text for text in seen.notices if "does not answer" in text]
    assert waited.endswith("waiting for it, up to 45 s.")
    assert postgres.password not in waited


def test_one_that_stays_away_ends_the_command_and_everything_is_kept(
    postgres: Server, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 1.5)
    with pytest.raises(FileError, match=r"database postgresql.* failed \(.*\); everything is kept: fix") as error:
        pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres), Saboteur(postgres, None))
    assert postgres.password not in str(error.value)
    postgres.start()
    monkeypatch.undo()
    result = pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres), Silent())
    assert [(row["number"], row["state"]) for row in result["trials"]] == [(n, "COMPLETE") for n in range(3)]


def two_drivers(postgres: Server, data: Path, out: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes that run the same command on one study."""
    code = (
        "import sys; from pathlib import Path; from busi_tune import pipeline; from busi_tune.progress import Silent\n"
        "from outages import TINY, SearchOptions\n"
        "pipeline.search(Path(sys.argv[1]), Path(sys.argv[2]), TINY, "
        "SearchOptions(trials=6, trial_epochs=2, storage=sys.argv[3]), Silent())"
    )
    command = [sys.executable, "-c", code, str(data), str(out), postgres.url]
    return [subprocess.Popen(command, cwd=ROOT / "tests/support") for _ in range(2)]


def test_a_driver_that_is_killed_leaves_its_trial_to_the_other(
    postgres: Server, phantoms: Path, tmp_path: Path
) -> None:
    doomed, other = two_drivers(postgres, phantoms, tmp_path / "study")
    trials = tmp_path / "study/trials"
    while len(list(trials.glob("0*/history.csv"))) < 2:
        assert doomed.poll() is None
        time.sleep(0.01)
    doomed.kill()
    doomed.wait()
    assert other.wait(timeout=300) == 0
    with (tmp_path / "study/trials.csv").open(newline="") as file:
        told = [(row["number"], row["state"]) for row in csv.DictReader(file)]
    assert told == [(str(number), "COMPLETE") for number in range(6)]
    assert (tmp_path / "study/best/metrics.json").exists()


def test_two_drivers_share_one_study_and_its_trials(postgres: Server, phantoms: Path, tmp_path: Path) -> None:
    alone = pipeline.search(phantoms, tmp_path / "alone", TINY, SearchOptions(trials=6, trial_epochs=2), Silent())
    drivers = two_drivers(postgres, phantoms, tmp_path / "shared")
    assert [driver.wait(timeout=300) for driver in drivers] == [0, 0]
    again = pipeline.search(phantoms, tmp_path / "shared", TINY, options(postgres, trials=6), Silent())
    assert [row["number"] for row in again["trials"]] == list(range(6))
    # The first ten trials are random, each with a seed of its own, so the driver that asks does not matter.
    drawn = [{key: row[key] for key in ("learning_rate", "value")} for row in again["trials"]]
    assert drawn == [{key: row[key] for key in ("learning_rate", "value")} for row in alone["trials"]]
    assert (tmp_path / "shared/best/metrics.json").read_bytes() == (tmp_path / "alone/best/metrics.json").read_bytes()


def test_a_study_that_others_are_at_work_on_is_not_overwritten(
    postgres: Server, phantoms: Path, tmp_path: Path
) -> None:
    pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres, trials=1), Silent())
    other = locks.take(locks.trial_lock(tmp_path / "study/trials", 7), wait=False)
    assert other is not None
    with pytest.raises(RunError, match=r"study is in use by another driver; use --overwrite when all drivers have"):
        pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres, trials=1), Silent(), overwrite=True)
    again = pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres, trials=2), Silent())
    other.release()
    assert len(again["trials"]) == 2
    anew = pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres, trials=1), Silent(), overwrite=True)
    assert len(anew["trials"]) == 1


def test_the_password_is_nowhere(postgres: Server, phantoms: Path, tmp_path: Path) -> None:
    result = pipeline.search(phantoms, tmp_path / "study", TINY, options(postgres, trials=1), Silent())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if postgres.password.encode() in path.read_bytes()] == []
    assert postgres.password not in json.dumps(result)
    known = json.loads((tmp_path / "study/study.json").read_text())
    assert known["storage"] == f"postgresql+psycopg://busi@127.0.0.1:{postgres.port}/postgres"
    with pytest.raises(RunError, match="holds another study"):
        pipeline.search(phantoms, tmp_path / "study", TINY, SearchOptions(trials=1, trial_epochs=2), Silent())
    wrong = SearchOptions(trials=1, trial_epochs=2, storage=postgres.url.replace(postgres.password, "wr0ng"))
    with pytest.raises(FileError) as error:
        pipeline.search(phantoms, tmp_path / "other", TINY, wrong, Silent())
    assert "wr0ng" not in str(error.value)
    assert "password authentication failed" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "sqlite:///study.db",
        "postgresql://busi:s3cret@host/db",
        "postgresql+psycopg://busi:s3cret@host",
        "postgresql+psycopg://busi:s3cret@host:port/db",
        "mysql+pymysql://busi:s3cret@host/db",
        "postgresql+psycopg://busi:p@s3cret@host/db",
    ],
)
def test_urls_that_are_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"storage (must be a URL like postgresql\+psycopg://user@host/database|has an @ in its host)"
    ) as error:
        server_url(text)
    assert "s3cret" not in str(error.value)


def test_a_shown_url_has_no_password() -> None:
    url = server_url("postgresql+psycopg://busi:s3cret@host:5433/db?password=s3cret&sslpassword=s3cret&sslmode=require")
    assert shown(url) == "postgresql+psycopg://busi@host:5433/db?sslmode=require"


def test_the_process_list_shows_no_password(postgres: Server, phantoms: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "busi_tune", "search", "--data", str(phantoms), "--out", str(tmp_path / "study")]
    small = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--device", "cpu", "--trials", "2"]
    small += ["--workers", "2"]
    driver = subprocess.Popen(
        [*command, *small, "--storage", postgres.url], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert driver.stderr is not None
    said = driver.stderr.readline()
    process = psutil.Process(driver.pid)
    title = process.cmdline()
    # Two workers, the server process that forks them, and Python's resource tracker.
    while driver.poll() is None and len(process.children(recursive=True)) < 4:
        time.sleep(0.05)
    others = [child.cmdline() for child in process.children(recursive=True)]
    driver.kill()
    driver.communicate()
    assert said, "it has not begun"
    assert "".join(title) == "busi-tune"
    assert len(others) == 4
    assert postgres.password not in str(others)
