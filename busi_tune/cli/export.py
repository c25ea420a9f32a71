"""The commands that make and check an exported model: export, verify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from busi_tune.cli.parameters import FOLDER, common_options, json_option


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The export's folder, as in exports/NAME.")
@click.option("--data", type=FOLDER, help="The images that the run was trained on, where they have moved.")
@click.option("--int8", is_flag=True, help="Also model.int8.onnx, where it passes its gate on the validation split.")
@click.option("--float16", is_flag=True, help="Also model.float16.onnx, likewise.")
@click.option(
    "--max-drop",
    type=float,
    default=0.01,
    show_default=True,
    help="What these may lose of validation accuracy and malignant sensitivity.",
)
@click.option("--sensitivity", type=float, help="Find the threshold of malignant for this sensitivity, as in 0.95.")
@common_options
def export(run: Path, out: Path, data: Path | None, as_json: bool, overwrite: bool, **asked: Any) -> None:
    """Export the finished run RUN to ONNX, verified against PyTorch on its test split."""
    from busi_tune import pipeline
    from busi_tune.cli.export_tables import show_export
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.export.export_options import ExportOptions

    options = ExportOptions(**asked)
    with screen() as progress:
        certificate = pipeline.export(run, out, data, progress, options=options, overwrite=overwrite)
    if as_json:
        print_json(certificate)
    else:
        show_export(certificate, out)


@click.command()
@click.argument("export_folder", type=FOLDER, metavar="EXPORT")
@click.option("--data", type=FOLDER, help="The images that it was evaluated on, to be answered here and now.")
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
