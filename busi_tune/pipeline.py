"""The work of each command, and of all commands in order. Finished work is not repeated.

Functions import PyTorch and Optuna where needed, so that a finished result is shown without loading them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.audit import GivenSplit, audit
from busi_tune.data.class_folders import check_class_names, find_classes
from busi_tune.data.dataset import (
    Dataset,
    check_strategy,
    open_dataset,
    split_images,
    tell_changes,
    tell_left_out,
    tell_masks,
)
from busi_tune.data.listing import find_names
from busi_tune.data.other_files import check_other_files
from busi_tune.data.phantoms import PLANTED, make_phantoms
from busi_tune.data.pixel_cache import find_decoded
from busi_tune.data.reading import read_folder
from busi_tune.data.split import read_split, refuse_to_replace
from busi_tune.data.twins import THUMBNAIL
from busi_tune.errors import ConfigError, FileError, RunError
from busi_tune.evaluation.seeds import compare_seeds
from busi_tune.export_options import ExportOptions
from busi_tune.progress import BARS, Progress
from busi_tune.report.views import shown_result
from busi_tune.results import (
    AuditFile,
    CrossvalFile,
    CrossvalResult,
    EvaluationFile,
    MetricsFile,
    NestedFile,
    ReportFile,
    RunResult,
    SearchResult,
    SeedsFile,
    SplitResult,
    VerificationFile,
)
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder

if TYPE_CHECKING:
    from busi_tune.external.evaluation import Elsewhere

# Small enough for two cores to run the whole demo in minutes.
DEMO: dict[str, object] = {
    "arch": "resnet18",
    "weights": "none",
    "image_size": 80,
    "epochs": 14,
    "scheduler_patience": 2,
    "early_stopping_patience": 5,
    "trials": 6,
    "trial_epochs": 5,
}


def make_demo(folder: Path, progress: Progress = BARS, seed: int = 0) -> None:
    """Draw the demo's phantoms into `folder`, unless it already holds them.

    Raises:
        RunError: the folder holds something else, or phantoms of another seed. The folder is left unchanged.
    """
    mark = folder / "phantoms.json"
    if mark.exists():
        known = files.read_json(mark).get("seed")
        if known != seed:
            raise RunError(f"{folder} holds the phantoms of seed {known}, not {seed}; name another folder.")
    files.refuse_foreign(folder, "a folder of phantoms", mark.name, ())
    with locks.only_writer(folder):
        files.write_json(mark, {"seed": seed})
        # PLANTED is written last, so its presence shows that all phantoms are complete.
        if not (folder / PLANTED).exists():
            make_phantoms(folder, progress, seed=seed)


def audit_data(
    root: Path,
    folder: Path,
    config: Config,
    progress: Progress = BARS,
    *,
    seed: int = 0,
    split_file: Path | None = None,
) -> AuditFile:
    """Audit the images in `root`, write audit.json and audit.html into `folder`, and return the content of audit.json.

    Raises:
        BusiTuneError: `folder` holds something else or cannot be written, or the images cannot be used.
    """
    from busi_tune.report.audit_page import write_page

    given = GivenSplit.read(split_file) if split_file else None
    check_class_names(find_classes(root), config.classes)
    files.refuse_inside(folder, root)
    names = find_names(root)
    files.refuse_foreign(folder, "an audit", results.AUDIT, {"audit.html"})
    with locks.only_writer(folder):
        reading = read_folder(names, progress)
        tell_masks(reading.listing(), progress)
        found = audit(reading, config.similarity, seed=seed, given=given)
        files.write_json(folder / results.AUDIT, found)
        write_page(folder / "audit.html", found, reading.images)
    return shown_result(found, folder)


def split_data(
    root: Path,
    file: Path,
    config: Config,
    progress: Progress = BARS,
    *,
    patients: Path | None = None,
    asked: Sequence[str] = (),
) -> SplitResult:
    """Split the images in `root`, write the split to `file`, and return each part's numbers of images and groups.

    Raises:
        ConfigError: the folder is already split, and `asked` names options that define how to split it.
        DataError: the folder or the patients file cannot be used.
        FileError: `file` exists and is not a split.
    """
    if file.is_dir():
        raise FileError(f"{file} is a folder; name the file to write.")
    refuse_to_replace(file)
    check_strategy(config)
    if patients is not None:
        with files.explained(patients, "read"):
            patients.open("rb").close()
    check_class_names(find_classes(root), config.classes)
    check_other_files(root, progress)
    listing = find_decoded(root, [THUMBNAIL], progress)
    tell_changes(listing, THUMBNAIL, progress)
    if listing.is_split and asked:
        raise ConfigError(f"{root} is already split; remove {', '.join(asked)}.")
    dataset = split_images(listing, config, progress, patients=patients)
    tell_left_out(dataset, file, progress)
    files.make_folder(file.parent)
    dataset.split.write(file)
    return shown_result(dataset.split.summary(), file.parent)


def baseline(
    root: Path,
    folder: Path,
    config: Config,
    progress: Progress = BARS,
    *,
    split_file: Path | None = None,
    overwrite: bool = False,
    seeds: int = 1,
) -> MetricsFile:
    """Train `config` on the images in `root`, evaluate the best epoch, and return the content of metrics.json.

    `seeds` is the number of trainings that the caller plans with `more_seeds`; `list` repeats it.

    Raises:
        BusiTuneError: see errors.py. The epochs trained so far are kept.
    """
    files.refuse_inside(folder, root)
    files.refuse_foreign(folder, "a run", results.IDENTITY, run_folder.FIRST_FILES)
    if overwrite or not (folder / results.METRICS).exists():
        from busi_tune.training.hardware import resolve

        check_before_data(config.replace(**resolve(config.device, config.precision)), split_file, progress)
    with locks.only_writer(folder, finished=results.METRICS):
        if overwrite:
            run_folder.clear(folder)
        # Compare configuration and data even for a finished run: they may differ from those of this call.
        saved = run_folder.saved_split(folder, config)
        if saved is not None and run_folder.is_finished(folder, config.epochs):
            found = open_dataset(root, config, progress, saved=saved, split_file=split_file, decode=False)
            run_folder.check_classes(folder, run_folder.read_identity(folder), found.classes)
            run_folder.restore_history(folder, progress)
            if not run_folder.changed_results(folder):
                return _shown(folder, progress)
        from busi_tune.training import hardware, runs

        run = runs.open_run(folder, config, root, progress, split_file)
        done = run_folder.history(folder)
        if not run_folder.stop_reason(folder):
            runs.introduce(run.config, run.dataset, folder, progress)
            if done:
                progress.notice(f"{folder} continues after epoch {done[-1].epoch}.")
        processors = hardware.Processors()
        for new, record in enumerate(runs.train(run, run.config.epochs, progress)):
            if not new:
                # Before the first epoch, the folder may not be a run.
                run_folder.remember_options(folder, {"seeds": seeds} if seeds > 1 else {})
            if run.config.device == "cpu" and (lacking := processors.lacking(record.seconds)):
                progress.notice(lacking)
            done.append(record)
            best = max(record.val_accuracy for record in done)
            progress.step("training", record.epoch, run.config.epochs, record.summary(run.config.epochs, best))
        progress.close("training")
        runs.evaluate(run, progress)
        return _shown(folder, progress)


def check_before_data(config: Config, split_file: Path | None, progress: Progress) -> None:
    """Run all checks that need no images, before images are read or an old run is deleted.

    Raises:
        BusiTuneError: the split file, the model or its weights cannot be used.
    """
    if split_file is not None:
        read_split(split_file)
    from busi_tune.training.model import check_model

    check_model(config, progress)


def check_options(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions | CrossvalOptions,
    progress: Progress,
    *,
    split_file: Path | None = None,
) -> None:
    """Run the checks of `search` and `crossval` that need no images.

    Raises:
        BusiTuneError: the options, the folder, the split file, the model or its weights cannot be used.
    """
    options.check(config)
    files.refuse_inside(folder, root)
    check_before_data(config, split_file, progress)


def more_seeds(root: Path, folder: Path, config: Config, seeds: int, progress: Progress = BARS) -> SeedsFile:
    """Train the finished run in `folder` again with the next seeds on the same split, and compare all `seeds` runs.

    The new runs are in `folder/seeds`. The comparison is written to `folder/seeds.json` and returned.
    """
    found = {config.seed: results.read(folder / results.METRICS, MetricsFile)}
    for seed in range(config.seed + 1, config.seed + seeds):
        progress.notice(f"Training {seed - config.seed + 1} of {seeds}, with seed {seed}:")
        found[seed] = baseline(
            root,
            folder / "seeds" / str(seed),
            config.replace(seed=seed),
            progress,
            split_file=folder / results.SPLIT,
        )
    result = compare_seeds(found)
    results.write(folder / results.SEEDS, result)
    return shown_result(result, folder)


def _shown(folder: Path, progress: Progress) -> MetricsFile:
    """The metrics of a finished run. Plots that are missing or changed are redrawn."""
    figures = results.read(folder / results.METRICS, MetricsFile)
    if run_folder.changed_pictures(folder, figures):
        from busi_tune.report import plots

        plots.plot_run(folder, progress)
        figures = results.read(folder / results.METRICS, MetricsFile)
    return shown_result(figures, folder)


def search(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress = BARS,
    *,
    baseline_run: Path | None = None,
    split_file: Path | None = None,
    overwrite: bool = False,
) -> SearchResult:
    """Run a study around `config`, train its best trial to the end, and return all trials and the best one's metrics.

    `baseline_run` must be a finished run of `config`. The default is the folder `baseline` next to `folder`, if that
    is such a run.

    Raises:
        BusiTuneError: see errors.py. Every finished epoch is kept.
    """
    check_options(root, folder, config, options, progress, split_file=split_file)
    from busi_tune.search import session

    found = session.search(
        root,
        folder,
        config,
        options,
        progress,
        baseline_run=baseline_run,
        split_file=split_file,
        overwrite=overwrite,
    )
    return shown_result(found, folder)


def search_folds(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress = BARS,
    *,
    folds: int,
    baseline_run: Path | None = None,
    overwrite: bool = False,
) -> NestedFile:
    """Judge the search around `config` on `folds` outer folds by comparing its pooled predictions with the baseline's.

    `baseline_run` is a cross-validation of `config`. The default is `folder/baseline`, which is created or resumed.

    Raises:
        BusiTuneError: see errors.py. Every finished epoch is kept.
    """
    check_search_folds(root, folder, config, options, progress, folds=folds)
    from busi_tune.nested import search_nested

    found = search_nested(
        root, folder, config, options, progress, folds=folds, baseline=baseline_run, overwrite=overwrite
    )
    return shown_result(found, folder)


def check_search_folds(
    root: Path, folder: Path, config: Config, options: SearchOptions, progress: Progress, *, folds: int
) -> None:
    """Run all checks of `search_folds` that need no images.

    Raises:
        BusiTuneError: the options, the folders or the model cannot be used.
    """
    options.check(config)
    CrossvalOptions(folds=folds).check(config)
    if options.storage:
        raise ConfigError("storage and folds exclude each other: each fold's study is a file in its own folder.")
    files.refuse_inside(folder, root)
    check_before_data(config, None, progress)
    from busi_tune.search.session import dimensions_of
    from busi_tune.training.hardware import resolve

    dimensions_of(config.replace(**resolve(config.device, config.precision)), options)


def crossval(
    root: Path,
    folder: Path,
    config: Config,
    options: CrossvalOptions,
    progress: Progress = BARS,
    *,
    folds_file: Path | None = None,
    overwrite: bool = False,
) -> CrossvalResult:
    """Train `config` once for each fold of the images in `root`; return the metrics per fold and pooled.

    Raises:
        BusiTuneError: see errors.py. Every finished epoch is kept.
    """
    check_options(root, folder, config, options, progress)
    from busi_tune.crossval import cross_validate

    found = cross_validate(root, folder, config, options, progress, folds_file=folds_file, overwrite=overwrite)
    return shown_result(found, folder)


def run_data(run: Path, root: Path | None, progress: Progress) -> Dataset:
    """The dataset of a finished run, from `root` or from the folder that the run recorded; it must be unchanged.

    Results that follow from the run's checkpoint are recomputed if their files are missing or changed.

    Raises:
        RunError: `run` is not a finished run.
        DataError: the data has changed.
        FileError: a file of the run has changed and cannot be recomputed.
    """
    if not (run / results.METRICS).exists() or not run_folder.stop_reason(run):
        best = run / "best"
        hint = f"name {best}" if best.exists() else "finish it with the command that began it"
        raise RunError(f"{run} is not a finished run; {hint}.")
    known = run_folder.read_identity(run)
    place = root or run_folder.remembered_data(run)
    split = run_folder.own_split(run, known)
    found = open_dataset(place, known.config, progress, saved=split)
    run_folder.check_classes(run, known, found.classes)
    run_folder.restore_history(run, progress)
    if run_folder.changed_results(run):
        from busi_tune.training.runs import evaluate_here

        with locks.only_writer(run):
            evaluate_here(run, found, progress)
            _shown(run, progress)
    return found


def export(
    run: Path,
    folder: Path,
    root: Path | None = None,
    progress: Progress = BARS,
    *,
    options: ExportOptions | None = None,
    sign: Path | None = None,
    fold: int | None = None,
    overwrite: bool = False,
) -> VerificationFile:
    """Export a finished run, verify it on its test split, and return the certificate.

    The private key in the file `sign` signs the certificate. A cross-validation is exported as the mean of its
    models' probabilities, or as the run of one `fold`.

    Raises:
        ParityError: the export's predictions differ from PyTorch's. No model file is left.
        ConfigError: `sign` holds no key.
    """
    from busi_tune.inference.signature import Signer

    signer = None if sign is None else Signer(sign)
    runs = {each: run_data(each, root, progress) for each in _runs_of(run, fold)}
    from busi_tune.export import exporter
    from busi_tune.inference import VERIFICATION
    from busi_tune.report.card import model_card

    files.refuse_inside(folder, next(iter(runs.values())).listing.root)
    files.refuse_foreign(folder, "an export", VERIFICATION, exporter.FIRST_FILES)
    with locks.only_writer(folder, finished=VERIFICATION):
        certificate = exporter.export_run(
            runs,
            folder,
            options or ExportOptions(),
            progress,
            card=model_card,
            signer=signer,
            overwrite=overwrite,
        )
    return shown_result(certificate, folder)


def _runs_of(folder: Path, fold: int | None) -> list[Path]:
    """The run in a folder; for a cross-validation, the runs of all folds or of the given fold.

    Raises:
        ConfigError: the fold does not exist.
    """
    if not (folder / results.POOLED).exists():
        if fold is not None:
            raise ConfigError(f"fold needs a finished cross-validation, and {folder} is not one; leave out --fold.")
        return [folder]
    runs = {each["fold"]: folder / each["run"] for each in results.read(folder / results.POOLED, CrossvalFile)["folds"]}
    if fold is not None and fold not in runs:
        raise ConfigError(f"fold must be between 1 and {len(runs)}, the folds of {folder}, not {fold}.")
    return [runs[fold]] if fold is not None else list(runs.values())


def evaluate(
    model: Path, elsewhere: "Elsewhere", folder: Path, progress: Progress = BARS, *, training_data: Path | None = None
) -> EvaluationFile:
    """Evaluate a finished run or an export on labelled images of another source; return the content of evaluation.json.

    `training_data` is the folder of the model's training images. For a run, the default is the folder that it recorded.

    Raises:
        BusiTuneError: see errors.py. Nothing is written.
    """
    from busi_tune.external import candidates
    from busi_tune.external.evaluation import check_place, judge

    check_place(folder, elsewhere.data)
    if candidates.is_run(model):
        root = training_data or run_folder.remembered_data(model, "--training-data")
        candidate = candidates.of_run(model, run_data(model, root, progress), progress)
    else:
        candidate = candidates.of_export(model, training_data, progress)
    return shown_result(judge(candidate, elsewhere, folder, progress), folder)


def report(
    folder: Path, progress: Progress = BARS, *, root: Path | None = None, export: Path | None = None
) -> ReportFile:
    """Write report.html and report.json on the result in `folder` into that folder; return report.json's content.

    `root` is the folder of the images; the default is the one that the result recorded. `export` is an export of the
    run, or of the study's best run, that the report shows as well.

    Raises:
        RunError: `folder` holds no result, or `export` belongs to another result.
        FileError: a file cannot be read, was changed, or cannot be written.
    """
    from busi_tune.report.contents import data_folder, kind_of, read_report
    from busi_tune.report.page import page
    from busi_tune.report.pictures import Album

    kind_of(folder)
    album = Album(root or data_folder(folder), progress)
    document = read_report(folder, album, export)
    results.write(folder / results.REPORT, document)
    files.write_text(folder / results.REPORT_PAGE, page(document, album))
    return shown_result(document, folder)


@dataclass(frozen=True)
class Places:
    """The folders of `run`: the images, and the results of each step."""

    data: Path
    baseline: Path
    study: Path
    export: Path


def check_run_all(
    places: Places, config: Config, options: SearchOptions, exported: ExportOptions, *, overwrite: bool
) -> None:
    """Run the checks of `run_all` that come before the first step.

    Raises:
        ConfigError: the options contradict each other.
        RunError: the export folder has other options.
    """
    options.check(config)
    from busi_tune.search.session import dimensions_of
    from busi_tune.training.hardware import resolve

    space = dimensions_of(config.replace(**resolve(config.device, config.precision)), options)
    if exported.cam:
        from busi_tune.training.class_maps import check_maps

        # Any of the architectures may be the best one.
        for arch in [config.arch, *getattr(space.get("arch"), "choices", ())]:
            check_maps(config.replace(arch=arch))
    if not overwrite:
        from busi_tune.export.exporter import refuse_other_options

        # Refuse now, before hours of training.
        refuse_other_options(places.export, exported)


def run_all(
    places: Places,
    config: Config,
    options: SearchOptions,
    progress: Progress = BARS,
    *,
    exported: ExportOptions | None = None,
    split_file: Path | None = None,
    overwrite: bool = False,
) -> RunResult:
    """Run baseline, search, export with verification, prediction and report in order; return all their results."""
    asked = exported or ExportOptions()
    check_run_all(places, config, options, asked, overwrite=overwrite)
    first = baseline(places.data, places.baseline, config, progress, split_file=split_file, overwrite=overwrite)
    progress.notice(f"Baseline: test accuracy {first['test']['accuracy']:.3f} ({places.baseline}).")
    second = search(
        places.data,
        places.study,
        config,
        options,
        progress,
        baseline_run=places.baseline,
        split_file=places.baseline / results.SPLIT,
        overwrite=overwrite,
    )
    if "best" not in second:
        raise RunError(f"Another driver is using {places.study}; run the same command again when it has ended.")
    best = places.study / "best"
    progress.notice(f"Tuned: test accuracy {second['best']['test']['accuracy']:.3f} ({best}).")
    certificate = export(best, places.export, places.data, progress, options=asked, overwrite=overwrite)
    from busi_tune.inference import open_export, predict_files

    test = list(run_data(best, places.data, progress).split.rows("test")["path"])
    some = test[:: max(1, len(test) // 6)][:6]
    classes = list(first["test"]["per_class"])
    predictions = predict_files(open_export(places.export, 1), [places.data / path for path in some])
    report(places.study, progress, root=places.data, export=places.export)
    document: RunResult = {
        "schema": results.SCHEMAS[RunResult],
        "baseline": first,
        "search": second,
        "export": certificate,
        "predictions": [found.to_entry(classes) for found in predictions],
        "places": {
            "data": str(places.data),
            "baseline": str(places.baseline),
            "study": str(places.study),
            "export": str(places.export),
            "report": str(places.study / results.REPORT_PAGE),
        },
    }
    return shown_result(document, places.study)
