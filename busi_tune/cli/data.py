"""The commands about the images themselves: data audit, data split, data demo."""

from pathlib import Path
from typing import Any

import click

from busi_tune.cli.parameters import FOLDER, build_config, json_option, option_of


@click.group()
def data() -> None:
    """Look at a folder of images, split it, or draw one."""


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--out", type=FOLDER, default=Path("data/audit"), show_default=True, help="Where the report goes.")
@click.option("--split", "split_file", type=FOLDER, help="The split whose leak is told.  [default: random ones]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random splits.")
@click.option("--strict", is_flag=True, help="Exit with 1 when there are conflicts or unreadable files.")
@option_of("similarity")
@json_option
def audit(
    folder: Path, out: Path, split_file: Path | None, seed: int, strict: bool, as_json: bool, **given: Any
) -> int:
    """Say what is in DIR: sizes, copies, near-duplicates, conflicting labels, and how much a split would leak.

    Writes audit.json, and audit.html with the pictures beside each other.
    """
    config = build_config(None, given)
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_audit

    with screen() as progress:
        found = pipeline.audit_data(folder, out, config, progress, seed=seed, split_file=split_file)
    if as_json:
        print_json(found)
    else:
        show_audit(found, out)
    wrong = len(found["conflicts"]), len(found["unreadable"])
    if strict and any(wrong):
        text = (
            f"{folder} has {wrong[0]} groups with two labels and {wrong[1]} unreadable files, and --strict allows none"
        )
        click.echo(f"busi-tune: {text}; mend them, {out / 'audit.html'} shows them.", err=True)
        return 1
    return 0


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--out", type=FOLDER, required=True, metavar="FILE.csv", help="The split, for --split of other commands.")
@click.option(
    "--groups", "patients", type=FOLDER, metavar="FILE.csv", help="Columns path and group: images that stay together."
)
@click.option("--seed", "split_seed", type=int, help="Seed of the split.", show_default="0")
@click.option("--strategy", type=click.Choice(["grouped", "random"]), help="How.", show_default="grouped")
@option_of("fractions", "conflicts", "similarity")
@json_option
def split(folder: Path, out: Path, patients: Path | None, as_json: bool, **given: Any) -> None:
    """Split DIR into training, validation and test, with groups of near-duplicates on one side."""
    config = build_config(None, given)
    how = ("strategy", "fractions", "conflicts", "split_seed")
    asked = [f"--{name.removeprefix('split_')}" for name in how if given[name] is not None]
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_split

    with screen() as progress:
        result = pipeline.split_data(folder, out, config, progress, patients=patients, asked=asked)
    if as_json:
        print_json(result)
    else:
        show_split(result, out)


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the drawings.")
def demo(folder: Path, seed: int) -> None:
    """Draw phantom images into DIR, with masks, near-duplicates and a conflict, listed in planted.csv."""
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_line, screen

    with screen() as progress:
        pipeline.make_demo(folder, progress, seed=seed)
    print_line(f"{folder} holds the phantoms; planted.csv lists their near-duplicates.")
