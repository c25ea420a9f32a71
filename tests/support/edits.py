"""Edits of result files, one at a time, in a folder with a run, a study and an export."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
CONFIG = Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=2, device="cpu")
RUN, STUDY, EXPORT = "studies/baseline", "studies/tuned", "exports/tuned"
# The commands, and the result folders that each reads.
COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "baseline": (["baseline", "--data", "DATA", "--epochs", "2", *SMALL, "--json"], (RUN,)),
    "search": (
        ["search", "--data", "DATA", "--epochs", "2", "--trials", "2", "--trial-epochs", "1", *SMALL, "--json"],
        (STUDY,),
    ),
    "export": (["export", f"{STUDY}/best", "--out", EXPORT, "--json"], (f"{STUDY}/best", EXPORT)),
    "verify": (["verify", EXPORT, "--json"], (EXPORT,)),
    "predict": (["predict", EXPORT, "DATA/normal/normal (2).png", "--json"], (EXPORT,)),
}
# The reason why a command may give the same answer after an edit, by command and part of the file name.
HARMLESS = {
    ("baseline", "last-"): "only training on reads it, and checks its hash",
    ("baseline", "data.json"): "--data names the folder of the images",
    ("search", "last-"): "only training on reads it, and checks its hash",
    ("search", "data.json"): "--data names the folder of the images",
    ("search", "options.json"): "written anew by each command, for `list` alone",
    ("search", "trials.csv"): "written anew from the database",
    ("search", "verdict.json"): "written anew from the predictions",
    ("search", "trials/0001/checkpoints"): "of a trial that is not the best; training it on checks them",
    ("search", "trials/0001/split"): "of a trial that is not the best; training it on checks it",
    ("search", "history.csv"): "written anew from the state, for trials that are no finished runs without a notice",
    ("search", "study.db"): "rebuilt by the same seeds, or values that only the pruner compares",
    ("export", "last-"): "only training on reads it, and checks its hash",
    ("export", ".png"): "an export reads no picture of its run",
    ("export", "exports/"): "an export that is not whole is made again, with a notice",
    ("predict", "predictions.csv"): "predict reads the model and its certificate alone",
    ("predict", "README.md"): "predict reads the model and its certificate alone",
    ("predict", "model-32.onnx"): "predict reads model.onnx alone",
    ("predict", "verification.json"): "predict reads the hash, the verdict and the types, and shows no figure",
}


@dataclass(frozen=True)
class Edit:
    """One edit: a file, a description of the change, and the new content (None if the file is removed)."""

    path: str
    what: str
    content: bytes | None


@dataclass(frozen=True)
class Found:
    """The outcome of a command after an edit: "refused", "made again", "harmless", or a description of the error."""

    verdict: str
    detail: str = ""


def make_place(place: Path, data: Path) -> None:
    """Makes a finished run, a study that adopts it, and an export of the study's best trial."""
    pipeline.baseline(data, place / RUN, CONFIG, Silent())
    pipeline.search(data, place / STUDY, CONFIG, SearchOptions(trials=2, trial_epochs=1), Silent())
    pipeline.export(place / STUDY / "best", place / EXPORT, data, Silent())


def copied(place: Path, target: Path) -> None:
    """Copies a place to `target`. Files are hard links, except for the database and locks, which change in place."""
    shutil.rmtree(target, ignore_errors=True)

    def link(source: str, to: str) -> None:
        if source.endswith((".db", ".lock")):
            shutil.copy2(source, to)
        else:
            os.link(source, to)

    shutil.copytree(place, target, copy_function=link)


def edits_of(place: Path, folder: str) -> Iterator[Edit]:
    """All edits of the files in a result folder."""
    for path in sorted(place.joinpath(folder).rglob("*")):
        name = path.relative_to(place).as_posix()
        if not path.is_file() or name.endswith(".lock"):
            continue
        content = path.read_bytes()
        yield Edit(name, "removed", None)
        yield Edit(name, "emptied", b"")
        yield Edit(name, "truncated", content[: len(content) // 2])
        if path.suffix == ".json":
            yield from _json_edits(name, content)
        elif path.suffix == ".db":
            yield from _database_edits(name, path)
        else:
            yield from _byte_edits(name, content)


def _byte_edits(name: str, content: bytes) -> Iterator[Edit]:
    for share in (0.1, 0.5, 0.9):
        changed = bytearray(content)
        changed[int(len(content) * share)] ^= 1
        yield Edit(name, f"a bit at {share:.0%}", bytes(changed))
    if name.endswith(".csv"):
        lines = content.decode().splitlines(keepends=True)
        yield Edit(name, "a row removed", "".join(lines[:-1]).encode())
        yield Edit(name, "two rows exchanged", "".join([lines[0], *lines[:0:-1]]).encode())
        yield Edit(name, "a column renamed", content.replace(lines[0].split(",")[-1].strip().encode(), b"other", 1))


def _json_edits(name: str, content: bytes) -> Iterator[Edit]:
    document = json.loads(content)
    yield Edit(name, "{}", b"{}")
    yield Edit(name, "a list", b"[]")
    yield Edit(name, "100,000 brackets", b"[" * 100_000)
    for keys in _places(document, ()):
        where = ".".join(map(str, keys))
        yield Edit(name, f"{where} removed", _with(document, keys, None, remove=True))
        known = _at(document, keys)
        for what, value in ((what, value) for what, value in _others(known) if value != known):
            yield Edit(name, f"{where} {what}", _with(document, keys, value))


def _places(value: object, keys: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """The keys of each value in a document; lists contribute their first two entries only."""
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value[:2]))
    for key, inner in entries:
        yield (*keys, key)
        yield from _places(inner, (*keys, key))


def _at(document: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        document = document[key]
    return document


def _with(document: object, keys: tuple[str | int, ...], value: object, *, remove: bool = False) -> bytes:
    copy = json.loads(json.dumps(document))
    holder = _at(copy, keys[:-1])
    if remove:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return json.dumps(copy, indent=1).encode()


def _others(value: Any) -> list[tuple[str, object]]:
    """Descriptions and replacements of a value: another value, values of other types, and NaN."""
    nan = ("NaN", float("nan"))
    match value:
        case bool():
            return [("turned", not value), ("a text", "yes"), ("null", None)]
        case int() | float():
            return [("another number", value + 1), ("a text", str(value)), ("a list", [value]), nan]
        case str():
            return [("another text", f"{value}x"), ("a number", 1), ("null", None), ("a path", "../../x")]
        case list():
            return [("reversed", value[::-1]), ("empty", []), ("an object", {}), nan]
        case dict():
            return [("empty", {}), ("a list", []), ("a text", "x")]
        case _:
            return [("a number", 0.5), ("a text", "x")]


def rehashed(edit: Edit) -> Edit | None:
    """The same edit with the SHA-256 of the new content, as a forger would write it; None if not possible."""
    try:
        document = json.loads(edit.content or b"")
        if "sha256" not in document:
            return None
        del document["sha256"]
        text = results.text(document)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Edit(edit.path, f"{edit.what}, with its SHA-256", text.encode())


def forged(edit: Edit) -> Edit | None:
    """The same edit without the SHA-256 of the content, as in files of earlier versions; None if not possible."""
    try:
        document = json.loads(edit.content or b"")
        del document["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Edit(edit.path, f"{edit.what}, without its SHA-256", json.dumps(document, indent=1).encode())


def _database_edits(name: str, path: Path) -> Iterator[Edit]:
    """Empties and drops each table, and sets each column to null, to a text and to another number."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        columns = {table: [row[1] for row in database.execute(f"pragma table_info({table})")] for table in tables}
        filled = {table for table in tables if database.execute(" ".join(["select 1 from", table])).fetchone()}
    for table in tables:
        yield _sql(name, path, "drop table", table)
        if table not in filled:
            continue
        yield _sql(name, path, "delete from", table)
        yield _sql(name, path, "delete from", table, "where rowid = (select max(rowid) from", table, ")")
        for column in columns[table]:
            for value in ("null", "'other'", f"{column} + 1"):
                yield _sql(name, path, "update or ignore", table, "set", column, "=", value)


def _sql(name: str, path: Path, *words: str) -> Edit:
    statement = " ".join(words)
    copy = path.with_name("edited.tmp")
    shutil.copy2(path, copy)
    with contextlib.closing(sqlite3.connect(copy)) as database:
        database.execute("pragma ignore_check_constraints = on")
        with contextlib.suppress(sqlite3.IntegrityError):
            database.execute(statement)
        database.commit()
    content = copy.read_bytes()
    copy.unlink()
    return Edit(name, statement, content)


@dataclass(frozen=True)
class Answer:
    """The result of a command: exit code, output, stderr lines, or the traceback that ended it."""

    code: int
    out: str
    error: list[str]
    crash: str = ""


def answer(command: str, place: Path, data: Path) -> Answer:
    """Runs a command of `COMMANDS` in a place, in the current process."""
    arguments = [part.replace("DATA", str(data)) for part in COMMANDS[command][0]]
    out, error = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = exit_code(arguments)
    except Exception:  # noqa: BLE001 - any is a traceback, which is what is looked for
        return Answer(-1, out.getvalue(), error.getvalue().splitlines(), traceback.format_exc())
    finally:
        os.chdir(before)
    return Answer(code, out.getvalue(), error.getvalue().splitlines())


def content(out: str) -> object:
    """The parsed output without values that are measured on each call."""
    found = json.loads(out)
    if isinstance(found, dict):
        found.pop("disk_bytes", None)
        for trial in found.get("trials", []):
            # A trial that is trained again takes its own time.
            trial.pop("seconds", None)
    return found


def tried(edit: Edit, command: str, whole: Path, place: Path, data: Path, expected: Answer) -> Found:
    """Runs a command after an edit, in a copy of the place, and judges the result against `expected`."""
    copied(whole, place)
    path = place / edit.path
    path.unlink()
    if edit.content is not None:
        path.write_bytes(edit.content)
    found = answer(command, place, data)
    if found.crash:
        return Found("a traceback", found.crash.strip().splitlines()[-1])
    if found.code != 0:
        last = found.error[-1] if found.error else ""
        whole_sentence = last.startswith("busi-tune: ") and last.endswith(".")
        return Found("refused", last) if whole_sentence and not found.out else Found("no sentence", last)
    if content(found.out) != content(expected.out):
        return Found("another answer", found.out[:200])
    notices = [line for line in found.error if line not in expected.error]
    if notices:
        return Found("made again", notices[-1])
    return Found("harmless", reason(edit, command))


def is_wrong(found: Found) -> bool:
    """Whether the outcome is an error: not a refusal, not recreated results, and not a harmless edit with a reason."""
    return found.verdict not in ("refused", "made again") and not (found.verdict == "harmless" and found.detail)


def reason(edit: Edit, command: str) -> str:
    """The reason why a command may ignore an edit, or "" if it must not."""
    if edit.path.endswith(("labels.json", "outcome.json")):
        return "programs elsewhere and the report read it, this command does not; verify compares its hash"
    if edit.what.startswith("sha256 "):
        return "the document is as it was, and only its own SHA-256 is gone" if "removed" in edit.what else ""
    if edit.path.endswith("metrics.json") and edit.what == "removed":
        return "figures that are not there are made, as at the end of a run"
    return next((why for (who, part), why in HARMLESS.items() if who == command and part in edit.path), "")
