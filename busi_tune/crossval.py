"""A cross-validation: one run per fold, trained by the same workers as trials, with all predictions pooled."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from busi_tune import files, locks, results
from busi_tune.config import Config, differences
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.dataset import Dataset, open_dataset
from busi_tune.data.folds import Folds, make_folds, read_folds
from busi_tune.data.split import Split
from busi_tune.errors import ConfigError, RunError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, summarise
from busi_tune.evaluation.seeds import spreads
from busi_tune.evaluation.verdict import answers_of
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import (
    CROSSVAL,
    FOLDS,
    POOLED,
    CrossvalFile,
    CrossvalIdentityFile,
    CrossvalResult,
    Json,
    MetricsFile,
)
from busi_tune.training import run_folder, runs
from busi_tune.training.epochs import Epoch
from busi_tune.training.model import checkpoint_bytes
from busi_tune.training.pace import Remaining
from busi_tune.workers import crew, job_list
from busi_tune.workers.jobs import Job, Trained, Workers

FIRST_FILES = frozenset({FOLDS, "folds.excluded.csv"})


def cross_validate(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress,
    *,
    folds_file: Path | None = None,
    overwrite: bool = False,
    trained: Callable[[Epoch], None] | None = None,
) -> CrossvalResult:
    """Train `config` once for each fold of the images in `root`; return the metrics per fold and pooled.

    Each image is predicted once, by a model that has seen neither the image nor a near-duplicate. Further repeats are
    separate cross-validations in `folder/repeats`. The first cross-validation calls `trained` with each new epoch.

    Raises:
        BusiTuneError: see errors.py. Every finished epoch is kept.
    """
    given = _given(folds_file, options)
    with crew.cluster(options.ray):
        resolved = crew.resolved(config, options.workers, options.ray)
        first = _repeat(root, folder, resolved, options, progress, given=given, overwrite=overwrite, trained=trained)
        found = [first]
        for repeat in range(1, options.repeats):
            progress.notice(f"Repeat {repeat + 1} of {options.repeats}:")
            place = folder / "repeats" / str(repeat + 1)
            drawn = resolved.replace(split_seed=resolved.split_seed + repeat)
            found.append(_repeat(root, place, drawn, options, progress, given=None, overwrite=overwrite))
    return {
        "schema": results.SCHEMAS[CrossvalResult],
        "folds": found[0]["folds"],
        "spread": found[0]["spread"],
        "pooled": found[0]["pooled"],
        "repeats": spreads([each["pooled"] for each in found]) if len(found) > 1 else {},
    }


def folds_left(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress,
    *,
    folds_file: Path | None = None,
    overwrite: bool = False,
) -> list[Remaining]:
    """Run the checks of `cross_validate` and count what is left of each fold; nothing is written.

    Raises:
        BusiTuneError: the cross-validation would raise it before its first epoch.
    """
    given = _given(folds_file, options)
    with crew.cluster(options.ray):
        resolved = crew.resolved(config, options.workers, options.ray)
    found: list[Remaining] = []
    for repeat in range(options.repeats):
        place = folder / "repeats" / str(repeat + 1) if repeat else folder
        drawn = resolved.replace(split_seed=resolved.split_seed + repeat)
        found += _remaining(root, place, drawn, options, progress, given=given, anew=overwrite)
    return found


def _remaining(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress,
    *,
    given: Folds | None,
    anew: bool,
) -> list[Remaining]:
    files.refuse_foreign(folder, "a cross-validation", CROSSVAL, FIRST_FILES)
    locks.check_writable(folder, finished="" if anew else POOLED)
    dataset, folds = _open(root, folder, config, progress, count=options.folds, given=given, anew=anew, write=False)
    if (folder / CROSSVAL).exists() and not anew:
        _refuse_other(folder, _identity(config, folds))
    finished = (folder / POOLED).exists() and not anew
    found = []
    for job in _jobs(folder, config, folds).values():
        own = job.data(dataset)
        left = 0 if finished else config.epochs if anew else runs.epochs_left(job.folder, config, own)
        done = 0 if anew else len(run_folder.history(job.folder))
        found.append(
            Remaining(
                name=job.name,
                folder=job.folder,
                dataset=own,
                configs=(config,),
                trainings=1,
                finished=int(not left),
                epochs_done=done,
                epochs=left,
                # The pooled answers are evaluated once more.
                evaluations=0 if finished else 2 if job.folder.name == "1" else 1,
                checkpoints=1,
                checkpoint_bytes=checkpoint_bytes(config, len(dataset.classes)),
            )
        )
    return found


def _given(folds_file: Path | None, options: CrossvalOptions) -> Folds | None:
    """The folds in `folds_file`.

    Raises:
        ConfigError: further repeats would draw other folds.
    """
    if folds_file is None:
        return None
    if options.repeats > 1:
        raise ConfigError(
            f"repeats must be 1 with the folds of {folds_file}, not {options.repeats}; remove one of the two options."
        )
    return read_folds(folds_file)


def _repeat(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress,
    *,
    given: Folds | None,
    overwrite: bool,
    trained: Callable[[Epoch], None] | None = None,
) -> CrossvalFile:
    files.refuse_foreign(folder, "a cross-validation", CROSSVAL, FIRST_FILES)
    with locks.only_writer(folder, finished=POOLED):
        if overwrite:
            files.clear_folder(folder, CROSSVAL)
        dataset, folds = _open(root, folder, config, progress, count=options.folds, given=given)
        # Split all folds before writing, so that a failure leaves no files.
        jobs = _jobs(folder, config, folds)
        _identify(folder, config, folds)
        run_folder.remember_data(folder, root)
        run_folder.remember_options(folder, {key: value for key, value in options.changed().items() if key != "folds"})
        if not (folder / POOLED).exists():
            runs.introduce(config, jobs[1].data(dataset), folder, progress, "Images in the first fold")
            with crew.workers(options.workers, options.ray, dataset, progress, owner=folder) as workers:
                _train(jobs, workers, progress, trained)
            _evaluate(jobs, dataset, progress)
            runs_of = {fold: job.folder for fold, job in jobs.items()}
            results.write(folder / POOLED, pool(folder, runs_of, folds, dataset.classes, config.positive))
        found = results.read(folder / POOLED, CrossvalFile)
        if not (folder / results.CONFUSION).exists():
            # Its import writes a cache of fonts, and a dry run imports this module.
            from busi_tune.report import plots

            plots.plot_pooled(folder, found["pooled"])
        return found


def _open(
    root: Path,
    folder: Path,
    config: Config,
    progress: Progress,
    *,
    count: int,
    given: Folds | None,
    anew: bool = False,
    write: bool = True,
) -> tuple[Dataset, Folds]:
    """The images of `root` with the folds stored in `folder`, else the `given` folds, else new folds.

    With `anew`, the stored folds are ignored. Without `write`, nothing is written to the cache of decoded images.
    """
    path = folder / FOLDS
    stored = path.exists() and not anew
    folds = read_folds(path) if stored else given
    if folds is None:
        dataset = open_dataset(root, config, progress, written_to=path, write=write)
        folds = make_folds(dataset.split, count, config.split_seed)
        return dataset, folds
    if given is not None and given.fingerprint() != folds.fingerprint():
        raise RunError(f"{folder} was begun with other folds; name another --out, or start over with --overwrite.")
    if folds.count != count and not stored:
        raise RunError(f"The file of folds has {folds.count} folds, not {count}; give --folds {folds.count}.")
    if folds.count != count:
        raise RunError(f"{path} has {folds.count} folds, not {count}; give --folds {folds.count}, or another --out.")
    finished = (folder / POOLED).exists() and not anew
    dataset = open_dataset(root, config, progress, saved=_split(folds, 1, config), decode=not finished, write=write)
    return dataset, folds.fitted(dataset.listing)


def _split(folds: Folds, fold: int, config: Config) -> Split:
    """The split of a fold. Validation and training images have the same ratio as in an ordinary split."""
    train, validation, _ = config.fractions
    return folds.split(fold, validation / (train + validation), config.split_seed)


def _identify(folder: Path, config: Config, folds: Folds) -> None:
    """Write the identity of a new cross-validation, or compare it with the stored one.

    Raises:
        RunError: the folder holds the cross-validation of another configuration.
    """
    document = _identity(config, folds)
    if not (folder / CROSSVAL).exists():
        folds.write(folder / FOLDS)
        results.write(folder / CROSSVAL, document)
        return
    _refuse_other(folder, document)


def _identity(config: Config, folds: Folds) -> CrossvalIdentityFile:
    return {
        "schema": results.SCHEMAS[CrossvalIdentityFile],
        "config": config.to_dict(),
        "weights_sha256": run_folder.weights_sha256(config.weights),
        "folds": folds.count,
        "folds_sha256": folds.fingerprint(),
    }


def _refuse_other(folder: Path, document: CrossvalIdentityFile) -> None:
    """Refuse the cross-validation in `folder` if its identity is not `document`."""
    path = folder / CROSSVAL
    known = results.read(path, CrossvalIdentityFile)
    different = differences(*(_values(each, path) for each in (known, document)))
    if known["folds_sha256"] != document["folds_sha256"]:
        different = [*different, f"{FOLDS} was changed"]
    if different:
        raise RunError(
            f"{folder} holds another cross-validation ({'; '.join(different)}); name another --out, "
            "or start over with --overwrite."
        )


def _values(document: CrossvalIdentityFile, path: Path) -> dict[str, Json]:
    """The values of the configuration that decide the result."""
    config = Config.from_dict(document["config"], source=str(path))
    return run_folder.identified(config.identity(), document["weights_sha256"])


def _jobs(folder: Path, config: Config, folds: Folds) -> dict[int, Job]:
    return {
        fold: Job(
            f"fold {fold}", folder / "folds" / str(fold), config, config.epochs, split=_split(folds, fold, config)
        )
        for fold in range(1, folds.count + 1)
    }


def _train(jobs: dict[int, Job], workers: Workers, progress: Progress, trained: Callable[[Epoch], None] | None) -> None:
    """Train all folds to the end.

    Raises:
        BusiTuneError: a fold could not be trained. The other folds are kept.
    """

    def show(event: Trained) -> None:
        record = event.records[-1]
        if trained is not None:
            trained(record)
        detail = f"{event.job.name}: {record.summary(event.job.until)}"
        progress.step(event.job.name, record.epoch, event.job.until, detail)

    failed = job_list.train_all(list(jobs.values()), workers, progress, show=show, keep_model=True)
    for error in failed.values():
        raise error


def _evaluate(jobs: dict[int, Job], dataset: Dataset, progress: Progress) -> None:
    """Evaluate each fold on its test part."""
    from busi_tune.report import plots

    for fold, job in jobs.items():
        with locks.only_writer(job.folder):
            runs.begin(job.folder, job.config, job.data(dataset), progress)
            runs.evaluate_here(job.folder, job.data(dataset), progress)
        plots.plot_run(job.folder, progress)
        progress.step("folds", fold, len(jobs))
    progress.close("folds")


def pool(
    folder: Path, run_folders: Mapping[int, Path], folds: Folds, classes: tuple[str, ...], positive: str | None
) -> CrossvalFile:
    """Write all predictions to predictions.csv in `folder`; return the metrics of each fold and of all predictions.

    `run_folders` maps each fold to its finished run inside `folder`.
    """
    rows = folds.used.reset_index(drop=True)
    labels = np.array([classes.index(name) for name in rows["class"]], dtype=np.int64)
    probabilities = np.empty((len(rows), len(classes)))
    for fold, run in run_folders.items():
        own = rows["fold"] == fold
        probabilities[own] = answers_of(run, rows[own], classes, positive).probabilities
    pooled = Answers(labels, probabilities, classes, positive)
    table = rows[["path", "class", "fold"]].assign(path=rows["path"].map(composed))
    table = table.assign(predicted=np.array(classes)[pooled.predicted])
    table = table.assign(**{f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)})
    columns = [str(name) for name in table]
    answers = [dict(zip(columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]
    files.write_csv(folder / results.PREDICTIONS, answers)
    figures = {fold: results.read(run / results.METRICS, MetricsFile) for fold, run in run_folders.items()}
    return {
        "schema": results.SCHEMAS[CrossvalFile],
        "folds": [
            {
                "fold": fold,
                "run": run_folders[fold].relative_to(folder).as_posix(),
                "best_epoch": found["best_epoch"],
                "epochs_run": found["epochs_run"],
                "test": found["test"],
            }
            for fold, found in figures.items()
        ],
        "spread": spreads([found["test"] for found in figures.values()]),
        "pooled": {**summarise(pooled), **with_intervals(pooled, rows["group"].to_numpy())},
    }
