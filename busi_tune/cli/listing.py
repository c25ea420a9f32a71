"""The command list: the results below a folder, and the commands to run next."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from busi_tune.cli.parameters import PATH, Command, examples, json_option

if TYPE_CHECKING:
    from busi_tune.results import Interval

UNITS = (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1))


@click.command(
    "list",
    cls=Command,
    interrupted="Nothing was changed.",
    epilog=examples("busi-tune list", "busi-tune list studies --json"),
)
@click.argument("folder", type=PATH, default=".", metavar="[FOLDER]")
@json_option
def list_results(folder: Path, as_json: bool) -> None:
    """List all runs, studies, cross-validations and exports in FOLDER and its subfolders.

    FOLDER is the current folder by default. Each result has its state, its accuracy and macro F1 on the test images
    with 95 % intervals, its size, its age, and the command to run next. Runs inside a study or a cross-validation are
    not listed.
    """
    from busi_tune.cli.screen import print_json, print_line, print_table
    from busi_tune.errors import FileError
    from busi_tune.report.inventory import inventory

    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder; name one that holds results, as in studies.")
    found = inventory(folder)
    if as_json:
        print_json(found)
        return
    if not found:
        print_line(f"{folder} holds no results; `busi-tune run --demo` makes some.")
        return
    now = datetime.now(UTC)
    rows = [
        (
            one["path"],
            one["kind"],
            f"{one['state']}: {one['detail']}" if one["state"] != "finished" else one["detail"],
            _figure(one["accuracy"], one["accuracy_interval"]),
            _figure(one["macro_f1"], one["macro_f1_interval"]),
            f"{one['size_bytes'] / 1e6:,.1f} MB",
            _age((now - datetime.fromisoformat(one["modified"])).total_seconds()),
        )
        for one in found
    ]
    print_table("", ("folder", "kind", "state", "accuracy", "macro F1", "size", "age"), rows)
    commands = [one["next"] for one in found if one["next"]]
    if commands:
        print_line("Next:")
    for command in commands:
        print_line(f"  {command}")


def _figure(value: float | None, interval: "Interval | None") -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _age(seconds: float) -> str:
    name, length = next(((name, length) for name, length in UNITS if seconds >= 2 * length), UNITS[-1])
    return f"{max(0, int(seconds // length))} {name}"
