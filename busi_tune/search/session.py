"""A search from its options to its result: opened, run, and brought to its end."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from busi_tune import files
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, open_dataset
from busi_tune.errors import ConfigError, RunError
from busi_tune.evaluation.verdict import verdict_of
from busi_tune.progress import Progress
from busi_tune.search import finals, space, studies
from busi_tune.search.driver import NEEDED, Budget, Driver, Search
from busi_tune.search.importance import importances, never_acted
from busi_tune.search.ledger import Ledger
from busi_tune.search.search_options import SearchOptions
from busi_tune.search.storage import Database, server_url
from busi_tune.training import runs
from busi_tune.training.hardware import resolve
from busi_tune.training.run_folder import FIRST_FILES, METRICS
from busi_tune.workers.jobs import Here, Workers
from busi_tune.workers.processes import Processes

Result = dict[str, Any]


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
) -> Result:
    """See `pipeline.search`."""
    with ExitStack() as stack:
        if options.ray is not None:
            stack.enter_context(_cluster(options.ray))
        resolved = _resolved(config, options)
        dimensions = dimensions_of(resolved, options)
        database = Database.of(folder, options.storage, progress)
        files.refuse_foreign(folder, "a study", studies.IDENTITY, FIRST_FILES)
        files.make_folder(folder)
        if not database.shared:
            stack.enter_context(files.only_writer(folder))
        with files.locked(folder / ".begin.lock"):
            if overwrite or not studies.begun(folder):
                _clear(folder, progress)
            stack.callback(os.close, _present(folder))
            dataset = open_dataset(root, resolved, progress, saved=studies.saved_split(folder), split_file=split_file)
            plan = studies.Plan(
                config=resolved,
                space=dimensions,
                metric=options.metric,
                trial_epochs=options.trial_epochs,
                split=dataset.split.fingerprint(),
                pruner=options.pruner,
            )
            ledger = Ledger(database, studies.check_plan(folder, plan, dataset.split, database), plan)
            # Decoded here, once, and not by every worker.
            dataset.part("train", resolved.image_size, progress)
            workers = stack.enter_context(_workers(options, dataset, progress))
            session = Search(folder, plan, dataset, progress, ledger, workers)
            baseline = baseline_run or folder.parent / "baseline"
            finals.adopt_baseline(session, baseline, required=baseline_run is not None)
            files.make_folder(folder / studies.TRIALS)
        budget = Budget(trials=options.trials, seconds=options.timeout, epochs=options.epochs_total)
        driver = Driver(session, budget, max(options.keep_trials, options.confirm))
        driver.run()
        return _finish(driver, options)


def dimensions_of(config: Config, options: SearchOptions) -> space.Space:
    """What the study varies; with the storage's URL, all that can be wrong before anything starts.

    Raises:
        ConfigError: something is.
    """
    if options.storage is not None:
        server_url(options.storage)
    return space.read_space(options.space, config) if options.space else space.default_space(config)


def _present(folder: Path) -> int:
    """What each driver holds while it is at work on a study."""
    claim = files.take_lock(folder / ".drivers.lock", wait=True, shared=True)
    assert claim is not None
    return claim


def _clear(folder: Path, progress: Progress) -> None:
    claim = files.take_lock(folder / ".drivers.lock", wait=False)
    if claim is None:
        raise RunError(f"{folder} is in use by another driver; --overwrite it when all of them have ended.")
    # Workers outlive a driver that is killed, and would write their epoch into the new study.
    for lock in [*folder.glob(f"{studies.TRIALS}/*/.lock"), *folder.glob("confirm/*/*/.lock")]:
        held = files.take_lock(lock, wait=False)
        if held is None:
            progress.notice(f"{lock.parent} is still in use by a worker whose driver was killed; waiting for it.")
            held = files.take_lock(lock, wait=True)
        assert held is not None
        os.close(held)
    studies.clear(folder)
    os.close(claim)


def _cluster(address: str) -> AbstractContextManager[None]:
    if find_spec("ray") is None:
        raise ConfigError("ray is not installed; pip install 'busi-tune[ray]'.")
    from busi_tune.workers.ray_actors import cluster

    return cluster(address)


def _resolved(config: Config, options: SearchOptions) -> Config:
    if options.ray is None:
        return resolve(config)
    from busi_tune.workers.ray_actors import resolve_there

    return resolve_there(config, options.workers)


@contextmanager
def _workers(options: SearchOptions, dataset: Dataset, progress: Progress) -> Iterator[Workers]:
    workers: Workers
    if options.ray is not None:
        from busi_tune.workers.ray_actors import RayActors

        workers = RayActors(options.workers, dataset, progress)
    elif options.workers > 1:
        workers = Processes(options.workers, dataset, progress)
    else:
        workers = Here(dataset, progress)
    try:
        yield workers
    finally:
        workers.close()


def _finish(driver: Driver, options: SearchOptions) -> Result:
    """What follows the trials, done by the last driver to end: the others say who is still at work."""
    session = driver.search
    ledger, result, judged = session.ledger, Result(), -1
    # Whoever ends meanwhile leaves its trials to this driver, so they are looked for again in the end.
    while judged < len(session.finished()):
        claim = None if ledger.running else files.take_lock(session.folder / ".finals.lock", wait=False)
        if claim is None:
            at_work = f"Another driver is still at work on {session.folder}; the last to end trains the best."
            session.progress.notice(at_work)
            break
        try:
            judged = len(session.finished())
            with files.locked(session.folder / NEEDED):
                result = _finals(session, options) | _learnt(session)
        finally:
            os.close(claim)
        ledger.read()
    driver.clean_up()
    rows = studies.trial_rows(session.finished(), session.plan.space)
    told = {"metric": session.plan.metric, "trials": rows, "disk_bytes": files.disk_bytes(session.folder)}
    return told | result


def _finals(session: Search, options: SearchOptions) -> Result:
    audited = finals.audit_pruning(session, options.audit_pruned) if options.audit_pruned else None
    finalists = finals.confirm(session, options.confirm, options.confirm_seeds) if options.confirm else []
    wanted = [entry["trial"] for entry in finalists] or [trial.number for trial in session.ranked()]
    return {"audit": audited, "finalists": finalists, "best": finals.train_best(session, wanted)}


def _learnt(session: Search) -> Result:
    """What the study says beyond its best trial: the verdict, which is written, and what mattered."""
    trials, plan = session.finished(), session.plan
    found = None
    if (session.trial_folder(0) / METRICS).exists():
        judged = sum(trial.state != TrialState.FAIL for trial in trials)
        found = verdict_of(session.trial_folder(0), session.folder / "best", session.dataset.split, judged)
        files.write_json(session.folder / "verdict.json", found)
    histories = {
        trial.number: runs.history(session.trial_folder(trial.number))[: plan.trial_epochs] for trial in trials
    }
    configs = {trial.number: studies.trial_config(plan, trial) for trial in trials}
    return {
        "verdict": found,
        "importances": importances(trials, plan.space, studies.METRICS[plan.metric], plan.config.seed),
        "never_acted": never_acted(histories, configs, plan.space),
    }
