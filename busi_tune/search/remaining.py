"""The checks of a search, and the work that is left of its study, without writing anything."""

from itertools import product
from pathlib import Path

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, open_dataset
from busi_tune.errors import RunError
from busi_tune.progress import Progress
from busi_tune.report.study_contents import read_study
from busi_tune.results import METRICS, ReportStudy
from busi_tune.search.finals import cannot_adopt, unlike
from busi_tune.search.plan import IDENTITY, TRIALS, Plan, begun, check_plan, saved_split
from busi_tune.search.pruner import MORE_EPOCHS
from busi_tune.search.session import checkpoints_of, dimensions_of, plan_of
from busi_tune.search.storage import Database
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder
from busi_tune.training.pace import Remaining
from busi_tune.workers import crew

# The share of the epochs that pruners save in studies of 20 trials; see docs/explanation/pruner-evidence.md. That of
# the pruner "stalled" is of the epochs in which it may prune.
SAVED = {"stalled": 0.27, "median": 0.26, "hyperband": 0.14, "none": 0.0}
# Options that change the cost of a training step, and the most combinations of them that are measured.
COSTLY, MOST = ("arch", "image_size", "batch_size"), 6


def study_left(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    baseline_run: Path | None,
    split_file: Path | None,
    overwrite: bool,
    first: Dataset | None = None,
) -> Remaining:
    """Run the checks of `session.search` and count what is left; nothing is written.

    `first` is the dataset of a baseline that will be finished by the time of the search, and becomes trial 0.

    Raises:
        BusiTuneError: the search would raise it before its first epoch.
    """
    with crew.cluster(options.ray):
        resolved = crew.resolved(config, options.workers, options.ray)
    space = dimensions_of(resolved, options)
    database = Database.of(folder, options.storage, progress)
    files.refuse_foreign(folder, "a study", IDENTITY, run_folder.FIRST_FILES)
    if database.shared:
        files.check_folder(folder)
    else:
        locks.check_writable(folder, name=locks.STUDY, finished="" if overwrite else results.OUTCOME)
    anew = overwrite or not begun(folder)
    if overwrite and any(locks.is_held(path) for path in folder.glob(f"{TRIALS}/.*.lock")):
        raise RunError(f"{folder} is in use by another driver; --overwrite it when all of them have ended.")
    saved = None if anew else saved_split(folder)
    place = folder / results.SPLIT
    dataset = first if first is not None and anew else None
    if dataset is None:
        dataset = open_dataset(
            root, resolved, progress, saved=saved, split_file=split_file, written_to=place, write=False
        )
    plan = plan_of(resolved, space, options, dataset)
    if not anew:
        check_plan(folder, plan, database)
    database.check()
    study, adopted = None if anew else read_study(folder), first is not None
    if not study or not study["trials"]:
        problem = "" if adopted else unlike(plan, baseline_run or folder.parent / "baseline")
        if problem and baseline_run is not None:
            raise cannot_adopt(baseline_run, problem)
        adopted = not problem
    trials, done, ended = _trials(folder, study, plan, options, adopted=adopted)
    final, evaluations = _finals(folder, study, plan, options, adopted=adopted, trials=trials)
    count, each = checkpoints_of(plan, len(dataset.classes), options)
    return Remaining(
        name="study",
        folder=folder,
        dataset=dataset,
        configs=_configs(plan),
        trainings=max(options.trials, ended),
        finished=ended + (adopted and not ended),
        epochs_done=done,
        epochs=trials + final,
        evaluations=evaluations,
        checkpoints=count,
        checkpoint_bytes=each,
        saved=trials * _saved_share(plan),
    )


def _trials(
    folder: Path, study: ReportStudy | None, plan: Plan, options: SearchOptions, *, adopted: bool
) -> tuple[int, int, int]:
    """The epochs that trials lack at most, the epochs that they have, and the number of ended trials."""
    known = study["trials"] if study else []
    running = [trial for trial in known if trial["state"] == "RUNNING"]
    done = sum(trial["epochs_run"] for trial in known)
    new = max(0, options.trials - len(known) - (adopted and not known))
    if options.epochs_total is not None:
        # A trial that began within the budget continues.
        new = min(new, -(-max(0, options.epochs_total - done) // plan.trial_epochs))
    open_trials = [trial for trial in running if not run_folder.stop_reason(folder / TRIALS / f"{trial['number']:04d}")]
    left = sum(max(0, plan.trial_epochs - trial["epochs_run"]) for trial in open_trials) + new * plan.trial_epochs
    return left, done, len(known) - len(running)


def _finals(
    folder: Path, study: ReportStudy | None, plan: Plan, options: SearchOptions, *, adopted: bool, trials: int
) -> tuple[int, int]:
    """The epochs after the trials at most, and the number of runs to evaluate."""
    epochs, trial = plan.config.epochs, plan.trial_epochs
    first = _left(folder / TRIALS / "0000", epochs, trial) if study and study["trials"] else epochs - trial
    best = (folder / "best" / METRICS).exists() and study is not None and not trials
    if best and study is not None and study["best"] is not None:
        # The study has ended; a larger number of epochs extends it.
        last = _left(folder / TRIALS / f"{study['best']:04d}", epochs, trial)
        return last + (first if study["best"] else 0), 2 if last else 0
    audited = options.audit_pruned * trial
    confirmed = options.confirm * (epochs - trial + (options.confirm_seeds - 1) * epochs)
    return (0 if adopted else first) + (confirmed or epochs - trial) + audited, 1 + (not adopted)


def _left(run: Path, epochs: int, trial: int) -> int:
    """The epochs that an ended trial lacks up to `epochs`."""
    state = run_folder.read_state(run) if run.is_dir() else None
    done = len(state["history"]) if state else trial
    return 0 if state and state["stop_reason"] == run_folder.EARLY else max(0, epochs - max(done, trial))


def _saved_share(plan: Plan) -> float:
    """The expected share of the trials' epochs that the pruner saves."""
    # The pruner "stalled" waits until the learning rate was lowered and tried.
    waits = plan.config.scheduler_patience + MORE_EPOCHS if plan.pruner == "stalled" else 0
    return SAVED[plan.pruner] * max(0, plan.trial_epochs - waits) / plan.trial_epochs


def _configs(plan: Plan) -> tuple[Config, ...]:
    """Configurations of the study that differ in their cost: at most MOST, spread over all combinations."""
    choices = {name: _values(plan.space[name]) for name in COSTLY if name in plan.space}
    every = [plan.trial_config(dict(zip(choices, values, strict=True))) for values in product(*choices.values())]
    return tuple(every[:: -(-len(every) // MOST)])


def _values(distribution: BaseDistribution) -> list[object]:
    """The choices of a parameter, or its lowest, middle and highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    steps = (distribution.high - distribution.low) // distribution.step
    return [*sorted({distribution.low + part * distribution.step for part in (0, steps // 2, steps)})]
