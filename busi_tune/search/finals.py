"""What follows the trials: finalists with more seeds, pruned trials trained on, and the best one published."""

import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files
from busi_tune.config import Config, differences
from busi_tune.errors import BusiTuneError, RunError
from busi_tune.report.plots import plot_run
from busi_tune.results import IDENTITY, METRICS
from busi_tune.search import studies
from busi_tune.search.driver import FAILURES, Search, best_so_far, show_epoch
from busi_tune.training import hardware, run_folder, runs
from busi_tune.workers.jobs import Ended, Job, Trained, work_through

Result = dict[str, Any]


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
    elif baseline.exists():
        search.progress.notice(f"{baseline} is not the study's first trial, which is trained anew: {problem}.")


def _unlike(search: Search, baseline: Path) -> str:
    if not (baseline / METRICS).exists():
        return "it is not a finished run"
    identity = run_folder.read_identity(baseline)
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


def train_all(search: Search, jobs: Sequence[Job], *, keep_model: bool = False) -> dict[Path, BusiTuneError]:
    """Train every job to its `until` or its own end; the folders of those that failed as trials do, and why.

    What is known already is not trained again. With `keep_model`, the trained model is wanted and not its learning
    curve alone.

    Raises:
        BusiTuneError: anything else went wrong.
    """
    failed: dict[Path, BusiTuneError] = {}
    rest = iter([job for job in jobs if not _is_trained(job, keep_model)])

    begun = set()

    def trained(event: Trained) -> bool:
        if event.job in begun:
            show_epoch(search, event)
        begun.add(event.job)
        return True

    def ended(event: Ended) -> None:
        search.progress.close(event.job.name)
        if event.error is None:
            return
        if not isinstance(event.error, FAILURES):
            raise event.error
        search.progress.notice(f"{event.job.name.capitalize()} failed: {event.error}")
        failed[event.job.folder] = event.error

    work_through(search.workers, lambda: next(rest, None), trained, ended, search.progress)
    return failed


def _is_trained(job: Job, keep_model: bool) -> bool:
    # Whoever trained it may have been killed in its last step.
    with files.only_writer(job.folder, wait=True):
        run_folder.settle(job.folder)
    if keep_model and not (job.folder / METRICS).exists() and runs.saved_state(job.folder) is None:
        return False
    return len(run_folder.history(job.folder)) >= job.until or bool(run_folder.stop_reason(job.folder))


def job_of(search: Search, trial: FrozenTrial, until: int) -> Job:
    """Training a trial on."""
    config = studies.trial_config(search.plan, trial)
    return Job(f"trial {trial.number} to epoch {until}", search.trial_folder(trial.number), config, until)


def confirm(search: Search, count: int, seeds: int) -> list[Result]:
    """Train the `count` best trials to their ends, each with `seeds` seeds; the best mean first.

    One that fails with any of its seeds is left out. The study's own seed is one of them: that run is the trial itself,
    gone on with.
    """
    finalists = search.ranked()[:count]
    folders = {
        trial.number: [search.trial_folder(trial.number)]
        + [search.folder / "confirm" / f"{trial.number:04d}" / str(k) for k in range(1, seeds)]
        for trial in finalists
    }
    jobs = []
    for trial in finalists:
        own = job_of(search, trial, search.plan.config.epochs)
        jobs.append(own)
        for extra, folder in enumerate(folders[trial.number][1:], start=1):
            config = own.config.replace(seed=own.config.seed + extra)
            jobs.append(
                Job(f"trial {trial.number}, seed {config.seed}", files.make_folder(folder), config, config.epochs)
            )
    failed = train_all(search, jobs)
    result = []
    for trial in finalists:
        if failed.keys() & set(folders[trial.number]):
            continue
        values = [best_so_far(run_folder.history(folder), search.plan.metric)[0] for folder in folders[trial.number]]
        for folder in folders[trial.number][1:]:
            run_folder.forget(folder)
        result.append(
            {
                "trial": trial.number,
                "values": values,
                "mean": statistics.fmean(values),
                "standard_deviation": statistics.stdev(values) if seeds > 1 else None,
            }
        )
    sign = studies.sign_of(search.plan.metric)
    return sorted(result, key=lambda entry: (sign * float(str(entry["mean"])), entry["trial"]))


def audit_pruning(search: Search, count: int) -> list[Result]:
    """Train `count` pruned trials, drawn at random, on to the end of their trials: what pruning them has cost.

    The regret is by how much such a trial would have been better than the study's best, or 0. What fails is left out.
    """
    trials = search.finished()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    best = search.ranked()[:1]
    generator = np.random.default_rng((search.plan.config.seed, len(pruned)))
    drawn = sorted(generator.choice(len(pruned), min(count, len(pruned)), replace=False).tolist())
    chosen = [pruned[index] for index in drawn]
    failed = train_all(search, [job_of(search, trial, search.plan.trial_epochs) for trial in chosen])
    sign = studies.sign_of(search.plan.metric)
    result = []
    for trial in chosen:
        folder = search.trial_folder(trial.number)
        if folder in failed:
            continue
        at_end, _ = best_so_far(run_folder.history(folder)[: search.plan.trial_epochs], search.plan.metric)
        regret = max(0.0, sign * ((best[0].value or 0.0) - at_end)) if best else None
        result.append(
            {
                "trial": trial.number,
                "pruned_at": trial.user_attrs["epochs_run"],
                "value_then": trial.value,
                "value_at_end": at_end,
                "regret": regret,
            }
        )
        run_folder.forget(folder)
    return result


def train_best(search: Search, wanted: Sequence[int]) -> Result:
    """Train the first of the `wanted` trials that can be, and the baseline's, which is 0, to their ends; evaluate both.

    What fails is left out, be it the baseline. The best is published as `best/`.

    Raises:
        BusiTuneError: none of them can be trained to its end.
    """
    trials = {trial.number: trial for trial in search.finished()}
    for number in wanted:
        both = [n for n in sorted({0, number}) if trials[n].state != TrialState.FAIL]
        failed = train_all(
            search, [job_of(search, trials[n], search.plan.config.epochs) for n in both], keep_model=True
        )
        if search.trial_folder(number) not in failed:
            break
    else:
        raise BusiTuneError(
            f"None of the {len(trials)} trials in {search.folder} could be trained to its end; see its trials.csv and "
            "the notices above for why."
        )
    figures = {
        n: _evaluated(search, search.trial_folder(n), studies.trial_config(search.plan, trials[n]))
        for n in both
        if search.trial_folder(n) not in failed
    }
    publish(search.trial_folder(number), search.folder / "best")
    best = trials[number]
    return figures[number] | {"trial": number, "params": best.params, "value": best.value}


def _evaluated(search: Search, folder: Path, config: Config) -> Result:
    with files.only_writer(folder, wait=True):
        if not (folder / METRICS).exists():
            run = runs.begin(folder, config, search.dataset, search.progress)
            here = config.replace(device=hardware.on_this_machine(config.device))
            if here != config:
                search.progress.notice(
                    f"{folder} was trained on {config.device}; here it is evaluated on {here.device}."
                )
            runs.evaluate(replace(run, config=here), search.progress)
        plot_run(folder)
    return files.read_json(folder / METRICS)


def publish(run: Path, target: Path) -> None:
    """Make `target` the copy of a finished run, replacing the copy of another one."""
    identity = IDENTITY
    if target.exists() and (target / identity).read_bytes() != (run / identity).read_bytes():
        files.remove_folder(target)
    if not target.exists():
        copy_run(run, target)
