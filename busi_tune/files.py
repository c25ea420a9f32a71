"""Atomic writes of files, SHA-256, JSON and CSV, and checks of result folders."""

import csv
import errno
import glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from busi_tune.errors import FileError, RunError

TEMPORARY = ".busi-tune.tmp"
# In a folder of results, the file that locks.py locks.
LOCK = ".lock"
# Files and folders that file managers and operating systems create in any folder, in lower case.
SYSTEM_NAMES = frozenset(
    {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "@eadir", "__macosx", ".localized", "icon\r"}
    | {".spotlight-v100", ".fseventsd", ".trashes", "$recycle.bin", "system volume information", "lost+found"}
)
# Part of each temporary name, because containers that share a folder can have the same process numbers.
TOKEN = secrets.token_hex(4)


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn an OSError inside the block into a FileError that names `path` and the remedy."""
    try:
        yield
    except BrokenPipeError:
        # The reader has closed the pipe, so the file is not at fault.
        raise
    except OSError as error:
        raise FileError(
            f"{path} could not be {action}: {_reason(error)}; fix that and run the same command again."
        ) from error


def _reason(error: OSError) -> str:
    """The reason of an error. If a folder could not be copied, the reason of its first file."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, reason = error.args[0][0]
        return f"{source}: {str(reason).removeprefix('[Errno ').partition('] ')[2] or reason}"
    return error.strerror or str(error)


def temporary_for(path: Path) -> Path:
    """The temporary name under which this process writes `path`. Leftover files with such names are deleted."""
    return path.with_name(f".{path.name}.{os.getpid()}-{TOKEN}{TEMPORARY}")


def leftovers_of(path: Path) -> Iterator[Path]:
    """The temporary files that any process has left while writing `path`."""
    return path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}")


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Delete the temporary files and folders of writers that have ended. Files that are being written stay."""
    for path in paths:
        if path.is_dir():
            remove_folder(path)
            continue
        # A file that cannot be deleted does no harm. On Windows these are also the files that are being written.
        with suppress(OSError), path.open("rb") as file:
            if lock_open(file, wait=False):
                path.unlink(missing_ok=True)


def lock_open(file: BinaryIO, *, wait: bool) -> bool:
    """Lock a file until it is closed. Return False if another process holds the lock; True on systems without locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends without an error. After an error the old file stays.

    If several processes write at the same time, the last one wins. If `path` is a link, its target is replaced.

    Raises:
        FileError: the file system refuses (full, read-only, no permission); nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_for(target)
    with explained(path, "written"):
        remove_leftovers(leftovers_of(target))
        file = _created(temporary)
    try:
        yield file
        with explained(path, "written"):
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                # Windows cannot rename an open file. Elsewhere the file stays locked until it is renamed.
                file.close()
            temporary.replace(target)
            file.close()
            sync_folder(target.parent)
    except BaseException:
        # Closing flushes again, which can fail. The content is discarded anyway.
        with suppress(OSError):
            file.close()
        temporary.unlink(missing_ok=True)
        raise


def _created(temporary: Path) -> BinaryIO:
    """Create a file and lock it, so that no other process deletes it as a leftover."""
    while True:
        file = temporary.open("xb")
        lock_open(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another process deleted the file before it was locked.
        file.close()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, atomically: a crash leaves the complete old file or the complete new one.

    Raises:
        FileError: see `replacing`.
    """
    with replacing(path) as file, explained(path, "written"):
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. Names of files that are not UTF-8 keep their original bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_if_new(path: Path, text: str) -> None:
    """Write `text` as `write_text` does, unless the file has it: a finished result may be on a read-only disk."""
    data = text.encode(errors="surrogateescape")
    with explained(path, "read"):
        same = path.exists() and path.read_bytes() == data
    if not same:
        write_bytes(path, data)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; floats keep every digit."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def csv_line(values: Iterable[object]) -> str:
    """One line of a CSV file, in which values with a carriage return are quoted.

    Python's writer quotes them only if its line end has a carriage return. That line end is replaced afterwards.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows`, at least one, as CSV, atomically. The keys of the first row are the header.

    Floats keep every digit. A file that already has this content is not written again.
    """
    columns = list(rows[0])
    text = csv_line(columns) + "".join(csv_line([row.get(name, "") for name in columns]) for row in rows)
    write_if_new(path, text)


def refuse_other_separators(path: Path) -> None:
    """Refuse a CSV with semicolons or tabs between its columns, as spreadsheets save it in many European locales.

    Raises:
        FileError: the file has such separators, or cannot be read.
    """
    with explained(path, "read"), path.open("rb") as file:
        head = file.readline(10_000)
    if b"," not in head and (found := re.search(rb"[;\t]", head)):
        name = {b";": "semicolons", b"\t": "tabs"}[found[0]]
        raise FileError(f"{path} separates its columns by {name}; save it as CSV with commas.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileError: the file cannot be read, or does not hold a JSON object.
    """
    with explained(path, "read"):
        text = path.read_bytes()
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); restore it or start over.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} must hold a JSON object, not a {type(value).__name__}; restore it or start over.")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk. Does nothing on Windows, which cannot open folders."""
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
        FileError: a file has this name, or the file system refuses.
    """
    _check_name(folder)
    with explained(folder, "created"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that `make_folder` could not create, without creating it.

    Raises:
        FileError: see `make_folder`.
    """
    _check_name(folder)
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    with explained(folder, "created"):
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_name(folder: Path) -> None:
    if folder.is_file():
        raise FileError(f"{folder} is a file; name a folder.")
    if folder.is_symlink() and not folder.exists():
        target = folder.readlink()
        raise FileError(f"{folder} is a link to {target}, which does not exist; create that, or remove the link.")


def remove_folder(folder: Path) -> None:
    """Delete `folder` and all of its content, if it exists."""
    if folder.exists():
        with explained(folder, "deleted"):
            shutil.rmtree(folder)


def clear_folder(folder: Path, identity: str) -> None:
    """Delete the content of a result folder, except lock files. A folder without the file `identity` is not changed.

    The file `identity` is deleted last, so that a folder that is only partly deleted is still recognised.
    """
    if not (folder / identity).exists():
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == identity):
        if entry.is_dir():
            remove_folder(entry)
        elif not entry.name.endswith(".lock"):
            with explained(entry, "deleted"):
                entry.unlink()


def is_system(name: str) -> bool:
    """Whether a file or folder of this name was left by an operating system: .DS_Store, Thumbs.db, ._x, __MACOSX."""
    return name.casefold() in SYSTEM_NAMES or name.startswith(("._", ".nfs"))


def refuse_foreign(folder: Path, kind: str, identity: str, own: Collection[str]) -> None:
    """Refuse a folder without the file `identity` of a `kind` that holds other files than those named in `own`.

    Lock files, temporary files and files of the operating system are ignored.

    Raises:
        RunError: the folder holds other files.
    """
    if (folder / identity).exists():
        return
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in entries if not name.endswith((".lock", TEMPORARY)) and not is_system(name)]
    others = [name for name in foreign if name not in own]
    if others:
        raise RunError(f"{folder} is not empty and not {kind} (it holds {others[0]}); name another folder.")


def refuse_inside(folder: Path, images: Path) -> None:
    """Refuse a result folder inside the folder of `images`, where it would count as a class.

    Raises:
        RunError: `folder` is inside `images`.
    """
    if folder.resolve().is_relative_to(images.resolve()):
        raise RunError(
            f"{folder} is inside the folder of images, {images}, and would count as a class; name an --out outside it."
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with explained(path, "read"):
        return digest(path)


def digest(path: Path) -> str:
    """The same as `sha256`, but with the original OSError, for callers that collect errors."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def disk_bytes(folder: Path, without: Collection[str] = ()) -> int:
    """The total size of the files in `folder`, in bytes, except those named in `without`.

    A file with several hard links counts once.
    """
    files = (path.lstat() for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return sum({(entry.st_dev, entry.st_ino): entry.st_size for entry in files}.values())
