"""The commands crossval and compare."""

from pathlib import Path

import click

from busi_tune.cli.parameters import (
    PATH,
    RESUMED,
    Command,
    all_option,
    config_option,
    data_option,
    dry_run_option,
    examples,
    json_option,
    log_option,
    made,
    out_option,
    overwrite_option,
    refuse,
    repeated,
    setting,
    stated_options,
)
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.logs import Tracker
from busi_tune.results import FOLDS


@click.command(
    cls=Command,
    interrupted=RESUMED,
    epilog=examples(
        "busi-tune crossval --data data/busi --folds 5",
        "busi-tune crossval --data data/busi --arch resnet18 --repeats 3 --workers 4",
    ),
)
@data_option(required=True, help="Folder with one folder of images for each class.")
@stated_options(Config)
@stated_options(CrossvalOptions)
@setting(
    "--folds-file",
    type=PATH,
    metavar="FILE.csv",
    group="data",
    unset="drawn by --split-seed",
    help="File with the folds to use: folds.csv of another cross-validation.",
)
@out_option(default=Path("studies/crossval"), help="Folder of the cross-validation.")
@log_option
@all_option
@json_option
@overwrite_option
@dry_run_option
@config_option
def crossval(
    *,
    data: Path,
    out: Path,
    folds_file: Path | None,
    log: Tracker | None,
    everything: bool,
    as_json: bool,
    overwrite: bool,
    dry_run: bool,
    **values: object,
) -> None:
    """Train the configuration once for each fold, and pool the predictions.

    Each image is predicted by a model that was trained neither on it nor on a near-duplicate of it.
    """
    refuse(values, Config, CrossvalOptions)
    config, options = made(Config, values), made(CrossvalOptions, values)
    from busi_tune import pipeline
    from busi_tune.cli.plan_table import show_plan
    from busi_tune.cli.screen import print_end, print_json, screen
    from busi_tune.cli.tables import show_crossval
    from busi_tune.logs.trackers import logged

    if dry_run:
        from busi_tune.dry_run import dry_crossval

        with screen() as progress:
            plan = dry_crossval(data, out, config, options, progress, folds_file=folds_file, overwrite=overwrite)
        show_plan(plan, as_json=as_json)
        return
    with screen() as progress, logged(log, [out], progress):
        result = pipeline.crossval(data, out, config, options, progress, folds_file=folds_file, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    show_crossval(result, out, everything=everything)
    other = ["crossval", "--data", data, *repeated(Config), "--folds-file", out / FOLDS]
    where = f"{out} has pooled.json, predictions.csv, {FOLDS} and folds/. With another option to compare it with:"
    print_end(where, *other, "--out", out.with_name(f"{out.name}-2"))


@click.command(
    cls=Command,
    epilog=examples(
        "busi-tune compare studies/baseline studies/tuned/best",
        "busi-tune compare studies/crossval studies/wider --json",
    ),
)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@all_option
@json_option
def compare(*, first: Path, second: Path, everything: bool, as_json: bool) -> None:
    """Compare two finished runs on the same split, or two cross-validations on the same folds.

    Differences are SECOND minus FIRST, paired by image and by group of near-duplicates.
    """
    from busi_tune.cli.screen import print_json
    from busi_tune.cli.tables import show_comparison
    from busi_tune.evaluation.comparison import compare_folders

    found = compare_folders(first, second)
    if as_json:
        print_json(found)
    else:
        show_comparison(found, everything=everything)
