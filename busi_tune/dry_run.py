"""The dry run of a command that trains: its checks, and its remaining work and cost as a plan. Nothing is written."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from busi_tune import files, locks, pipeline, results
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.dataset import Dataset, open_dataset
from busi_tune.data.pixel_cache import is_cached
from busi_tune.errors import ConfigError, OutOfMemory
from busi_tune.export_options import ExportOptions
from busi_tune.progress import Progress
from busi_tune.results import PlanFile, PlanStage
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder
from busi_tune.training.pace import Pace, Remaining, measure

# Seconds of one processor, measured on a ResNet18: until a command begins its work, and to compute the intervals of one
# run and draw its pictures.
START, PER_EVALUATION = 1.5, 2.0


def dry_baseline(
    root: Path,
    folder: Path,
    config: Config,
    progress: Progress,
    *,
    seeds: int = 1,
    split_file: Path | None = None,
    overwrite: bool = False,
) -> PlanFile:
    """The plan of `pipeline.baseline` and of `pipeline.more_seeds`.

    Raises:
        BusiTuneError: the command would raise it before its first epoch.
    """
    began = _Begun()
    found = [_run_left(root, folder, config, progress, split_file=split_file, overwrite=overwrite)]
    for seed in range(config.seed + 1, config.seed + seeds):
        place = folder / "seeds" / str(seed)
        found.append(_training(place, found[0].dataset, config.replace(seed=seed), f"seed {seed}", anew=overwrite))
    return _plan("baseline", found, began, progress)


def dry_search(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    baseline_run: Path | None = None,
    split_file: Path | None = None,
    overwrite: bool = False,
) -> PlanFile:
    """The plan of `pipeline.search`.

    Raises:
        BusiTuneError: the command would raise it before its first epoch.
    """
    began = _Begun()
    pipeline.check_options(root, folder, config, options, progress, split_file=split_file)
    from busi_tune.search.remaining import study_left

    study = study_left(
        root,
        folder,
        config,
        options,
        progress,
        baseline_run=baseline_run,
        split_file=split_file,
        overwrite=overwrite,
    )
    return _plan("search", [study], began, progress, workers=options.workers, timeout=options.timeout)


def dry_search_folds(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    folds: int,
    baseline_run: Path | None = None,
    overwrite: bool = False,
) -> PlanFile:
    """The plan of `pipeline.search_folds`.

    Raises:
        BusiTuneError: the command would raise it before its first epoch.
    """
    began = _Begun()
    pipeline.check_search_folds(root, folder, config, options, progress, folds=folds)
    from busi_tune.nested import nested_left

    found = nested_left(
        root, folder, config, options, progress, folds=folds, baseline=baseline_run, overwrite=overwrite
    )
    return _plan("search", found, began, progress, workers=options.workers, timeout=options.timeout)


def dry_crossval(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress,
    *,
    folds_file: Path | None = None,
    overwrite: bool = False,
) -> PlanFile:
    """The plan of `pipeline.crossval`.

    Raises:
        BusiTuneError: the command would raise it before its first epoch.
    """
    began = _Begun()
    pipeline.check_options(root, folder, config, options, progress)
    from busi_tune.crossval import folds_left

    found = folds_left(root, folder, config, options, progress, folds_file=folds_file, overwrite=overwrite)
    return _plan("crossval", found, began, progress, workers=options.workers)


def dry_run_all(
    places: pipeline.Places,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    exported: ExportOptions | None = None,
    split_file: Path | None = None,
    overwrite: bool = False,
) -> PlanFile:
    """The plan of `pipeline.run_all`. The export is checked, but not measured.

    Raises:
        BusiTuneError: the command would raise it before its first epoch.
    """
    began = _Begun()
    pipeline.check_run_all(places, config, options, exported or ExportOptions(), overwrite=overwrite)
    first = _run_left(places.data, places.baseline, config, progress, split_file=split_file, overwrite=overwrite)
    from busi_tune.search.remaining import study_left

    files.refuse_inside(places.study, places.data)
    study = study_left(
        places.data,
        places.study,
        config,
        options,
        progress,
        baseline_run=None,
        split_file=None,
        overwrite=overwrite,
        first=first.dataset,
    )
    plan = _plan("run", [first, study], began, progress, workers=options.workers, timeout=options.timeout)
    return {**plan, "without_export": True}


def _run_left(
    root: Path,
    folder: Path,
    config: Config,
    progress: Progress,
    *,
    split_file: Path | None,
    overwrite: bool,
) -> Remaining:
    """Run the checks of `pipeline.baseline` and count the epochs that are left."""
    files.refuse_inside(folder, root)
    files.refuse_foreign(folder, "a run", results.IDENTITY, run_folder.FIRST_FILES)
    from busi_tune.training.hardware import resolve

    resolved = config.replace(**resolve(config.device, config.precision))
    finished = not overwrite and (folder / results.METRICS).exists()
    if not finished:
        pipeline.check_before_data(resolved, split_file, progress)
    locks.check_writable(folder, finished="" if overwrite else results.METRICS)
    saved = None if overwrite else run_folder.saved_split(folder, config)
    dataset = open_dataset(
        root,
        resolved,
        progress,
        saved=saved,
        split_file=split_file,
        written_to=folder / results.SPLIT,
        decode=not finished,
        write=False,
    )
    return _training(folder, dataset, resolved, "run", anew=overwrite)


def _training(folder: Path, dataset: Dataset, config: Config, name: str, *, anew: bool) -> Remaining:
    from busi_tune.training.model import checkpoint_bytes
    from busi_tune.training.runs import epochs_left

    left = config.epochs if anew else epochs_left(folder, config, dataset)
    evaluated = not left and (folder / results.METRICS).exists() and not run_folder.changed_results(folder)
    return Remaining(
        name=name,
        folder=folder,
        dataset=dataset,
        configs=(config,),
        trainings=1,
        finished=int(not left),
        epochs_done=0 if anew else len(run_folder.history(folder)),
        epochs=left,
        evaluations=int(not evaluated),
        checkpoints=1,
        checkpoint_bytes=checkpoint_bytes(config, len(dataset.classes)),
    )


@dataclass(frozen=True)
class _Begun:
    """The clock and the processor time at the beginning of a dry run."""

    clock: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)


def _plan(
    command: str,
    found: Sequence[Remaining],
    began: _Begun,
    progress: Progress,
    *,
    workers: int = 1,
    timeout: float | None = None,
) -> PlanFile:
    """Measure the speed of each configuration with work left, and write down the plan."""
    from busi_tune.training import hardware
    from busi_tune.training.weights import check_download

    preparation, used = time.perf_counter() - began.clock, time.process_time() - began.processor
    config, dataset = found[0].configs[0], found[0].dataset
    on_cpu = config.device == "cpu"
    lanes = min(workers, os.cpu_count() or 1) if on_cpu else workers
    threads = max(1, hardware.threads() // (workers if on_cpu else 1))
    pace = _paces(threads)
    paces = [_measured(one, pace, progress) if one.epochs or one.evaluations else [] for one in found]
    for one in found:
        if one.epochs and not one.epochs_done:
            check_download(one.configs, progress)
    had = _mean([each.processors for busy in paces for each in busy])
    # On a busy machine, work that was not measured takes longer, too.
    share = min(1.0, had / threads) if had and on_cpu else 1.0
    stages = [_stage(one, busy, lanes) for one, busy in zip(found, paces, strict=True)]
    answers = sum(_answer_seconds(one, busy) for one, busy in zip(found, paces, strict=True))
    rest = PER_EVALUATION * sum(one.evaluations for one in found)
    limit = timeout if timeout is not None else float("inf")
    training = min(sum(stage["seconds"] for stage in stages), limit)
    pruned = min(sum(stage["seconds_with_pruning"] for stage in stages), limit)
    preparation += START / share
    evaluation = answers + rest / share
    memory = [
        each.memory + one.checkpoint_bytes
        for one, busy in zip(found, paces, strict=True)
        for each in busy
        if each.memory
    ]
    cached = all(is_cached(dataset.listing, each.image_size) for each in found[0].configs)
    return {
        "schema": results.SCHEMAS[PlanFile],
        "command": command,
        "stages": stages,
        "device": config.device,
        "precision": config.precision,
        "workers": workers,
        "preparation_seconds": preparation,
        "evaluation_seconds": evaluation,
        "seconds": preparation + training + evaluation,
        "seconds_with_pruning": preparation + pruned + evaluation,
        "processor_seconds": used + START + had * (pruned * lanes + answers) + rest,
        "disk_bytes": sum(stage["disk_bytes"] for stage in stages),
        "cache_bytes": 0 if cached else len(dataset.listing.images) * config.image_size**2 * 3,
        "memory_bytes": max(memory, default=0) * workers or None,
        "gpu_memory_bytes": max([each.gpu_memory or 0 for busy in paces for each in busy], default=0) * workers or None,
        "threads": threads,
        "processors": had or None,
        "without_export": False,
    }


def _answer_seconds(one: Remaining, paces: Sequence[Pace]) -> float:
    """The seconds to answer the images of all evaluations."""
    images = sum(len(one.dataset.split.rows(part)) for part in ("validation", "test"))
    return one.evaluations * images * _mean([pace.answer for pace in paces])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _measured(one: Remaining, pace: Callable[[Config, Dataset], Pace], progress: Progress) -> list[Pace]:
    """The speed of each configuration. In a study, one that cannot be trained is reported, as its trials would be.

    Raises:
        BusiTuneError: no configuration can be trained.
    """
    found, problems = [], []
    for config in one.configs:
        try:
            found.append(pace(config, one.dataset))
        except (ConfigError, OutOfMemory) as error:
            problems.append(error)
    if not found:
        raise problems[0]
    for problem in problems:
        progress.notice(f"Some trials would fail: {problem}")
    return found


def _paces(threads: int) -> Callable[[Config, Dataset], Pace]:
    """A function that measures each configuration once, with this number of threads."""
    from busi_tune.training import hardware

    known: dict[tuple[object, ...], Pace] = {}

    def pace(config: Config, dataset: Dataset) -> Pace:
        key = (config.arch, config.image_size, config.batch_size, len(dataset.split.rows("train")))
        if key not in known:
            every = hardware.threads()
            hardware.confine(threads, None)
            known[key] = measure(config, dataset)
            hardware.confine(every, None)
        return known[key]

    return pace


def _stage(one: Remaining, paces: Sequence[Pace], lanes: int) -> PlanStage:
    epoch = _mean([pace.epoch for pace in paces])
    starts = _mean([pace.start for pace in paces]) * (one.trainings - one.finished)
    rows = {part: len(one.dataset.split.rows(part)) for part in ("train", "validation", "test")}
    return {
        "name": one.name,
        "folder": str(one.folder),
        "images": {"train": rows["train"], "validation": rows["validation"], "test": rows["test"]},
        "steps_per_epoch": _steps(rows["train"], one.configs[0].batch_size),
        "trainings": one.trainings,
        "finished": one.finished,
        "epochs_done": one.epochs_done,
        "epochs_left": one.epochs,
        "seconds_per_epoch": epoch,
        "seconds": (starts + one.epochs * epoch) / lanes,
        "seconds_with_pruning": (starts + (one.epochs - one.saved) * epoch) / lanes,
        "disk_bytes": one.checkpoints * one.checkpoint_bytes,
    }


def _steps(images: int, batch_size: int) -> int:
    from busi_tune.training.batches import batch_sizes

    return len(batch_sizes(images, batch_size))
