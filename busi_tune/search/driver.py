"""Drives a study: asks, trains, reports, prunes, tells; then trains the best trial to its end."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files
from busi_tune.config import differences
from busi_tune.data.dataset import Dataset
from busi_tune.errors import BusiTuneError, ConfigError, OutOfMemory, RunError, TrainingDiverged
from busi_tune.progress import Progress
from busi_tune.report.plots import plot_run
from busi_tune.search import study as studies
from busi_tune.search.study import Plan
from busi_tune.training import folder as store
from busi_tune.training import run as runs
from busi_tune.training.state import Epoch


@dataclass(frozen=True)
class Search:
    """A study folder that is open for writing; the caller holds its lock."""

    folder: Path
    plan: Plan
    dataset: Dataset
    progress: Progress

    def trial_folder(self, number: int) -> Path:
        """Where a trial is trained: a run of its own."""
        return self.folder / "trials" / f"{number:04d}"


def run_trials(search: Search, trials: int, keep: int) -> list[FrozenTrial]:
    """Run the study until `trials` of them have ended, and return these.

    Only the `keep` best trials keep their checkpoints.

    Raises:
        FileError: the database or a folder cannot be written.
    """
    study = studies.open_study(search.folder, search.plan)
    with studies.storage_errors(search.folder):
        done = studies.finished(study)
        while len(done) < trials:
            _show(search, done, trials)
            _run_trial(search, study, studies.next_trial(study, search.plan))
            done = studies.finished(study)
            _tidy(search, done, keep)
        _tidy(search, done, keep)
    _show(search, done, max(trials, len(done)))
    search.progress.close("trials")
    return done


def _show(search: Search, done: list[FrozenTrial], trials: int) -> None:
    best = studies.ranked(done, search.plan.metric)[:1]
    text = "".join(f"best {search.plan.metric} {trial.value:.4f} (trial {trial.number})" for trial in best)
    search.progress.step("trials", len(done), trials, text)


def _run_trial(search: Search, study: optuna.Study, trial: optuna.Trial) -> None:
    """Train one trial to `trial_epochs`, its own end, or until it is pruned; tell the study which."""
    task = f"trial {trial.number}"
    state, reason, records = TrialState.COMPLETE, "", list[Epoch]()
    try:
        run = _open_trial(search, trial)
        records = runs.history(run.folder)[: search.plan.trial_epochs]
        pruned = _report(search, trial, records)
        if not pruned:
            for record in runs.train(run, search.plan.trial_epochs, search.progress):
                records.append(record)
                pruned = _report(search, trial, records)
                detail = f"{search.plan.metric} {getattr(record, search.plan.metric):.4f}"
                search.progress.step(task, record.epoch, search.plan.trial_epochs, detail)
                if pruned:
                    break
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        reason = "pruned" if pruned else _why(run.folder, records)
    except (TrainingDiverged, ConfigError, OutOfMemory) as error:
        state, reason = TrialState.FAIL, str(error)
        search.progress.notice(f"Trial {trial.number} failed: {error}")
    search.progress.close(task)
    _tell(search, study, trial, state, reason, records)


def _open_trial(search: Search, trial: optuna.Trial) -> runs.Run:
    config = studies.trial_config(search.plan, trial)
    return runs.begin(files.make_folder(search.trial_folder(trial.number)), config, search.dataset, search.progress)


def _why(folder: Path, records: list[Epoch]) -> str:
    """Why a completed trial ended: its own reason, unless it was only its share of epochs."""
    ended = len(runs.history(folder)) == len(records) and runs.stop_reason(folder)
    return ended or "trial epochs done"


def best_so_far(records: list[Epoch], metric: str) -> tuple[float, int]:
    """The best value of `metric` and the epoch that first had it."""
    sign = 1 if studies.METRICS[metric] == StudyDirection.MINIMIZE else -1
    best = min(records, key=lambda record: (sign * getattr(record, metric), record.epoch))
    return float(getattr(best, metric)), best.epoch


def _report(search: Search, trial: optuna.Trial, records: list[Epoch]) -> bool:
    """Report the epochs that the study has not heard of; whether the trial should be pruned now.

    A decision that a kill may have cut off is taken again; earlier ones were "go on", or there were no later epoch.
    """
    known = trial.study.trials[trial.number].intermediate_values
    for count, record in enumerate(records, start=1):
        if record.epoch not in known:
            trial.report(best_so_far(records[:count], search.plan.metric)[0], record.epoch)
    return bool(records) and trial.should_prune()


def _tell(
    search: Search,
    study: optuna.Study,
    trial: optuna.Trial,
    state: TrialState,
    reason: str,
    records: list[Epoch],
) -> None:
    value, epoch = best_so_far(records, search.plan.metric) if records else (None, None)
    facts = {
        "epochs_run": len(records),
        "best_epoch": epoch,
        "seconds": round(sum(record.seconds for record in records), 3),
        "stop_reason": reason,
    }
    for key, fact in facts.items():
        trial.set_user_attr(key, fact)
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)


def _tidy(search: Search, done: list[FrozenTrial], keep: int) -> None:
    """Write trials.csv, and delete the checkpoints of all finished trials but the `keep` best."""
    if not done:
        return
    files.write_csv(search.folder / "trials.csv", studies.trial_rows(done, search.plan.space))
    kept = {trial.number for trial in studies.ranked(done, search.plan.metric)[:keep]}
    for trial in done:
        if trial.number not in kept:
            files.remove_folder(search.trial_folder(trial.number) / "checkpoints")


def adopt_baseline(search: Search, baseline: Path, *, required: bool) -> None:
    """Make a finished baseline run the study's trial 0 as it stands, where that has not begun.

    Raises:
        RunError: it is `required` and is not finished, or is of another configuration or split.
    """
    target = search.trial_folder(0)
    if target.exists():
        return
    problem = _unlike(search, baseline)
    if not problem:
        copy_run(baseline, target)
        search.progress.notice(f"{baseline} is the study's first trial; none of its epochs is trained again.")
    elif required:
        raise RunError(f"{baseline} cannot be the study's first trial: {problem}; name another --baseline.")


def _unlike(search: Search, baseline: Path) -> str:
    if not (baseline / store.METRICS).exists():
        return "it is not a finished run"
    identity = store.read_identity(baseline)
    different = differences(identity.config.to_dict(), search.plan.config.to_dict())
    if different:
        return f"its configuration differs ({'; '.join(different)})"
    return "" if identity.split == search.plan.split else "its split differs"


def copy_run(source: Path, target: Path) -> None:
    """Make `target` a copy of the run `source`, all of it or nothing; the two share storage where they can.

    Sharing is safe because no file of a run is ever changed in place.
    """
    temporary = files.temporary_for(target)
    files.remove_folder(temporary)
    files.make_folder(target.parent)
    with files.explained(target, "written"):
        shutil.copytree(
            source, temporary, copy_function=_link, ignore=shutil.ignore_patterns(".lock", "seeds", "seeds.json")
        )
        temporary.replace(target)
        files.sync_folder(target.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def train_best(search: Search, done: list[FrozenTrial]) -> dict[str, Any]:
    """Go on with the best trial to its own end, evaluate it, and publish it as `best/`; its figures.

    Raises:
        BusiTuneError: no trial completed.
    """
    order = studies.ranked(done, search.plan.metric)
    if not order:
        raise BusiTuneError(f"None of the {len(done)} trials in {search.folder} completed; see its trials.csv for why.")
    best = order[0]
    folder = search.trial_folder(best.number)
    run = runs.begin(folder, studies.trial_config(search.plan, best), search.dataset, search.progress)
    for record in runs.train(run, run.config.epochs, search.progress):
        detail = f"{search.plan.metric} {getattr(record, search.plan.metric):.4f}"
        search.progress.step(f"best trial ({best.number})", record.epoch, run.config.epochs, detail)
    search.progress.close(f"best trial ({best.number})")
    figures = runs.evaluate(run, search.progress)
    plot_run(folder)
    publish(folder, search.folder / "best")
    return figures | {"trial": best.number, "params": best.params, "value": best.value}


def publish(run: Path, target: Path) -> None:
    """Make `target` the copy of a finished run, replacing the copy of another one."""
    identity = store.IDENTITY
    if target.exists() and (target / identity).read_bytes() != (run / identity).read_bytes():
        files.remove_folder(target)
    if not target.exists():
        copy_run(run, target)
