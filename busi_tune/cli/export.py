"""The commands that create and check an exported model: export, verify."""

from pathlib import Path

import click

from busi_tune.cli.parameters import (
    PATH,
    Command,
    config_option,
    data_option,
    examples,
    json_option,
    key_option,
    made,
    out_option,
    overwrite_option,
    setting,
    stated_options,
)
from busi_tune.errors import listed
from busi_tune.export_options import ExportOptions


@click.command(
    cls=Command,
    epilog=examples(
        "busi-tune export studies/tuned/best --out exports/tuned",
        "busi-tune export studies/tuned/best --out exports/small --int8 --sensitivity 0.95",
    ),
)
@click.argument("run", type=PATH)
@data_option(unset="the folder that training used", help="Folder of the images that the run was trained on.")
@out_option(unset="exports/NAME of the run or study", help="Folder of the export.")
@stated_options(ExportOptions)
@setting(
    "--sign",
    type=PATH,
    metavar="KEY.pem",
    group="output",
    unset="no signature",
    help="Ed25519 private key that signs the certificate; needs the extra sign.",
)
@setting(
    "--fold",
    type=click.IntRange(min=1),
    group="output",
    metavar="INTEGER",
    unset="the mean of all folds",
    help="Fold of the cross-validation RUN whose model is exported.",
)
@json_option
@overwrite_option
@config_option
def export(
    run: Path,
    out: Path | None,
    *,
    data: Path | None,
    sign: Path | None,
    fold: int | None,
    as_json: bool,
    overwrite: bool,
    **values: object,
) -> None:
    """Export the finished run RUN to ONNX, and verify it against PyTorch on the test split.

    If RUN is a cross-validation, the exported model averages the probabilities of the models of all folds.
    """
    options = made(ExportOptions, values)
    from busi_tune import pipeline
    from busi_tune.cli.export_tables import show_export
    from busi_tune.cli.screen import print_end, print_json, screen

    out = out or default_folder(run)
    with screen() as progress:
        certificate = pipeline.export(
            run, out, data, progress, options=options, sign=sign, fold=fold, overwrite=overwrite
        )
    if as_json:
        print_json(certificate)
    else:
        show_export(certificate, out)
        where = f"{out} has the models, their certificate (verification.json) and the card (README.md)."
        print_end(where, "predict", out, "IMAGE...")


def default_folder(run: Path) -> Path:
    """The default folder of a run's export: exports/NAME with the run's name, or the study's for its best run."""
    place = run.resolve()
    return Path("exports") / (place.parent.name if place.name == "best" else place.name)


@click.command(
    cls=Command,
    interrupted="The check is not complete: run the same command again.",
    epilog=examples(
        "busi-tune verify exports/tuned",
        "busi-tune verify exports/tuned --key key.pub.pem --data data/busi --json",
    ),
)
@click.argument("export_folder", type=PATH, metavar="EXPORT")
@data_option(help="Folder of the run's images, to predict its test images again and compare.")
@key_option
@json_option
def verify(export_folder: Path, data: Path | None, key: Path | None, as_json: bool) -> None:
    """Check that no file of EXPORT has changed; with --data, also that its predictions are still the same.

    Without --key this finds damaged and mixed-up files. It does not find an attack, because an attacker can write a
    new certificate.
    """
    from busi_tune.cli.export_tables import show_certificate, show_checked
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.inference.certificate import check_folder, uncertified
    from busi_tune.inference.signature import read_public_key

    public = read_public_key(key) if key else ""
    with screen() as progress:
        if data is None:
            certificate = check_folder(export_folder, public)
        else:
            from busi_tune.export.verification import check_again

            certificate = check_again(export_folder, data, progress, public)
        if others := uncertified(export_folder, certificate):
            progress.notice(f"{export_folder} holds files that are not certified: {listed(others)}.")
    if as_json:
        print_json(certificate)
        return
    if data is not None:
        show_certificate(certificate, export_folder)
    show_checked(certificate, export_folder, public)
