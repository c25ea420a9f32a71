"""The trials and the outcome of a study, read from the study's files."""

from pathlib import Path

import pandas as pd

from busi_tune import files, results
from busi_tune.errors import FileError
from busi_tune.results import (
    EpochRecord,
    Json,
    OutcomeFile,
    ReportStudy,
    ReportTrial,
    Saving,
    StudyFile,
    VerdictFile,
)
from busi_tune.training import run_folder

IDENTITY, TRIALS, TABLE = "study.json", "trials", "trials.csv"
# The columns of trials.csv that are not parameters.
FACTS = ("number", "state", "value", "epochs_run", "best_epoch", "seconds", "stop_reason")
# Tables of earlier versions lack these.
SCORES = ("val_accuracy", "val_macro_f1")


def read_study(folder: Path) -> ReportStudy:
    """The study in `folder`. A trial without a row in trials.csv counts as running.

    Raises:
        FileError: a file cannot be read or is damaged.
    """
    identity = results.read(folder / IDENTITY, StudyFile)
    lower = identity["metric"] == "val_loss"
    rows = {trial["number"]: trial for trial in _rows(folder)}
    for path in sorted((folder / TRIALS).glob("[0-9]*")) if (folder / TRIALS).is_dir() else []:
        rows.setdefault(int(path.name), _running(int(path.name)))
    trials = [rows[number] for number in sorted(rows)]
    paces = {trial["number"]: _add_curve(trial, folder, identity) for trial in trials}
    outcome = folder / results.OUTCOME
    found = results.read(outcome, OutcomeFile) if outcome.exists() else None
    verdict = folder / results.VERDICT
    states: dict[str, int] = {}
    for trial in trials:
        states[trial["state"]] = states.get(trial["state"], 0) + 1
    return {
        "identity": identity,
        "lower_is_better": lower,
        "states": states,
        "trials": trials,
        "leading": _leading(trials, lower=lower),
        "best": found["best"]["trial"] if found and "best" in found else _best(trials, lower=lower),
        "saving": _saving(trials, paces, identity["trial_epochs"]),
        "outcome": found,
        "verdict": results.read(verdict, VerdictFile) if verdict.exists() else None,
    }


def row_of_trial(run: Path) -> dict[str, str] | None:
    """The row in trials.csv of a run that is a trial of a study, or None for other runs and for running trials."""
    folder = run.resolve()
    table = folder.parent.parent / TABLE
    if folder.parent.name != TRIALS or not folder.name.isdigit() or not table.exists():
        return None
    found = _table(table)
    own = found[found["number"] == str(int(folder.name))]
    return {str(key): str(value) for key, value in own.iloc[0].items()} if len(own) else None


def _table(path: Path) -> pd.DataFrame:
    with files.explained(path, "read"):
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:
            raise FileError(f"{path} is damaged ({str(error).strip()}); run the search again.") from error
    if not set(FACTS) <= set(table.columns) or not table["number"].str.isdigit().all():
        raise FileError(f"{path} must have the columns {', '.join(FACTS)}; run the search again.")
    return table


def _rows(folder: Path) -> list[ReportTrial]:
    path = folder / TABLE
    if not path.exists():
        return []
    table = _table(path)
    params = [str(name) for name in table.columns if name not in (*FACTS, *SCORES)]
    try:
        return [
            {
                "number": int(row["number"]),
                "state": row["state"],
                "value": float(row["value"]) if row["value"] else None,
                "params": {name: _parsed(row[name]) for name in params},
                "epochs_run": int(row["epochs_run"] or 0),
                "best_epoch": int(row["best_epoch"]) if row["best_epoch"] else None,
                "seconds": float(row["seconds"]) if row["seconds"] else None,
                "stop_reason": row["stop_reason"],
                "curve": [],
            }
            for row in table.to_dict("records")
        ]
    except ValueError as error:
        raise FileError(f"{path} is damaged ({error}); run the search again.") from error


def _parsed(text: str) -> Json:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _running(number: int) -> ReportTrial:
    return {
        "number": number,
        "state": "RUNNING",
        "value": None,
        "params": {},
        "epochs_run": 0,
        "best_epoch": None,
        "seconds": None,
        "stop_reason": "",
        "curve": [],
    }


def _add_curve(trial: ReportTrial, folder: Path, identity: StudyFile) -> float | None:
    """Add the metric after each epoch to a trial; return the mean seconds per epoch, or None without a state."""
    run = folder / TRIALS / f"{trial['number']:04d}"
    state = run_folder.read_state(run) if run.is_dir() else None
    if state is None:
        return None
    records: list[EpochRecord] = state["history"][: identity["trial_epochs"]]
    metric = identity["metric"]
    values = {"val_loss": "val_loss", "val_accuracy": "val_accuracy", "val_macro_f1": "val_macro_f1"}
    column = values.get(metric)
    if column is None:
        raise FileError(f"{folder / IDENTITY} names the metric {metric!r}, which no epoch has; restore it.")
    trial["curve"] = [_value(record, column) for record in records]
    if trial["state"] == "RUNNING":
        trial["epochs_run"] = len(records)
    return sum(record["seconds"] for record in records) / len(records)


def _value(record: EpochRecord, column: str) -> float:
    value = dict(record)[column]
    assert isinstance(value, float)
    return value


def _best(trials: list[ReportTrial], *, lower: bool) -> int | None:
    sign = 1 if lower else -1
    complete = [(sign * trial["value"], trial["number"]) for trial in _complete(trials) if trial["value"] is not None]
    return min(complete)[1] if complete else None


def _complete(trials: list[ReportTrial]) -> list[ReportTrial]:
    return [trial for trial in trials if trial["state"] == "COMPLETE" and trial["value"] is not None]


def _leading(trials: list[ReportTrial], *, lower: bool) -> list[float | None]:
    """For each trial, the best value of the complete trials up to it."""
    best: float | None = None
    result: list[float | None] = []
    for trial in trials:
        value = trial["value"]
        if trial["state"] == "COMPLETE" and value is not None:
            better = best is None or (value < best if lower else value > best)
            best = value if better else best
        result.append(best)
    return result


def _saving(trials: list[ReportTrial], paces: dict[int, float | None], most: int) -> Saving:
    lacking = {trial["number"]: max(0, most - trial["epochs_run"]) for trial in trials if trial["state"] == "PRUNED"}
    return {
        "epochs_run": sum(trial["epochs_run"] for trial in trials),
        "epochs_saved": sum(lacking.values()),
        "seconds_run": sum(trial["seconds"] or 0.0 for trial in trials),
        "seconds_saved": float(sum(count * (paces[number] or 0.0) for number, count in lacking.items())),
    }
