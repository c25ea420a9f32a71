"""The runs, studies, cross-validations and exports below a folder: state, key metrics, and the next command."""

import os
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError
from busi_tune.option import shown
from busi_tune.results import (
    CrossvalFile,
    CrossvalIdentityFile,
    DataFile,
    Json,
    ListEntry,
    MetricsFile,
    NestedFile,
    NestedIdentityFile,
    RunIdentityFile,
    StateFile,
    StudyFile,
    TestSummary,
    VerificationFile,
)

Kind = Literal["run", "study", "cross-validation", "nested search", "export"]
# The file that identifies each kind of result. Results inside another result belong to it and are not listed.
MARKS: dict[str, Kind] = {
    "verification.json": "export",
    "study.json": "study",
    results.CROSSVAL: "cross-validation",
    results.NESTED: "nested search",
    results.IDENTITY: "run",
}
BEST = "best"


class Found(NamedTuple):
    """The content of a result folder. `command` continues an unfinished result, or follows a finished one."""

    finished: bool
    detail: str
    test: TestSummary | None
    command: list[str]


def inventory(folder: Path) -> list[ListEntry]:
    """All results in `folder` and its subfolders, in the order of their paths."""
    return [_entry(place, kind) for place, kind in _results(folder)]


def _results(folder: Path) -> Iterator[tuple[Path, Kind]]:
    for name, folders, found in os.walk(folder):
        mark = next((mark for mark in MARKS if mark in found and _is_ours(Path(name, mark))), None)
        folders[:] = [] if mark else sorted(inner for inner in folders if not inner.startswith("."))
        if mark:
            yield Path(name), MARKS[mark]


def _is_ours(path: Path) -> bool:
    """Whether a file is a document of busi-tune; a damaged file counts unless its name is common."""
    try:
        return str(files.read_json(path).get("schema")).startswith("busi-tune.")
    except BusiTuneError:
        # A damaged config.json may belong to any program.
        return path.name != results.IDENTITY


def _entry(place: Path, kind: Kind) -> ListEntry:
    readers = {"run": _run, "study": _study, "cross-validation": _crossval, "nested search": _nested, "export": _export}
    reader = readers[kind]
    try:
        found = reader(place)
        state: Literal["finished", "running", "unfinished", "damaged"] = "finished" if found.finished else "unfinished"
    except BusiTuneError as error:
        found, state = Found(False, str(error), None, []), "damaged"
    if _in_use(place):
        state = "running"
    inside = [entry for path, _, names in os.walk(place) for name in names if (entry := Path(path, name)).is_file()]
    facts = [entry.stat() for entry in inside]
    newest = datetime.fromtimestamp(max((fact.st_mtime for fact in facts), default=0), UTC)
    return {
        "kind": kind,
        "path": str(place),
        "state": state,
        "detail": found.detail,
        "accuracy": found.test["accuracy"] if found.test else None,
        "accuracy_interval": found.test["intervals"].get("accuracy") if found.test else None,
        "macro_f1": found.test["macro_f1"] if found.test else None,
        "macro_f1_interval": found.test["intervals"].get("macro_f1") if found.test else None,
        "size_bytes": sum(fact.st_size for fact in facts),
        "modified": newest.isoformat(timespec="seconds"),
        "next": "" if state == "running" else shlex.join(found.command),
    }


def _in_use(place: Path) -> bool:
    """Whether another process holds the folder's lock. The check creates no lock file."""
    return any(_is_locked(path) for path in (place / locks.RUN, place / locks.STUDY) if path.exists())


def _is_locked(path: Path) -> bool:
    try:
        lock = locks.take(path, wait=False)
    except BusiTuneError:
        # If the lock cannot be opened, the folder is read-only and no process writes to it.
        return False
    if lock is not None:
        lock.release()
    return lock is None


def _run(place: Path) -> Found:
    identity = results.read(place / results.IDENTITY, RunIdentityFile)
    epochs = identity["config"]["epochs"]
    state = results.read(place / results.STATE, StateFile) if (place / results.STATE).exists() else None
    done = len(state["history"]) if state else 0
    if (place / results.METRICS).exists():
        figures = results.read(place / results.METRICS, MetricsFile)
        detail = f"epoch {figures['best_epoch']} of {figures['epochs_run']} kept"
        command = ["busi-tune", "export", str(place), "--out", str(Path("exports", place.name))]
        return Found(True, detail, figures["test"], command)
    return Found(False, f"epoch {done} of at most {epochs}", None, _again("baseline", place, identity["config"]))


def _study(place: Path) -> Found:
    study = results.read(place / "study.json", StudyFile)
    trials = sum(path.name.isdecimal() for path in (place / "trials").glob("*"))
    best = place / BEST
    if (best / results.METRICS).exists():
        figures = results.read(best / results.METRICS, MetricsFile)
        command = ["busi-tune", "export", str(best), "--out", str(Path("exports", place.name))]
        return Found(True, f"{trials} trials by {study['metric']}", figures["test"], command)
    more = ["--trial-epochs", str(study["trial_epochs"]), "--metric", study["metric"], "--pruner", study["pruner"]]
    return Found(False, f"{trials} trials begun", None, [*_again("search", place, study["config"]), *more])


def _crossval(place: Path) -> Found:
    identity = results.read(place / results.CROSSVAL, CrossvalIdentityFile)
    folds = identity["folds"]
    if (place / results.POOLED).exists():
        pooled = results.read(place / results.POOLED, CrossvalFile)["pooled"]
        return Found(True, f"{folds} folds", pooled, ["busi-tune", "compare", str(place), "OTHER"])
    done = len(list(place.glob(f"folds/*/{results.METRICS}")))
    command = [*_again("crossval", place, identity["config"]), "--folds", str(folds)]
    return Found(False, f"{done} of {folds} folds", None, command)


def _nested(place: Path) -> Found:
    identity = results.read(place / results.NESTED, NestedIdentityFile)
    folds = identity["folds"]
    if (place / results.NESTED_VERDICT).exists():
        tuned = results.read(place / results.NESTED_VERDICT, NestedFile)["tuned"]["pooled"]
        return Found(True, f"{folds} folds", tuned, ["busi-tune", "compare", str(place), "OTHER"])
    done = len(list(place.glob(f"studies/*/{BEST}/{results.METRICS}")))
    command = [*_again("search", place, identity["config"]), "--folds", str(folds)]
    return Found(False, f"{done} of {folds} studies", None, command)


def _export(place: Path) -> Found:
    certificate = results.read(place / "verification.json", VerificationFile)
    models = ", ".join(name for name, entry in certificate["models"].items() if entry["passed"])
    command = ["busi-tune", "predict", str(place), "IMAGE"]
    return Found(certificate["passed"], models, certificate["test"], command)


def _again(command: str, place: Path, config: Mapping[str, Json | dict[str, Json]]) -> list[str]:
    """The command that continues a result, with its folder, its images and all options that are not the default."""
    source = next(iter(sorted(place.glob(f"**/{results.SOURCE}"))), None)
    data = results.read(source, DataFile)["folder"] if source else "DIR"
    words = ["busi-tune", command, "--data", data, "--out", str(place)]
    for name, option in Config.options.items():
        value = option.checked(tuple(found) if isinstance(found := config.get(name), list) else found)
        if name not in config or value == option.default:
            continue
        if option.kind is bool:
            words.append(option.flag if value else f"--no-{option.flag[2:]}")
        else:
            words += [option.flag, shown(value)]
    return words
