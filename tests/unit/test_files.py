"""Files that are written whole or not at all, and folders with one writer at a time."""

import csv
import hashlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from busi_tune import files, locks
from busi_tune.errors import FileError, RunError, listed

OLD = b"old content\n"
NEW = bytes(range(256)) * 2000
ROOM = 100_000
REFUSED = 42


def in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a forked process and returns its exit code.

    The code is `REFUSED` for one of our errors, and minus the signal's number for a killed process.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except (FileError, RunError):
            code = REFUSED
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def with_little_room(path: Path, on_full: signal.Handlers) -> Callable[[], None]:
    """Writes `NEW` in a process whose files may not exceed `ROOM` bytes."""

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
        signal.signal(signal.SIGXFSZ, on_full)
        files.write_bytes(path, NEW)

    return action


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("old", [OLD, None])
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path, old: bytes | None) -> None:
    """The next writer deletes the temporary file of the killed process."""
    path = tmp_path / "last.safetensors"
    if old is not None:
        path.write_bytes(old)
    assert in_child(with_little_room(path, signal.SIG_DFL)) == -signal.SIGXFSZ
    assert (path.read_bytes() if path.exists() else None) == old
    (left,) = tmp_path.glob(".last.safetensors.*.busi-tune.tmp")
    assert left.stat().st_size == ROOM
    with locks.only_writer(tmp_path):
        assert names(tmp_path) == [".lock"] + ["last.safetensors"] * (old is not None)
        files.write_bytes(path, NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("old", [OLD, None])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "last.safetensors"
    if old is not None:
        path.write_bytes(old)
    assert in_child(with_little_room(path, signal.SIG_IGN)) == REFUSED
    assert (path.read_bytes() if path.exists() else None) == old
    assert names(tmp_path) == ["last.safetensors"] * (old is not None)


def test_bytes_replace_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (OLD, NEW, b""):
        files.write_bytes(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["file"]


def test_the_next_write_of_a_file_removes_what_killed_writers_left(tmp_path: Path) -> None:
    """Covers folders without a lock, such as the folder of a `predict --csv` file."""
    path = tmp_path / "answers [1].csv"
    for _ in range(2):
        assert in_child(with_little_room(path, signal.SIG_DFL)) == -signal.SIGXFSZ
    other = tmp_path / ".answers.csv.1-2.busi-tune.tmp"
    other.touch()
    files.write_bytes(path, NEW)
    assert names(tmp_path) == sorted([other.name, path.name])


def test_of_two_writers_the_last_whole_one_wins(tmp_path: Path) -> None:
    """The second writer begins and ends during the first write. A third clears the folder's leftovers meanwhile."""
    path = tmp_path / "answers.json"

    def second() -> None:
        files.write_bytes(path, b"second")

    def third() -> None:
        with locks.only_writer(tmp_path):
            pass

    with files.replacing(path) as file:
        file.write(b"fir")
        assert in_child(second) == in_child(third) == 0
        assert path.read_bytes() == b"second"
        file.write(b"st")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["answers.json"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there/target.json"
    link = tmp_path / "link.json"
    link.symlink_to("there/target.json")
    for value in ({"a": 1}, {"a": 2}):
        files.write_json(link, value)
        assert link.is_symlink()
        assert files.read_json(target) == value
    assert names(tmp_path) == ["link.json", "there", "there/target.json"]


def test_a_line_of_a_csv_is_one_line_to_every_reader(tmp_path: Path) -> None:
    """Python's csv writer does not quote a carriage return, and other readers take it for the end of the row."""
    odd = ["a\rb.png", "c\r\n.png", "=1+1", '"', ",", "\x1b[2J", "plain"]
    path = tmp_path / "table.csv"
    files.write_csv(path, [{"path": name, "n": number} for number, name in enumerate(odd)])
    with path.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == odd
    assert list(pd.read_csv(path)["path"]) == odd
    assert b'"a\rb.png",0\n' in path.read_bytes()
    assert path.read_bytes().endswith(b"plain,6\n")


@pytest.mark.parametrize(
    ("name", "reason"), [("none/file", "No such file or directory"), ("plain/file", "Not a directory")]
)
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "plain").touch()
    path = tmp_path / name
    with pytest.raises(FileError) as error:
        files.write_bytes(path, NEW)
    assert str(error.value) == f"{path} could not be written: {reason}; fix that and run the same command again."
    assert names(tmp_path) == ["plain"]


def test_json_keeps_every_digit_and_is_for_people_too(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"third": 1 / 3, "tiny": 5e-324, "whole": 2**60, "list": [True, None, "ü"]}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_text().startswith('{\n "third": 0.3333333333333333,\n')
    assert path.read_bytes().endswith(b"}\n")


def test_json_does_not_hold_what_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", {"loss": math.nan})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not valid JSON (Expecting value: line 1 column 1 (char 0)); restore it or start over."),
        (
            b'{"a": 1',
            "is not valid JSON (Expecting ',' delimiter: line 1 column 8 (char 7)); restore it or start over.",
        ),
        (
            b'{"a": "\xff"}',
            "is not valid JSON ('utf-8' codec can't decode byte 0xff in position 7: invalid start byte); "
            "restore it or start over.",
        ),
        (b"[1]", "must hold a JSON object, not a list; restore it or start over."),
        (b"null", "must hold a JSON object, not a NoneType; restore it or start over."),
        (None, "could not be read: No such file or directory; fix that and run the same command again."),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as error:
        files.read_json(path)
    assert str(error.value) == f"{path} {problem}"
    assert error.value.exit_code == 1


def test_csv_keeps_every_digit_and_every_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [{"path": 'a, "b"\n.png', "loss": 1 / 3, "epoch": 1}, {"path": "ü", "loss": 1e-300, "epoch": 2}]
    files.write_csv(path, rows)
    with path.open(newline="") as file:
        again = [{**row, "loss": float(row["loss"]), "epoch": int(row["epoch"])} for row in csv.DictReader(file)]
    assert again == rows
    assert path.read_bytes().splitlines()[0] == b"path,loss,epoch"


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NEW)
    assert files.sha256(path) == files.sha256_bytes(NEW) == hashlib.sha256(NEW).hexdigest()
    with pytest.raises(FileError, match="none could not be read: No such file or directory; fix"):
        files.sha256(tmp_path / "none")


def test_make_and_remove_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a/b/c"
    for _ in range(2):
        assert files.make_folder(folder) == folder
    (folder / "file").touch()
    for _ in range(2):
        files.remove_folder(tmp_path / "a")
        assert names(tmp_path) == []
    (tmp_path / "plain").touch()
    with pytest.raises(FileError, match=r"plain is a file; name a folder\."):
        files.make_folder(tmp_path / "plain")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileError, match=r"link is a link to nowhere, which does not exist; create that, or remove"):
        files.make_folder(tmp_path / "link")


def fill(folder: Path) -> None:
    for name in ("config.json", "history.csv", ".lock", "best/weights.safetensors", "best/state.json"):
        files.make_folder((folder / name).parent)
        (folder / name).write_text("content")


def test_a_result_folder_is_cleared_but_for_its_lock(tmp_path: Path) -> None:
    fill(tmp_path)
    files.clear_folder(tmp_path, "config.json")
    assert names(tmp_path) == [".lock"]


@pytest.mark.parametrize("moment", range(1, 5))
def test_a_clearing_that_is_killed_can_be_done_again(tmp_path: Path, moment: int) -> None:
    """The folder keeps its marker until the end, so the next command can clear the rest."""
    fill(tmp_path)

    def clear() -> None:
        removals = 0

        def kill(event: str, _: object) -> None:
            nonlocal removals
            removals += event == "os.remove"
            if event == "os.remove" and removals == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        files.clear_folder(tmp_path, "config.json")

    assert in_child(clear) == -signal.SIGKILL
    assert (tmp_path / "config.json").exists()
    files.clear_folder(tmp_path, "config.json")
    assert names(tmp_path) == [".lock"]


def test_a_folder_of_something_else_is_not_cleared(tmp_path: Path) -> None:
    fill(tmp_path)
    before = names(tmp_path)
    files.clear_folder(tmp_path, "study.json")
    assert names(tmp_path) == before
    files.clear_folder(tmp_path / "none", "study.json")


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def hold() -> None:
        with locks.only_writer(folder):
            pass

    with locks.only_writer(folder):
        assert in_child(hold) == REFUSED
        with pytest.raises(RunError) as error, locks.only_writer(folder):
            pytest.fail("two writers")
    assert str(error.value) == f"{folder} is in use by another busi-tune process; wait until it has ended."
    assert in_child(hold) == 0


def test_a_killed_writer_gives_the_folder_back(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with locks.only_writer(tmp_path):
                os.write(theirs, b"held")
                signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    assert os.read(ours, 4) == b"held"
    os.close(ours)
    with pytest.raises(RunError), locks.only_writer(tmp_path):
        pytest.fail("two writers")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locks.only_writer(tmp_path):
        pass


def test_writers_that_wait_for_each_other_are_never_two(tmp_path: Path) -> None:
    """Each writer deletes the lock file that the others wait for. Two writers never hold the lock at once."""
    counter, folder = tmp_path / "counter", tmp_path / "run"
    counter.write_text("0")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(50):
                    with locks.only_writer(folder, wait=True):
                        counter.write_text(str(int(counter.read_text()) + 1))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert counter.read_text() == "200"
    assert names(tmp_path) == ["counter", "run"]


def test_the_lock_goes_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.only_writer(tmp_path):
        raise ZeroDivisionError
    with locks.only_writer(tmp_path):
        pass


def test_a_writer_clears_what_was_left_half_written_and_nothing_else(tmp_path: Path) -> None:
    leftovers = (
        ".state.json.busi-tune.tmp",
        "checkpoints/.best.safetensors.busi-tune.tmp",
        "trials/.0002.busi-tune.tmp/config.json",
    )
    kept = ("state.json", "notes.tmp", ".mine.tmp", "trials/0001/.has-a-writer-of-its-own.busi-tune.tmp", ".hidden")
    for name in leftovers + kept:
        files.make_folder((tmp_path / name).parent)
        (tmp_path / name).write_text("content")
    with locks.only_writer(tmp_path):
        assert names(tmp_path) == sorted([".lock", "checkpoints", "trials", "trials/0001", *kept])


def test_a_writer_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with (
        pytest.raises(FileError, match=r"plain is a file; name a folder\."),
        locks.only_writer(tmp_path / "plain"),
    ):
        pytest.fail("no folder")


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (9, "0, 1, 2 and 6 more")]
)
def test_listed(count: int, text: str) -> None:
    assert listed([str(k) for k in range(count)], most=3) == text


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "list.json", [1, 2])
    assert json.loads((tmp_path / "list.json").read_text()) == [1, 2]
