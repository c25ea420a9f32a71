"""Atomic copies of runs. A copy shares storage with its original if the file system supports hard links."""

import os
import shutil
from pathlib import Path

from busi_tune import files, locks
from busi_tune.errors import BusiTuneError
from busi_tune.results import OPTIONS, REPORT, REPORT_PAGE, SEEDS, SOURCE
from busi_tune.training.run_folder import read_identity

# Files that are not copied: locks, runs of other seeds, options of a command, and reports.
LEFT_OUT = (locks.RUN, "seeds", SEEDS, OPTIONS, REPORT, REPORT_PAGE)


def copy_run(source: Path, target: Path) -> None:
    """Copy the run `source` to `target`, atomically. The two share storage if the file system supports hard links.

    Sharing is safe because files of a run are replaced, never changed in place.
    """
    temporary = files.temporary_for(target)
    files.remove_leftovers(files.leftovers_of(target))
    files.make_folder(target.parent)
    with files.explained(target, "written"):
        try:
            shutil.copytree(source, temporary, copy_function=_link, ignore=shutil.ignore_patterns(*LEFT_OUT))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        temporary.replace(target)
        files.sync_folder(target.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish(run: Path, target: Path) -> list[Path]:
    """Copy a finished run to `target`, replacing a copy of another run.

    If `target` is already a copy of this run, missing and changed files are restored. Returns the restored files.
    """
    if target.exists() and _is_another(run, target):
        files.remove_folder(target)
    if not target.exists():
        copy_run(run, target)
        return []
    names = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    own = [name for name in names if name.parts[0] not in LEFT_OUT and name.name != SOURCE]
    changed = [name for name in own if not _same(run / name, target / name)]
    for name in changed:
        temporary = files.temporary_for(files.make_folder((target / name).parent) / name.name)
        with files.explained(target / name, "written"):
            temporary.unlink(missing_ok=True)
            _link(str(run / name), str(temporary))
            temporary.replace(target / name)
    return [target / name for name in changed]


def _is_another(run: Path, target: Path) -> bool:
    """Whether `target` is another run. A damaged folder counts as the same run, so that it is restored."""
    try:
        return read_identity(target) != read_identity(run)
    except BusiTuneError:
        return False


def _same(one: Path, other: Path) -> bool:
    """Whether two files have the same content. Files that share storage are not read."""
    return other.is_file() and (one.samefile(other) or files.sha256(one) == files.sha256(other))
