"""The work after the trials: finalists with more seeds, the audit of pruned trials, and the published best trial."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files, locks, results
from busi_tune.config import differences
from busi_tune.errors import BusiTuneError, FileError, RunError
from busi_tune.results import METRICS, AuditedTrial, BestTrial, Finalist, MetricsFile
from busi_tune.search.driver import Search, best_so_far, show_epoch
from busi_tune.search.plan import Plan, value_of
from busi_tune.search.pruner import best_values
from busi_tune.search.trials import FINGERPRINT, fingerprint, finished, is_trained, ranked
from busi_tune.training import run_folder, runs
from busi_tune.training.run_copies import copy_run, publish
from busi_tune.workers import job_list
from busi_tune.workers.jobs import Job

# The tables of --confirm and --audit-pruned.
FINALISTS, PRUNED = "finalists.csv", "audit_pruned.csv"


def adopt_baseline(search: Search, baseline: Path, *, required: bool) -> None:
    """Copy a finished baseline run into the study as trial 0, unless trial 0 has already started.

    Raises:
        RunError: the baseline is `required`, but is not finished or has another configuration or split.
    """
    target = search.trial_folder(0)
    if target.exists():
        return
    problem = unlike(search.plan, baseline)
    if not problem:
        copy_run(baseline, target)
        search.progress.notice(f"{baseline} is the study's first trial; none of its epochs is trained again.")
    elif required:
        raise cannot_adopt(baseline, problem)
    elif baseline.exists():
        search.progress.notice(f"{baseline} is not the study's first trial, which is trained again: {problem}.")


def cannot_adopt(baseline: Path, problem: str) -> RunError:
    """The error about a required baseline that has a problem."""
    return RunError(f"{baseline} cannot be the study's first trial: {problem}; name another --baseline.")


def unlike(plan: Plan, baseline: Path) -> str:
    """The reason why the run in `baseline` cannot be the first trial of a study with this plan, or ""."""
    if not (baseline / METRICS).exists():
        return "it is not a finished run"
    try:
        identity = run_folder.read_identity(baseline)
        run_folder.own_split(baseline, identity)
    except FileError as error:
        return str(error).partition(";")[0]
    own = run_folder.identified(plan.config.identity(), plan.weights.get(plan.config.weights, ""))
    different = differences(run_folder.identified(identity.config.identity(), identity.weights_sha256), own)
    if different:
        return f"its configuration differs ({'; '.join(different)})"
    return "" if identity.split == plan.split else "its split differs"


def train_all(search: Search, jobs: Sequence[Job], *, keep_model: bool = False) -> dict[Path, BusiTuneError]:
    """Run `job_list.train_all` with the study's workers. The caller holds the trials' locks."""
    return job_list.train_all(
        jobs, search.workers, search.progress, show=partial(show_epoch, search), keep_model=keep_model
    )


def job_of(search: Search, trial: FrozenTrial, until: int) -> Job:
    """The job that continues a trial up to epoch `until`."""
    config = search.config_of(trial.params)
    return Job(f"trial {trial.number} in full", search.trial_folder(trial.number), config, until)


def check_trials(search: Search) -> None:
    """Compare the ended trials in the database with their folders.

    Raises:
        RunError: a trial's parameters differ from those of its training, or its values contradict each other.
    """
    ended = [trial for trial in finished(search.trials.all()) if trial.state != TrialState.FAIL]
    for trial in ended:
        folder = search.trial_folder(trial.number)
        if not is_trained(trial) and not folder.exists():
            # The trial was added with a value; the search has already printed a notice about it.
            continue
        problem = _contradiction(search, trial)
        if problem:
            raise RunError(
                f"Trial {trial.number} in the database {search.trials.database.name} is not what was trained in "
                f"{folder} ({problem}); restore both, or start over with --overwrite."
            )


def _contradiction(search: Search, trial: FrozenTrial) -> str:
    plan, folder = search.plan, search.trial_folder(trial.number)
    known = run_folder.read_identity(folder)
    if strange := [str(name) for name in trial.params if name not in plan.space]:
        return f"it has the parameter {strange[0]}, which the search space lacks"
    config = plan.trial_config(trial.params)
    own = run_folder.identified(config.identity(), plan.weights.get(config.weights, ""))
    trained = run_folder.identified(known.config.identity(), known.weights_sha256)
    different = differences(trained, own | {"epochs": known.config.epochs})
    if different:
        return "; ".join(different)
    count, reported = trial.user_attrs.get("epochs_run"), trial.intermediate_values
    if type(count) is not int or not 1 <= count <= len(reported):
        return f"it has {count} epochs and {len(reported)} values of them"
    if (trained_epochs := len(run_folder.history(folder))) < count:
        return f"it has {count} epochs, and its folder {trained_epochs}"
    # The reports are compared, not the run's history: training on another machine changes its last digits.
    best = best_values(trial, plan.direction)
    expected = best[max(best)] if trial.state == TrialState.COMPLETE else reported[max(reported)]
    if trial.value != expected:
        return f"its value is {trial.value}, and its epochs reported {expected}"
    recorded = trial.user_attrs.get(FINGERPRINT)
    same = recorded in (None, fingerprint(trial.state, trial.params, trial.user_attrs, trial.value))
    return "" if same else "its values have another SHA-256"


def confirm(search: Search, count: int, seeds: int) -> list[Finalist]:
    """Train the `count` best trials to the end, each with `seeds` seeds; return them with the best mean first.

    A finalist that fails with any seed is left out. The first seed is the study's seed, whose run continues the trial
    itself.
    """
    chosen = ranked(search.trials.all(), search.plan)[:count]
    jobs = {trial.number: _seed_jobs(search, trial, seeds) for trial in chosen}
    with search.claims.holding(jobs):
        failed = train_all(search, [job for some in jobs.values() for job in some])
        found = []
        for number, some in jobs.items():
            if failed.keys() & {job.folder for job in some}:
                continue
            values = [best_so_far(run_folder.history(job.folder), search.plan)[0] for job in some]
            for job in some[1:]:
                run_folder.forget(job.folder)
            found.append(_finalist(number, values))
    return sorted(found, key=lambda entry: (search.plan.sign * entry["mean"], entry["trial"]))


def _seed_jobs(search: Search, trial: FrozenTrial, seeds: int) -> list[Job]:
    """The jobs of the trial itself, trained to the end, and of the same configuration with the next seeds."""
    own = job_of(search, trial, search.plan.config.epochs)
    jobs = [own]
    for extra in range(1, seeds):
        folder = files.make_folder(search.folder / "confirm" / f"{trial.number:04d}" / str(extra))
        config = own.config.replace(seed=own.config.seed + extra)
        jobs.append(Job(f"trial {trial.number}, seed {config.seed}", folder, config, config.epochs))
    return jobs


def _finalist(number: int, values: list[float]) -> Finalist:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"trial": number, "values": values, "mean": statistics.fmean(values), "standard_deviation": deviation}


def audit_pruning(search: Search, count: int) -> list[AuditedTrial]:
    """Continue `count` pruned trials, drawn at random, to the last epoch of a trial, to measure the cost of pruning.

    The regret of a trial is its improvement over the study's best value, or 0. A trial that fails is left out.
    """
    trials = search.trials.all()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and is_trained(trial)]
    best = ranked(trials, search.plan)[:1]
    generator = np.random.default_rng((search.plan.config.seed, len(pruned)))
    drawn = sorted(generator.choice(len(pruned), min(count, len(pruned)), replace=False).tolist())
    chosen = [pruned[index] for index in drawn]
    found: list[AuditedTrial] = []
    with search.claims.holding(trial.number for trial in chosen):
        failed = train_all(search, [job_of(search, trial, search.plan.trial_epochs) for trial in chosen])
        for trial in chosen:
            folder = search.trial_folder(trial.number)
            if folder in failed:
                continue
            at_end, _ = best_so_far(run_folder.history(folder)[: search.plan.trial_epochs], search.plan)
            entry: AuditedTrial = {
                "trial": trial.number,
                "pruned_at": trial.user_attrs["epochs_run"],
                "value_then": value_of(trial, search.plan.direction),
                "value_at_end": at_end,
                "regret": max(0.0, search.plan.sign * ((best[0].value or 0.0) - at_end)) if best else None,
            }
            found.append(entry)
            run_folder.forget(folder)
    return found


def write_outcome(folder: Path, finalists: Sequence[Finalist], audited: Sequence[AuditedTrial], seed: int) -> None:
    """Write finalists.csv, with a column for each seed from `seed` on, and audit_pruned.csv; skip an empty table."""
    if finalists:
        rows: list[dict[str, object]] = [
            {
                "trial": entry["trial"],
                "mean": entry["mean"],
                "standard_deviation": entry["standard_deviation"],
                **{f"seed_{seed + number}": value for number, value in enumerate(entry["values"])},
            }
            for entry in finalists
        ]
        files.write_csv(folder / FINALISTS, rows)
    if audited:
        files.write_csv(folder / PRUNED, audited)


def train_best(search: Search, wanted: Sequence[int]) -> BestTrial:
    """Train the first of the `wanted` trials that succeeds, and the baseline (trial 0), to the end; evaluate both.

    If a wanted trial fails, the next one is tried. The baseline may fail. The successful trial is published as `best/`.

    Raises:
        BusiTuneError: no wanted trial can be trained to the end.
    """
    trials = {trial.number: trial for trial in finished(search.trials.all())}
    for number in wanted:
        both = [n for n in sorted({0, number}) if trials[n].state != TrialState.FAIL]
        with search.claims.holding(both):
            jobs = [job_of(search, trials[n], search.plan.config.epochs) for n in both]
            failed = train_all(search, jobs, keep_model=True)
            figures = {
                n: _evaluated(search, job) for n, job in zip(both, jobs, strict=True) if job.folder not in failed
            }
            if number in figures:
                _publish(search, number)
                best = trials[number]
                return {**figures[number], "trial": number, "params": dict(best.params), "value": best.value}
    raise BusiTuneError(
        f"None of the {len(trials)} trials in {search.folder} could be trained fully; its trials.csv and the notices "
        "above state the reasons."
    )


def _publish(search: Search, number: int) -> None:
    best = search.folder / "best"
    if publish(search.trial_folder(number), best):
        search.progress.notice(f"{best} has been changed; it is copied again.")


def _evaluated(search: Search, job: Job) -> MetricsFile:
    # Its import writes a cache of fonts, and a dry run imports this module.
    from busi_tune.report.plots import plot_run

    with locks.only_writer(job.folder, wait=True):
        known = run_folder.read_identity(job.folder)
        run_folder.refuse_other(job.folder, known, job.config)
        run_folder.own_split(job.folder, known)
        run_folder.plan_epochs(job.folder, known, job.config.epochs)
        runs.evaluate_here(job.folder, search.dataset, search.progress)
        plot_run(job.folder, search.progress)
    return results.read(job.folder / METRICS, MetricsFile)
