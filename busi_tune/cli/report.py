"""The command report."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from busi_tune.cli.parameters import PATH, Command, config_option, data_option, examples, json_option, setting


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage. PyTorch and the charts make 400,000 objects, and hardly any is garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@click.command(
    cls=Command,
    epilog=examples(
        "busi-tune report studies/tuned --export exports/tuned", "busi-tune report exports/tuned --data data/busi"
    ),
)
@click.argument("folder", type=PATH)
@data_option(unset="the folder that training used", help="Folder of the images, for the pictures on the page.")
@setting(
    "--export",
    "export_folder",
    type=PATH,
    metavar="EXPORT",
    group="output",
    help="Export of the run, or of the study's best run, to show on the same page.",
)
@json_option
@config_option
def report(folder: Path, data: Path | None, export_folder: Path | None, as_json: bool) -> None:
    """Write a page about FOLDER, which is a run, a study, a cross-validation or an export.

    Writes report.html, one file that loads nothing from a network, and report.json.
    """
    from busi_tune.cli.screen import print_json, print_line, screen

    with _without_collection(), screen() as progress:
        from busi_tune import pipeline

        found = pipeline.report(folder, progress, root=data, export=export_folder)
    if as_json:
        print_json(found)
    else:
        print_line(found["verdict"])
        print_line(f"{folder / 'report.html'} shows everything; {folder / 'report.json'} has every number.")
