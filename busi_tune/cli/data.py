"""The commands for folders of images: data audit, data split, data demo."""

from pathlib import Path

import click

from busi_tune.cli.parameters import (
    PATH,
    SPLITTING,
    Command,
    config_option,
    data_option,
    examples,
    given,
    json_option,
    made,
    out_option,
    setting,
    stated_options,
)
from busi_tune.config import Config

IMAGES = "Folder with one folder of images for each class."


@click.group(
    epilog=examples("busi-tune data audit --data data/busi", "busi-tune data split --data data/busi --out split.csv")
)
def data() -> None:
    """Audit a folder of images, split it, or draw a folder of phantoms."""


@data.command(
    cls=Command,
    epilog=examples(
        "busi-tune data audit --data data/busi",
        "busi-tune data audit --data data/busi --split split.csv --strict --json",
    ),
)
@data_option(required=True, help=IMAGES)
@setting(
    "--split",
    "split_file",
    type=PATH,
    metavar="FILE.csv",
    group="data",
    unset="random splits",
    help="Split whose leak is measured, as written by `data split`.",
)
@stated_options(Config, "similarity", "classes", "split_seed")
@out_option(default=Path("data/audit"), help="Folder of the report.")
@setting("--strict", is_flag=True, group="output", help="Exit with 1 if there are conflicts or unreadable files.")
@json_option
@config_option
def audit(data: Path, out: Path, split_file: Path | None, strict: bool, as_json: bool, **values: object) -> int:
    """Report on a folder: sizes, copies, near-duplicates, conflicting labels, and how much a split would leak.

    Writes audit.json, and audit.html with the pictures of each group side by side.
    """
    config = made(Config, values)
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_end, print_json, screen
    from busi_tune.cli.tables import show_audit

    with screen() as progress:
        found = pipeline.audit_data(data, out, config, progress, seed=config.split_seed, split_file=split_file)
    if as_json:
        print_json(found)
    else:
        show_audit(found)
        where = f"{out / 'audit.html'} shows the groups as pictures; {out / 'audit.json'} holds everything."
        print_end(where, "baseline", "--data", data)
    wrong = len(found["conflicts"]), len(found["unreadable"])
    if strict and any(wrong):
        text = f"{data} has {wrong[0]} groups with two labels and {wrong[1]} unreadable files, and --strict allows none"
        click.echo(f"busi-tune: {text}; correct them, {out / 'audit.html'} shows them.", err=True)
        return 1
    return 0


@data.command(
    cls=Command,
    epilog=examples(
        "busi-tune data split --data data/busi --out split.csv",
        "busi-tune data split --data data/busi --out split.csv --groups patients.csv --split-seed 7",
    ),
)
@data_option(required=True, help=IMAGES)
@setting(
    "--groups",
    "patients",
    type=PATH,
    metavar="FILE.csv",
    group="data",
    help="CSV file with the columns path and group: images of one group, as of one patient, stay in one part.",
)
@stated_options(Config, *SPLITTING, "classes")
@setting("--out", type=PATH, required=True, metavar="FILE.csv", group="output", help="File of the split.")
@json_option
@config_option
def split(data: Path, out: Path, patients: Path | None, as_json: bool, **values: object) -> None:
    """Split a folder into training, validation and test; each group of near-duplicates stays in one part."""
    config = made(Config, values)
    asked = [Config.options[name].flag for name in SPLITTING if name != "similarity" and given(name)]
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_end, print_json, screen
    from busi_tune.cli.tables import show_split

    with screen() as progress:
        result = pipeline.split_data(data, out, config, progress, patients=patients, asked=asked)
    if as_json:
        print_json(result)
    else:
        show_split(result, out)
        print_end(f"{out} has the split.", "baseline", "--data", data, "--split", out)


@data.command(
    cls=Command,
    epilog=examples("busi-tune data demo --out data/demo", "busi-tune data demo --out data/other --seed 7"),
)
@setting("--seed", type=click.IntRange(min=0), default=0, metavar="INTEGER", group="data", help="Seed of the drawings.")
@out_option(required=True, help="Folder of the phantoms.")
@json_option
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Draw phantom images with masks, near-duplicates and a conflict; planted.csv lists the near-duplicates."""
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_end, print_json, screen

    with screen() as progress:
        pipeline.make_demo(out, progress, seed=seed)
    if as_json:
        print_json({"data": str(out), "planted": str(out / "planted.csv")})
        return
    print_end(f"{out} has the phantoms; planted.csv lists their near-duplicates.", "data", "audit", "--data", out)
