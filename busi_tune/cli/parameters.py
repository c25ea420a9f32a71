"""Options made from the fields of Config, so that names, defaults and help stand once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from busi_tune.config import FIELDS, TYPES, Config, Triple, from_dict, read_toml

Command = TypeVar("Command", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
SPLITTING = ("strategy", "fractions", "conflicts", "similarity", "split_seed")


class Numbers(click.ParamType[Triple]):
    """Three numbers with commas between them, as in 0.7,0.15,0.15."""

    name = "A,B,C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        """Parse them, or fail with a usage error."""
        parts = str(value).split(",")
        try:
            first, second, third = (float(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not three numbers with commas between them.", param, ctx)
        return first, second, third


def config_options(command: Command) -> Command:
    """Add `--config` and one option for each field of Config."""
    command = option_of(*FIELDS)(command)
    command = click.option("--split", "split_file", type=FOLDER, metavar="FILE.csv", help="As `data split` wrote it.")(
        command
    )
    help_text = "TOML file with any of the options below (`learning_rate = 0.001`); options win over it."
    return click.option("--config", "config_file", type=FOLDER, help=help_text)(command)


def option_of(*names: str) -> Callable[[Command], Command]:
    """Add an option for each of these fields of Config."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            field = FIELDS[name]
            flag = "--" + name.replace("_", "-")
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if TYPES[name] is bool else flag,
                name,
                type=_type(name),
                default=None,
                show_default=_shown(field.default),
                help=field.metadata["help"] + ".",
            )(command)
        return command

    return add


def _type(name: str) -> Any:
    choices = FIELDS[name].metadata["choices"]
    if choices:
        return click.Choice(choices)
    if TYPES[name] == Triple:
        return Numbers()
    return None if TYPES[name] is bool else TYPES[name]


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(f"{value:g}" for value in default) if isinstance(default, tuple) else str(default)


def build_config(
    config_file: Path | None,
    given: dict[str, Any],
    base: dict[str, Any] | None = None,
    *,
    split_file: Path | None = None,
) -> Config:
    """The configuration of a command: `base`, over it the file's values, over these the options given.

    Raises:
        ConfigError: the file or an option breaks a rule.
        UsageError: options say how to split, beside a file that says who is where.
    """
    if split_file is not None:
        beside = [f"--{name.replace('_', '-')}" for name in SPLITTING if given[name] is not None]
        if beside:
            raise click.UsageError(f"--split says who is where, which leaves nothing to {', '.join(beside)}; drop one.")
        given = given | {"strategy": "file"}
    values = dict(base or {})
    if config_file is not None:
        values |= read_toml(config_file)
        from_dict(values, str(config_file))
    return from_dict(values | {name: value for name, value in given.items() if value is not None}, "The options")


def common_options(command: Command) -> Command:
    """Add `--json` and `--overwrite`."""
    command = click.option("--overwrite", is_flag=True, help="Delete what is in the folder and start anew.")(command)
    return json_option(command)


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")(command)
