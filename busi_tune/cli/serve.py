"""The commands that make and check an exported model: export, verify."""

from pathlib import Path

import click

from busi_tune.cli.options import FOLDER, common_options, json_option


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The export's folder, as in exports/NAME.")
@click.option("--data", type=FOLDER, help="The images that the run was trained on, where they have moved.")
@common_options
def export(run: Path, out: Path, data: Path | None, as_json: bool, overwrite: bool) -> None:
    """Export the finished run RUN to ONNX, verified against PyTorch on its test split."""
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_certificate

    with screen() as progress:
        certificate = pipeline.export(run, out, data, progress, overwrite=overwrite)
    if as_json:
        print_json(certificate)
    else:
        show_certificate(certificate, out)


@click.command()
@click.argument("export_folder", type=FOLDER, metavar="EXPORT")
@click.option("--data", type=FOLDER, required=True, help="The folder of images that the model was evaluated on.")
@json_option
def verify(export_folder: Path, data: Path, as_json: bool) -> None:
    """Repeat the check of EXPORT on its test images, here and now."""
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_certificate
    from busi_tune.export.check import check_again

    with screen() as progress:
        certificate = check_again(export_folder, data, progress)
    if as_json:
        print_json(certificate)
    else:
        show_certificate(certificate, export_folder)
