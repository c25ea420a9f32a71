"""The CSV of predictions. It survives an interruption, and can be resumed, appended to, or sent into a pipe."""

import csv
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from busi_tune.errors import FileError
from busi_tune.files import csv_line, explained, lock_open, replacing, sync_folder

STDOUT = Path("-")
PARTIAL = ".partial"
Existing = Literal["refuse", "overwrite", "append"]


@dataclass
class AnswerTable:
    """A CSV that is being written to `file`.

    `kept` is the number of predictions from an interrupted command. `models` has the digests of the models that made
    them, and `failed` is true if one of them is an error.
    """

    path: Path
    file: BinaryIO
    existing: Existing
    columns: Sequence[str] = ()
    kept: int = 0
    models: set[str] = field(default_factory=set)
    failed: bool = False

    def remaining(self, paths: Iterator[Path]) -> Iterator[Path]:
        """The paths that have no prediction yet. The kept predictions must be those of the first paths, in order.

        Raises:
            FileError: the kept predictions are of other paths.
        """
        partial = Path(os.fsdecode(self.file.name))
        with explained(partial, "read"), partial.open("rb") as file:
            os.truncate(partial, _end_of_rows(file))
            file.seek(0)
            rows = csv.DictReader(line.decode(errors="surrogateescape") for line in file)
            for row in rows:
                path = next(paths, None)
                if path is None or str(path) != row.get("path"):
                    raise FileError(
                        f"{partial} has a row for {row.get('path')} where the command names "
                        f"{path or 'no more images'}; name the same images, or start over with --overwrite."
                    )
                self.kept += 1
                self.failed = self.failed or bool(row.get("error"))
                self.models |= {row["model"]} if row.get("model") else set()
            self.columns = rows.fieldnames or ()
        return paths

    def begin(self, columns: Sequence[str], model: str) -> None:
        """Write the header line, unless kept predictions precede the new ones.

        Raises:
            FileError: kept or existing predictions have other columns, or kept ones are of another model.
        """
        others = self.models - {model}
        if others:
            raise FileError(
                f"{self.path}{PARTIAL} holds predictions of the model {others.pop()}, not of {model}; use the same "
                "model, or start over with --overwrite."
            )
        known = self.columns
        if not known and self.existing == "append" and self.path.exists():
            with explained(self.path, "read"), self.path.open(encoding="utf-8", errors="replace", newline="") as file:
                known = next(csv.reader(file), [])
        if known and list(known) != list(columns):
            raise FileError(
                f"{self.path} has the columns {','.join(known)[:200]}, and this model's predictions have "
                f"{','.join(columns)}; name another file."
            )
        begun, self.columns = bool(self.columns), columns
        if not begun:
            self.write(dict(zip(columns, columns, strict=True)))

    def write(self, row: Mapping[str, object]) -> None:
        """Add a row.

        Raises:
            FileError: the file system refuses.
        """
        with explained(self.path, "written"):
            self.file.write(csv_line([row.get(name, "") for name in self.columns]).encode(errors="surrogateescape"))


def _end_of_rows(file: BinaryIO) -> int:
    """The size in bytes of all complete rows; a kill may have cut off the last row."""
    end = position = quotes = 0
    for line in file:
        position, quotes = position + len(line), quotes + line.count(b'"')
        # A line break within quotes is part of a file name.
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def is_stdout(path: Path) -> bool:
    """Whether `path` is `-` or another name of standard output, such as /dev/stdout."""
    try:
        return path == STDOUT or os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def is_straight(path: Path) -> bool:
    """Whether rows are written directly to `path`, because it is standard output, a pipe or a device."""
    return is_stdout(path) or (path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def answer_table(path: Path, existing: Existing, *, resume: bool) -> Iterator[AnswerTable]:
    """A table of predictions that gets the name `path` when the block ends without an error.

    Until then, and after an interruption, its name has the suffix `.partial`. `existing` decides whether an existing
    table is refused, replaced or extended. With `resume`, the predictions of an interrupted command are kept. Standard
    output, pipes and devices receive each row at once.

    Raises:
        FileError: the existing files do not fit `existing` or `resume`, another command writes the same table, or the
            file system fails.
    """
    if is_straight(path):
        with _straight(path) as file:
            yield AnswerTable(path, file, existing)
        return
    if path.is_dir():
        raise FileError(f"{path} is a folder; name the file to write.")
    # Replace the target of a link, not the link.
    path = Path(os.path.realpath(path))
    partial = path.with_name(path.name + PARTIAL)
    with _alone(path, partial) as file:
        left = partial.stat().st_size > 0
        try:
            _check(path, partial, existing, resume=resume, left=left)
            if left and not resume:
                file.truncate(0)
            table = AnswerTable(path, file, existing)
            yield table
            with explained(path, "written"):
                os.fsync(file.fileno())
            _finish(path, partial, file, existing)
        except BaseException:
            with partial.open("rb") as written:
                next(written, None)
                answers = next(written, b"")
            if not answers:
                partial.unlink()
            raise


@contextmanager
def _straight(path: Path) -> Iterator[BinaryIO]:
    if path == STDOUT:
        sys.stdout.flush()
        with os.fdopen(os.dup(1), "wb", buffering=0) as file:
            yield file
        return
    with explained(path, "written"), path.open("ab", buffering=0) as file:
        yield file


@contextmanager
def _alone(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """The locked file of an incomplete table, created if it does not exist."""
    with explained(path, "written"):
        file = partial.open("ab", buffering=0)
    with file:
        # Between opening and locking, another command may have finished and renamed the file.
        if (
            not lock_open(file, wait=False)
            or not partial.exists()
            or not os.path.samestat(partial.stat(), os.fstat(file.fileno()))
        ):
            raise FileError(f"{path} is being written by another command; wait until it has ended.")
        yield file


def _check(path: Path, partial: Path, existing: Existing, *, resume: bool, left: bool) -> None:
    """Refuse options that do not fit the existing files; `left` is true if an interrupted command left predictions."""
    if resume and not left:
        raise FileError(f"{partial} does not exist, so there is nothing to continue; leave out --resume.")
    if left and not resume and existing != "overwrite":
        raise FileError(
            f"{partial} holds the predictions of an interrupted command; add --resume to continue, or --overwrite to "
            "start over."
        )
    if not path.exists() or not path.stat().st_size or existing == "append":
        return
    if existing == "refuse":
        raise FileError(f"{path} exists; add --overwrite to replace it, --append to add to it, or name another file.")
    if _first_column(path) != "path":
        raise FileError(f"{path} is not a table of predictions, so --overwrite does not replace it; name another file.")


def _first_column(path: Path) -> str:
    """The name of the first column, also in a table saved by a spreadsheet; "" if the file is no table."""
    with explained(path, "read"), path.open("rb") as file:
        start = file.read(1024)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    line = start.decode(encoding, errors="replace").partition("\n")[0].strip()
    first, comma, _ = line.replace(";", ",").replace("\t", ",").partition(",")
    return first.strip('"') if comma else ""


def _finish(path: Path, partial: Path, file: BinaryIO, existing: Existing) -> None:
    """Rename a complete table to `path`, or add its rows to the existing table."""
    if existing == "append" and path.exists() and path.stat().st_size:
        with replacing(path) as whole, explained(path, "written"), path.open("rb") as old, partial.open("rb") as new:
            shutil.copyfileobj(old, whole)
            old.seek(-1, os.SEEK_END)
            whole.write(b"" if old.read() == b"\n" else b"\n")
            new.readline()
            shutil.copyfileobj(new, whole)
        partial.unlink()
        return
    if sys.platform == "win32":
        # Windows cannot rename an open file.
        file.close()
    with explained(path, "written"):
        partial.replace(path)
        sync_folder(path.parent)
