"""A search from its options to its result: it opens the study, runs the trials and does the final work."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, open_dataset
from busi_tune.errors import RunError, listed, printable
from busi_tune.evaluation.verdict import verdict_of
from busi_tune.progress import Progress
from busi_tune.results import METRICS, VERDICT, OutcomeFile, SearchFinals, SearchResult, VerdictFile
from busi_tune.search import finals
from busi_tune.search.driver import Budget, Driver, Search
from busi_tune.search.importance import importances
from busi_tune.search.plan import IDENTITY, TRIALS, Plan, begun, clear, open_plan, saved_split, trial_rows, weights_of
from busi_tune.search.space import Space, default_space, read_space
from busi_tune.search.storage import Database, server_url
from busi_tune.search.trials import Trials, epochs_run, finished, is_trained, ranked, running
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder, runs
from busi_tune.training.idle_options import never_acted
from busi_tune.training.model import checkpoint_bytes
from busi_tune.workers import crew
from busi_tune.workers.claims import Claims


def search(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    baseline_run: Path | None,
    split_file: Path | None,
    overwrite: bool,
) -> SearchResult:
    """See `pipeline.search`."""
    with ExitStack() as stack:
        stack.enter_context(crew.cluster(options.ray))
        resolved = crew.resolved(config, options.workers, options.ray)
        dimensions = dimensions_of(resolved, options)
        database = Database.of(folder, options.storage, progress)
        files.refuse_foreign(folder, "a study", IDENTITY, run_folder.FIRST_FILES)
        with _study_lock(folder, database, stack):
            if overwrite or not begun(folder):
                _clear(folder, progress)
            saved, place = saved_split(folder), folder / results.SPLIT
            dataset = open_dataset(root, resolved, progress, saved=saved, split_file=split_file, written_to=place)
            plan = plan_of(resolved, dimensions, options, dataset)
            name = open_plan(folder, plan, dataset.split, database)
            _remember(root, folder, options)
            trials = Trials(database, name, plan)
            trials.describe(printable(str(root.resolve())))
            # Decode the images once here, so that workers need not.
            dataset.part("train", resolved.image_size, progress)
            workers = stack.enter_context(crew.workers(options.workers, options.ray, dataset, progress, owner=folder))
            session = Search(folder, plan, dataset, progress, trials, workers, Claims(folder / TRIALS))
            baseline = baseline_run or folder.parent / "baseline"
            finals.adopt_baseline(session, baseline, required=baseline_run is not None)
            files.make_folder(folder / TRIALS)
        budget = Budget(trials=options.trials, seconds=options.timeout, epochs=options.epochs_total)
        _tell_added(trials.all(), progress)
        driver = Driver(session, budget, max(options.keep_trials, options.confirm))
        if not driver.has_work() and locks.is_read_only(folder, results.OUTCOME):
            return _result(session, results.read(folder / results.OUTCOME, OutcomeFile))
        if driver.has_work():
            runs.introduce(resolved, dataset, folder, progress)
            _tell_disk(session, options)
        driver.run()
        return _finish(driver, options)


def _remember(root: Path, folder: Path, options: SearchOptions) -> None:
    """Write the folder of the images and the options that study.json does not hold, for `list`.

    The file of the space is copied, because it may change or move.
    """
    run_folder.remember_data(folder, root)
    if options.space is not None and not (folder / results.SPACE).exists():
        with files.explained(options.space, "read"):
            text = options.space.read_bytes()
        files.write_bytes(folder / results.SPACE, text)
    known = {"trial_epochs", "metric", "space", "pruner", "storage"}
    run_folder.remember_options(folder, {key: value for key, value in options.changed().items() if key not in known})


def plan_of(config: Config, space: Space, options: SearchOptions, dataset: Dataset) -> Plan:
    """The plan of a study around a resolved `config`."""
    return Plan(
        config=config,
        space=space,
        metric=options.metric,
        trial_epochs=options.epochs_of_a_trial(config),
        split=dataset.split.fingerprint(),
        pruner=options.pruner,
        weights=weights_of(config, space),
    )


def dimensions_of(config: Config, options: SearchOptions) -> Space:
    """The search space. The storage URL is checked as well, so that both fail before any work starts.

    Raises:
        ConfigError: the space or the URL is invalid.
    """
    if options.storage is not None:
        server_url(options.storage)
    return read_space(options.space, config) if options.space else default_space(config)


@contextmanager
def _study_lock(folder: Path, database: Database, stack: ExitStack) -> Iterator[None]:
    """Hold the study's lock: for this block if the database is on a server, else until `stack` closes.

    Raises:
        RunError: another driver holds a study on a database file.
    """
    if database.shared:
        with locks.locked(files.make_folder(folder) / locks.STUDY):
            yield
        return
    stack.enter_context(locks.only_writer(folder, name=locks.STUDY, finished=results.OUTCOME))
    yield


def _clear(folder: Path, progress: Progress) -> None:
    for path in folder.glob(f"{TRIALS}/.*.lock"):
        held = locks.take(path, wait=False)
        if held is None:
            raise RunError(f"{folder} is in use by another driver; use --overwrite when all drivers have ended.")
        held.release()
    # A worker outlives a killed driver, and would write its epoch into the new study.
    for path in [*folder.glob(f"{TRIALS}/*/{locks.RUN}"), *folder.glob(f"confirm/*/*/{locks.RUN}")]:
        held = locks.take(path, wait=False)
        if held is None:
            progress.notice(f"{path.parent} is still in use by a worker whose driver was killed; waiting for it.")
            held = locks.take(path, wait=True)
        assert held is not None
        held.release()
    clear(folder)


def _tell_added(trials: Sequence[FrozenTrial], progress: Progress) -> None:
    added = [str(trial.number) for trial in finished(trials) if not is_trained(trial)]
    if added:
        progress.notice(
            f"Trials that were added with their values, and never trained here: {listed(added)}. They inform the "
            "sampler and are never the best; to train them, enqueue their parameters (study.enqueue_trial)."
        )


def checkpoints_of(plan: Plan, classes: int, options: SearchOptions) -> tuple[int, int]:
    """The greatest number of trainings whose checkpoints a study keeps at one time, and the bytes of each.

    They are the best trials, the baseline and the runs in training.
    """
    varied = plan.space.get("arch")
    names = varied.choices if isinstance(varied, CategoricalDistribution) else (plan.config.arch,)
    each = max(checkpoint_bytes(plan.config.replace(arch=name), classes) for name in names)
    keep = max(options.keep_trials, options.confirm)
    # Finalists keep their checkpoints until all finalists are trained, and so do audited trials.
    return keep + 1 + max(options.workers, options.confirm * (options.confirm_seeds - 1), options.audit_pruned), each


def _tell_disk(search: Search, options: SearchOptions) -> None:
    """Announce the disk space for checkpoints."""
    count, each = checkpoints_of(search.plan, len(search.dataset.classes), options)
    search.progress.notice(
        f"The study takes up to {count * each / 1e6:,.0f} MB of disk: checkpoints of {count} trainings, "
        f"{each / 1e6:,.0f} MB each. All other trainings keep only their figures."
    )


def _finish(driver: Driver, options: SearchOptions) -> SearchResult:
    """Do the work after the trials, if this is the last driver to end; else announce that another is still running.

    The work compares the best trial with trial 0, the baseline. The lock on trial 0 ensures that only one driver does
    the work.
    """
    session = driver.search
    outcome: SearchFinals = {}
    judged = -1
    # Drivers that end meanwhile leave their trials to this one, so it repeats the work if new trials have ended.
    while judged < len(finished(trials := session.trials.all())):
        if running(trials) or not session.claims.take(0):
            session.progress.notice(
                f"Another driver is still running in {session.folder}; the last one to end trains the best trial."
            )
            break
        try:
            judged = len(finished(trials))
            outcome = _finals(session, options)
        finally:
            session.claims.release(0)
    driver.clean_up()
    if outcome:
        document: OutcomeFile = {"schema": results.SCHEMAS[OutcomeFile], **outcome}
        results.write(session.folder / results.OUTCOME, document)
    return _result(session, outcome)


def _result(session: Search, outcome: SearchFinals) -> SearchResult:
    return {
        **outcome,
        "schema": results.SCHEMAS[SearchResult],
        "metric": session.plan.metric,
        "trials": trial_rows(finished(session.trials.all()), session.plan),
        "disk_bytes": files.disk_bytes(session.folder, without=(results.REPORT, results.REPORT_PAGE)),
    }


def _finals(session: Search, options: SearchOptions) -> SearchFinals:
    finals.check_trials(session)
    audited = finals.audit_pruning(session, options.audit_pruned) if options.audit_pruned else None
    finalists = finals.confirm(session, options.confirm, options.confirm_seeds) if options.confirm else []
    wanted = [entry["trial"] for entry in finalists] or [
        trial.number for trial in ranked(session.trials.all(), session.plan)
    ]
    finals.write_outcome(session.folder, finalists, audited or [], session.plan.config.seed)
    best = finals.train_best(session, wanted)
    trials, plan = finished(session.trials.all()), session.plan
    trained = [trial for trial in trials if is_trained(trial) and epochs_run(trial)]
    histories = {
        trial.number: run_folder.history(session.trial_folder(trial.number))[: plan.trial_epochs] for trial in trained
    }
    configs = {trial.number: plan.trial_config(trial.params) for trial in trained}
    return {
        "audit": audited,
        "finalists": finalists,
        "best": best,
        "verdict": _verdict(session, sum(trial.state != TrialState.FAIL for trial in trials)),
        "importances": importances(trials, plan.space, plan.direction, plan.config.seed),
        "never_acted": never_acted(histories, configs, plan.space),
    }


def _verdict(session: Search, trials: int) -> VerdictFile | None:
    """Write and return the verdict; None if the baseline could not be trained to the end."""
    baseline = session.trial_folder(0)
    if not (baseline / METRICS).exists():
        return None
    positive = session.plan.config.positive
    found = verdict_of(baseline, session.folder / "best", session.dataset.split, trials, positive=positive)
    results.write(session.folder / VERDICT, found)
    return found
