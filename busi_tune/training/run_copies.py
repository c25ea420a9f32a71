"""Copies of runs: whole or not there, and sharing storage with the original where the file system can."""

import os
import shutil
from pathlib import Path

from busi_tune import files, locks
from busi_tune.results import IDENTITY


def copy_run(source: Path, target: Path) -> None:
    """Make `target` a copy of the run `source`, all of it or nothing; the two share storage where they can.

    Sharing is safe because no file of a run is ever changed in place.
    """
    temporary = files.temporary_for(target)
    files.remove_leftovers(files.leftovers_of(target))
    files.make_folder(target.parent)
    with files.explained(target, "written"):
        left_out = shutil.ignore_patterns(locks.RUN, "seeds", "seeds.json")
        shutil.copytree(source, temporary, copy_function=_link, ignore=left_out)
        temporary.replace(target)
        files.sync_folder(target.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish(run: Path, target: Path) -> None:
    """Make `target` the copy of a finished run, replacing the copy of another one."""
    identity = IDENTITY
    if target.exists() and (target / identity).read_bytes() != (run / identity).read_bytes():
        files.remove_folder(target)
    if not target.exists():
        copy_run(run, target)
