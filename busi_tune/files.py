"""Files that are either whole or not there: atomic writes, SHA-256, JSON and CSV."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from busi_tune.errors import FileError, RunError

TEMPORARY = ".busi-tune.tmp"


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn an OSError inside into a FileError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{path} could not be {action}: {_reason(error)}; mend that and run the same command again."
        ) from error


def _reason(error: OSError) -> str:
    """The reason of an error; of copying a folder, that of its first file."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, reason = error.args[0][0]
        return f"{source}: {str(reason).removeprefix('[Errno ').partition('] ')[2] or reason}"
    return error.strerror or str(error)


def temporary_for(path: Path) -> Path:
    """What `path` is called until it is whole; a name that nobody else gives, for leftovers are deleted."""
    return path.with_name(f".{path.name}{TEMPORARY}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the new one, never a part.

    Raises:
        FileError: the file system refuses (full, read-only, no permission); nothing is left behind.
    """
    temporary = temporary_for(path)
    with explained(path, "written"):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; in the name of a file that is not UTF-8 its own bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; floats keep every digit."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows`, at least one, as CSV with their keys as the header, atomically; floats keep every digit.

    A file that holds them already is left as it is.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with explained(path, "read"):
        same = path.exists() and path.read_bytes() == text.getvalue().encode(errors="surrogateescape")
    if not same:
        write_text(path, text.getvalue())


@contextmanager
def csv_stream(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """A function that adds a row to the CSV at `path`, which is there, whole, once the block has ended well.

    Raises:
        FileError: the file system refuses, or anything but a CSV with the same first column is there; nothing is left
            behind.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder; name the file to write.")
    start = f"{columns[0]},".encode()
    if path.exists():
        with explained(path, "read"), path.open("rb") as there:
            found = there.read(len(start))
        if found != start:
            raise FileError(f"{path} would be replaced, and is no table of answers; name another file.")
    temporary = temporary_for(path)
    with explained(path, "written"):
        file = temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")

    def write(row: Mapping[str, object]) -> None:
        with explained(path, "written"):
            writer.writerow(row)

    try:
        write(dict(zip(columns, columns, strict=True)))
        yield write
        with explained(path, "written"), file:
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        # What could not be flushed is not wanted any more.
        with suppress(OSError):
            file.close()
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileError: it cannot be read, or is not a JSON object.
    """
    with explained(path, "read"):
        text = path.read_bytes()
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); restore it or start anew.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} must hold a JSON object, not a {type(value).__name__}; restore it or start anew.")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, on systems that open folders; Windows does not."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents where missing.

    Raises:
        FileError: a file has its name, or the file system refuses.
    """
    if folder.is_file():
        raise FileError(f"{folder} is a file; name a folder.")
    with explained(folder, "created"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete `folder` with all that is in it, where it exists."""
    if folder.exists():
        with explained(folder, "deleted"):
            shutil.rmtree(folder)


def clear_folder(folder: Path, identity: str) -> None:
    """Delete what is in a result folder, known by its file `identity`; a folder without that is left as it is.

    The identity goes last: a kill in between leaves a folder that is still known for what it is.
    """
    if not (folder / identity).exists():
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == identity):
        if entry.is_dir():
            remove_folder(entry)
        elif not entry.name.endswith(".lock"):
            with explained(entry, "deleted"):
                entry.unlink()


def refuse_foreign(folder: Path, kind: str, identity: str, own: Collection[str]) -> None:
    """Refuse a folder that is no `kind`, known by its file `identity`, and holds anything but the files named in `own`.

    Locks, and what a killed writer left half-written, do not count.

    Raises:
        RunError: it does.
    """
    if (folder / identity).exists():
        return
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in entries if name not in own and not name.endswith((".lock", TEMPORARY))]
    if others:
        raise RunError(f"{folder} is not empty and not {kind} (it holds {others[0]}); name another folder.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with explained(path, "read"):
        return digest(path)


def digest(path: Path) -> str:
    """As `sha256`, with the system's own error, for those who gather them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def disk_bytes(folder: Path) -> int:
    """How much the files in `folder` take; a file with several names counts once."""
    files = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum({(entry.st_dev, entry.st_ino): entry.st_size for entry in files}.values())
