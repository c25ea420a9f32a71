"""The runs, studies, cross-validations and exports below a folder: state, key metrics, and the next command."""

import os
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.errors import BusiTuneError
from busi_tune.option import words
from busi_tune.results import (
    CrossvalFile,
    CrossvalIdentityFile,
    DataFile,
    Json,
    ListEntry,
    MetricsFile,
    NestedFile,
    NestedIdentityFile,
    OptionsFile,
    RunIdentityFile,
    StateFile,
    StudyFile,
    TestSummary,
    VerificationFile,
)
from busi_tune.search_options import SearchOptions

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
    changed = (path.stat().st_mtime for path in place.rglob("*") if path.is_file())
    newest = datetime.fromtimestamp(max(changed, default=0), UTC)
    return {
        "kind": kind,
        "path": str(place),
        "state": state,
        "detail": found.detail,
        "accuracy": found.test["accuracy"] if found.test else None,
        "accuracy_interval": found.test["intervals"].get("accuracy") if found.test else None,
        "macro_f1": found.test["macro_f1"] if found.test else None,
        "macro_f1_interval": found.test["intervals"].get("macro_f1") if found.test else None,
        "size_bytes": files.disk_bytes(place),
        "modified": newest.isoformat(timespec="seconds"),
        "next": "" if state == "running" else shlex.join(found.command),
    }


def _in_use(place: Path) -> bool:
    """Whether another process holds the folder's lock."""
    return any(locks.is_held(place / name) for name in (locks.RUN, locks.STUDY))


def _run(place: Path) -> Found:
    identity = results.read(place / results.IDENTITY, RunIdentityFile)
    epochs = identity["config"]["epochs"]
    state = results.read(place / results.STATE, StateFile) if (place / results.STATE).exists() else None
    done = len(state["history"]) if state else 0
    seeds = int(str(_options(place).get("seeds", 1)))
    again = [*_again("baseline", place, identity["config"]), *(["--seeds", str(seeds)] if seeds > 1 else [])]
    if not (place / results.METRICS).exists():
        return Found(False, f"epoch {done} of at most {epochs}", None, again)
    figures = results.read(place / results.METRICS, MetricsFile)
    if seeds > 1 and not (place / results.SEEDS).exists():
        trained = 1 + len(list(place.glob(f"seeds/*/{results.METRICS}")))
        return Found(False, f"{trained} of {seeds} seeds", figures["test"], again)
    detail = f"epoch {figures['best_epoch']} of {figures['epochs_run']} kept"
    return Found(True, detail, figures["test"], _export_of(place, place, figures["model_sha256"]))


def _study(place: Path) -> Found:
    study = results.read(place / "study.json", StudyFile)
    trials = sum(path.name.isdecimal() for path in (place / "trials").glob("*"))
    best = place / BEST
    if (best / results.METRICS).exists():
        figures = results.read(best / results.METRICS, MetricsFile)
        command = _export_of(place, best, figures["model_sha256"])
        return Found(True, f"{trials} trials by {study['metric']}", figures["test"], command)
    own: dict[str, Json] = {key: study[key] for key in ("trial_epochs", "metric", "pruner")}
    more = [*words(SearchOptions, own | _options(place)), *_space(place)]
    # The URL lacks its password, which BUSI_TUNE_STORAGE or ~/.pgpass has.
    more += ["--storage", study["storage"]] if "storage" in study else []
    return Found(False, f"{trials} trials begun", None, [*_again("search", place, study["config"]), *more])


def _crossval(place: Path) -> Found:
    identity = results.read(place / results.CROSSVAL, CrossvalIdentityFile)
    folds, known = identity["folds"], _options(place)
    places = [place, *(place / "repeats" / str(number) for number in range(2, int(str(known.get("repeats", 1))) + 1))]
    if all((each / results.POOLED).exists() for each in places):
        pooled = results.read(place / results.POOLED, CrossvalFile)["pooled"]
        return Found(True, f"{folds} folds", pooled, ["busi-tune", "report", str(place)])
    done = sum(len(list(each.glob(f"folds/*/{results.METRICS}"))) for each in places)
    more = ["--folds", str(folds), *words(CrossvalOptions, known)]
    return Found(
        False, f"{done} of {folds * len(places)} folds", None, [*_again("crossval", place, identity["config"]), *more]
    )


def _nested(place: Path) -> Found:
    identity = results.read(place / results.NESTED, NestedIdentityFile)
    folds = identity["folds"]
    if (place / results.NESTED_VERDICT).exists():
        tuned = results.read(place / results.NESTED_VERDICT, NestedFile)["tuned"]["pooled"]
        return Found(True, f"{folds} folds", tuned, ["busi-tune", "report", str(place)])
    done = len(list(place.glob(f"studies/*/{BEST}/{results.METRICS}")))
    known = _options(place)
    more = ["--folds", str(folds), *words(SearchOptions, known), *_space(place)]
    more += ["--baseline", str(known["baseline"])] if "baseline" in known else []
    return Found(False, f"{done} of {folds} studies", None, [*_again("search", place, identity["config"]), *more])


def _export(place: Path) -> Found:
    certificate = results.read(place / "verification.json", VerificationFile)
    models = ", ".join(name for name, entry in certificate["models"].items() if entry["passed"])
    command = ["busi-tune", "verify", str(place)] if certificate["passed"] else []
    return Found(certificate["passed"], models, certificate["test"], command)


def _export_of(place: Path, run: Path, model: str) -> list[str]:
    """The command that exports a run under a free name, or that shows the result with its export."""
    for number in count(1):
        export = Path("exports", place.absolute().name if number == 1 else f"{place.absolute().name}-{number}")
        certificate = export / "verification.json"
        if not certificate.exists():
            break
        if files.read_json(certificate).get("source_sha256") == model:
            return ["busi-tune", "report", str(place), "--export", str(export)]
    return ["busi-tune", "export", str(run), "--out", str(export)]


def _options(place: Path) -> dict[str, Json]:
    """The options of the last command on a folder, beyond those in its other files."""
    path = place / results.OPTIONS
    return results.read(path, OptionsFile)["options"] if path.exists() else {}


def _space(place: Path) -> list[str]:
    """The option that names the search space of a study, or of the studies of a nested search."""
    found = sorted([*place.glob(results.SPACE), *place.glob(f"studies/*/{results.SPACE}")])
    return ["--space", str(found[0])] if found else []


def _again(command: str, place: Path, config: Mapping[str, Json | dict[str, Json]]) -> list[str]:
    """The command that continues a result, with its folder, its images and all options that are not the default."""
    source = next(iter(sorted(place.glob(f"**/{results.SOURCE}"), key=lambda path: len(path.parts))), None)
    data = results.read(source, DataFile)["folder"] if source else "DIR"
    return ["busi-tune", command, "--data", data, "--out", str(place), *words(Config, config)]
