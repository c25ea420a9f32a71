"""A nested search: each outer fold has a separate study, whose best model predicts the images of that fold only."""

from dataclasses import replace
from pathlib import Path

from busi_tune import files, locks, results
from busi_tune.config import Config
from busi_tune.crossval import cross_validate, folds_left, pool
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.folds import read_folds
from busi_tune.errors import RunError
from busi_tune.evaluation.verdict import answers_of, compare, with_advice
from busi_tune.progress import Progress
from busi_tune.results import (
    FOLDS,
    NESTED,
    NESTED_VERDICT,
    POOLED,
    SPLIT,
    CrossvalFile,
    CrossvalResult,
    FoldChoice,
    FoldFigures,
    NestedFile,
    NestedIdentityFile,
    SearchResult,
)
from busi_tune.search import session
from busi_tune.search.choices import agreement
from busi_tune.search.remaining import study_left
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder
from busi_tune.training.epochs import Epoch
from busi_tune.training.pace import Remaining

# The files of a search that was killed during its cross-validation.
FIRST_FILES = frozenset({"baseline", FOLDS, "folds.excluded.csv"})
JUDGED = (
    "This evaluates the procedure, including the search: a study chose the model of each fold without the fold's "
    "images. It is not the figure of one configuration, because the studies may choose different ones."
)


def search_nested(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    folds: int,
    baseline: Path | None = None,
    overwrite: bool = False,
) -> NestedFile:
    """Cross-validate `config`, run one study per fold without the fold's images, and compare the pooled predictions.

    The cross-validation is in `baseline`, by default `folder/baseline`. A finished cross-validation is reused.

    Raises:
        BusiTuneError: see errors.py. Every finished epoch is kept.
    """
    files.refuse_foreign(folder, "a nested search", NESTED, FIRST_FILES)
    place = baseline or folder / "baseline"
    with locks.only_writer(folder, finished=NESTED_VERDICT):
        if overwrite:
            files.clear_folder(folder, NESTED)
        _refuse_other(folder, place, folds)
        cost = _Cost(config, options, folds, progress)
        done = run_folder.history(place / "folds" / "1")
        if done and not overwrite:
            cost.trained(done[0])
        outer = CrossvalOptions(folds=folds, workers=options.workers, ray=options.ray)
        anew = overwrite and baseline is None
        first = cross_validate(root, place, config, outer, progress, overwrite=anew, trained=cost.trained)
        _identify(folder, place, config)
        _remember(root, folder, options, baseline)
        found: dict[int, SearchResult] = {}
        for fold in range(1, folds + 1):
            study, run = _study(folder, fold), place / "folds" / str(fold)
            progress.notice(f"Fold {fold} of {folds}: its study, which does not use the fold's images, is in {study}.")
            found[fold] = session.search(
                root,
                study,
                config,
                options,
                progress,
                baseline_run=run,
                split_file=run / SPLIT,
                overwrite=False,
            )
        return _judge(folder, place, config, options, first=first, found=found)


def nested_left(
    root: Path,
    folder: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    folds: int,
    baseline: Path | None = None,
    overwrite: bool = False,
) -> list[Remaining]:
    """Run the checks of `search_nested` and count what is left of each fold and each study; nothing is written.

    Raises:
        BusiTuneError: the nested search would raise it before its first epoch.
    """
    files.refuse_foreign(folder, "a nested search", NESTED, FIRST_FILES)
    locks.check_writable(folder, finished="" if overwrite else NESTED_VERDICT)
    place = baseline or folder / "baseline"
    anew = overwrite and baseline is None
    if not overwrite:
        _refuse_other(folder, place, folds)
    outer = CrossvalOptions(folds=folds, workers=options.workers, ray=options.ray)
    first = folds_left(root, place, config, outer, progress, overwrite=anew)
    studies = []
    for number, fold in enumerate(first, start=1):
        split_file = fold.folder / SPLIT
        study = study_left(
            root,
            _study(folder, number),
            config,
            options,
            progress,
            baseline_run=None,
            split_file=split_file if split_file.exists() and not anew else None,
            overwrite=overwrite,
            first=fold.dataset,
        )
        studies.append(replace(study, name=f"study, {fold.name}"))
    return [*(replace(fold, name=f"baseline, {fold.name}") for fold in first), *studies]


def _study(folder: Path, fold: int) -> Path:
    return folder / "studies" / str(fold)


def _refuse_other(folder: Path, place: Path, folds: int) -> None:
    """Refuse a nested search in `folder` that has another number of folds, or other folds than `place`.

    Raises:
        RunError: the folds differ.
    """
    if not (folder / NESTED).exists():
        return
    known = results.read(folder / NESTED, NestedIdentityFile)
    if known["folds"] != folds:
        raise RunError(
            f"{folder} has {known['folds']} folds, not {folds}; give --folds {known['folds']}, or another --out."
        )
    if (place / FOLDS).exists() and read_folds(place / FOLDS).fingerprint() != known["folds_sha256"]:
        raise RunError(f"{folder} was begun with other folds than those of {place}; name another --out or --baseline.")


def _identify(folder: Path, place: Path, config: Config) -> None:
    """Write the identity of a new nested search, with the folds of the cross-validation in `place`."""
    drawn = read_folds(place / FOLDS)
    _refuse_other(folder, place, drawn.count)
    if (folder / NESTED).exists():
        return
    drawn.write(folder / FOLDS)
    document: NestedIdentityFile = {
        "schema": results.SCHEMAS[NestedIdentityFile],
        "config": config.to_dict(),
        "folds": drawn.count,
        "folds_sha256": drawn.fingerprint(),
    }
    results.write(folder / NESTED, document)


def _remember(root: Path, folder: Path, options: SearchOptions, baseline: Path | None) -> None:
    """Write the folder of the images and the options that the studies of the folds do not hold, for `list`."""
    run_folder.remember_data(folder, root)
    values = {key: value for key, value in options.changed().items() if key not in ("space", "storage")}
    run_folder.remember_options(folder, values | ({"baseline": str(baseline.resolve())} if baseline else {}))


class _Cost:
    """Announces the total cost: in epochs at the start, and in hours once the first epoch is done."""

    def __init__(self, config: Config, options: SearchOptions, folds: int, progress: Progress) -> None:
        self.workers, self.progress, self.told = options.workers, progress, False
        trial = options.epochs_of_a_trial(config)
        # The first trial is the baseline's run. The best trial continues from its last epoch.
        each = config.epochs + (options.trials - 1) * trial + (config.epochs - trial)
        each += options.confirm * options.confirm_seeds * config.epochs + options.audit_pruned * trial
        self.epochs = folds * each
        progress.notice(
            f"{folds} folds with a study of {options.trials} trials each: {folds * options.trials} trials and at most "
            f"{self.epochs:,} epochs, the baseline's included; the first epoch tells how long they take."
        )

    def trained(self, epoch: Epoch) -> None:
        """Announce the hours, estimated from the duration of one epoch; later calls do nothing."""
        if self.told:
            return
        self.told = True
        hours = self.epochs * epoch.seconds / 3600 / self.workers
        beside = f" with {self.workers} workers" if self.workers > 1 else ""
        self.progress.notice(
            f"The first epoch took {epoch.seconds:.1f} s, so all of them take at most about {hours:.2g} hours{beside}; "
            "finished parts are not repeated."
        )


def _judge(
    folder: Path,
    place: Path,
    config: Config,
    options: SearchOptions,
    *,
    first: CrossvalResult,
    found: dict[int, SearchResult],
) -> NestedFile:
    """Write and return the verdict on the pooled predictions, with the choices of all folds."""
    drawn = read_folds(folder / FOLDS)
    best = {fold: _study(folder, fold) / "best" for fold in found}
    identity = run_folder.read_identity(best[1])
    tuned = pool(folder, best, drawn, identity.classes, config.positive)
    if not (folder / POOLED).exists() or results.read(folder / POOLED, CrossvalFile) != tuned:
        # Its import writes a cache of fonts, and a dry run imports this module.
        from busi_tune.report import plots

        results.write(folder / POOLED, tuned)
        plots.plot_pooled(folder, tuned["pooled"])
    rows = drawn.used
    before, after = (answers_of(each, rows, identity.classes, config.positive) for each in (place, folder))
    on_all = compare(
        before,
        after,
        rows["group"].to_numpy(),
        list(rows["path"]),
        names=("that of the baseline", "accuracy of the search procedure"),
    )
    compared = with_advice(on_all, len(rows), "")
    baseline: CrossvalFile = {
        "schema": results.SCHEMAS[CrossvalFile],
        "folds": first["folds"],
        "spread": first["spread"],
        "pooled": first["pooled"],
    }
    choices = [
        _choice(found[one["fold"]], one, other) for one, other in zip(first["folds"], tuned["folds"], strict=True)
    ]
    space = session.dimensions_of(identity.config, options)
    document: NestedFile = {
        "schema": results.SCHEMAS[NestedFile],
        **compared,
        "metric": options.metric,
        "baseline": baseline,
        "tuned": tuned,
        "choices": choices,
        "agreement": agreement([choice["params"] for choice in choices], space),
        "judged": JUDGED,
    }
    files.write_if_new(folder / NESTED_VERDICT, results.text(document))
    return document


def _choice(study: SearchResult, baseline: FoldFigures, tuned: FoldFigures) -> FoldChoice:
    best = study["best"]
    return {
        "fold": tuned["fold"],
        "trial": best["trial"],
        "trials": len(study["trials"]),
        "params": best["params"],
        "value": best["value"],
        "baseline_accuracy": baseline["test"]["accuracy"],
        "tuned_accuracy": tuned["test"]["accuracy"],
    }
