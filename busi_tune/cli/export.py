"""The commands that make and check an exported model: export, verify."""

from collections.abc import Mapping
from pathlib import Path

import click

from busi_tune.cli.parameters import (
    PATH,
    Command,
    config_option,
    data_option,
    examples,
    json_option,
    made,
    out_option,
    overwrite_option,
    setting,
    stated_options,
)
from busi_tune.export_options import ExportOptions


@click.command(
    cls=Command,
    epilog=examples(
        "busi-tune export studies/tuned/best --out exports/tuned",
        "busi-tune export studies/tuned/best --out exports/small --int8 --sensitivity 0.95",
    ),
)
@click.argument("run", type=PATH)
@data_option(unset="the folder at the time of training", help="Folder of the images that the run was trained on.")
@out_option(required=True, help="Folder of the export, as in exports/NAME.")
@stated_options(ExportOptions)
@setting(
    "--fold",
    type=click.IntRange(min=1),
    group="output",
    metavar="INTEGER",
    unset="the mean of all",
    help="Fold of the cross-validation RUN whose model is exported.",
)
@json_option
@overwrite_option
@config_option
def export(
    run: Path,
    *,
    out: Path,
    data: Path | None,
    fold: int | None,
    as_json: bool,
    overwrite: bool,
    **values: object,
) -> None:
    """Export the finished run RUN to ONNX, verified against PyTorch on its test split.

    Of a cross-validation, one model is exported that averages the probabilities of its folds' models.
    """
    options = made(ExportOptions, values)
    from busi_tune import pipeline
    from busi_tune.cli.export_tables import show_export
    from busi_tune.cli.screen import print_json, screen

    with screen() as progress:
        certificate = pipeline.export(run, out, data, progress, options=options, fold=fold, overwrite=overwrite)
    if as_json:
        print_json(certificate)
    else:
        show_export(certificate, out)


@click.command(
    cls=Command,
    interrupted="The check is not complete: run the same command again.",
    epilog=examples("busi-tune verify exports/tuned", "busi-tune verify exports/tuned --data data/busi --json"),
)
@click.argument("export_folder", type=PATH, metavar="EXPORT")
@data_option(help="Folder of the images that it was evaluated on, to compare its answers again here.")
@json_option
def verify(export_folder: Path, data: Path | None, as_json: bool) -> None:
    """Check that EXPORT is what was certified; with --data, also that it answers its test images as it did."""
    from busi_tune.cli.export_tables import show_certificate
    from busi_tune.cli.screen import print_json, print_line, screen
    from busi_tune.inference.certificate import check_folder

    if data is None:
        certificate: Mapping[str, object] = check_folder(export_folder)
        if not as_json:
            print_line(f"{export_folder}: every file is the one that was certified.")
    else:
        from busi_tune.export.verification import check_again

        with screen() as progress:
            repeated = check_again(export_folder, data, progress)
        if not as_json:
            show_certificate(repeated, export_folder)
        certificate = repeated
    if as_json:
        print_json(certificate)
