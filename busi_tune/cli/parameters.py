"""Command-line options, created from stated options, grouped in `--help` and read from `--config` files."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from busi_tune.cli.architectures import architectures
from busi_tune.cli.verbosity import spoken, verbosity_options
from busi_tune.config import Config, read_toml
from busi_tune.errors import ConfigError
from busi_tune.logs import Tracker
from busi_tune.option import KINDS, Group, Option, Options, check, meant, words

Function = TypeVar("Function", bound=Callable[..., object])
Made = TypeVar("Made", bound=Options)
PATH = click.Path(path_type=Path)
# The exit code of a command that Ctrl-C ended.
INTERRUPTED = 130
# The exit code that a shell reports for a program that SIGPIPE (13) ended.
CLOSED_PIPE = 141
RESUMED = "All finished epochs are saved: run the same command again to continue."
ANEW = "No half-written result is left: run the same command again to start over."
# The escape sequence that shows the cursor again, which progress bars hide.
SHOW_CURSOR = "\x1b[?25h"
METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "FILE", tuple: "A,B,C"}
# The type of a value in a TOML file, for options that the command itself defines.
FILE_KINDS = {click.types.BoolParamType: bool, click.types.IntRange: int}
SPLITTING = ("strategy", "fractions", "conflicts", "similarity", "split_seed")


class Setting(click.Option):
    """An option of a group. Its help shows the default in a uniform format.

    If the option has no default, `unset` describes the effect of leaving it out.
    """

    def __init__(
        self, *args: Any, group: Group, stated: Option | None = None, unset: str = "", **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.group = group
        self.stated = stated
        self.shown_default = stated.shown_default if stated else unset or str(attributes.get("default", ""))

    @property
    def key(self) -> str:
        """The option's name in a TOML file."""
        return self.opts[0].removeprefix("--").replace("-", "_")

    @property
    def bounds(self) -> str:
        """The bounds of a number, such as "between 1 and 80", or ""."""
        if self.stated is not None:
            return "" if self.stated.choices else self.stated.values
        return (
            f"at least {self.type.min:g}" if isinstance(self.type, click.IntRange) and self.type.min is not None else ""
        )

    def checked(self, value: object) -> object:
        """A value from a TOML file in the option's type.

        Raises:
            ValueError: the value has another type or breaks a rule.
        """
        if self.stated is not None:
            return self.stated.checked(value)
        kind = FILE_KINDS.get(type(self.type), str)
        if type(value) is not kind:
            raise ValueError(f"{self.key} must be {KINDS[kind]}, not {value!r}")
        return value

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The choices that begin with `incomplete`, or files if the option takes a path."""
        if self.key == "arch":
            return [CompletionItem(name) for name in architectures() if name.startswith(incomplete)]
        if self.stated is not None and self.stated.choices:
            return [CompletionItem(choice) for choice in self.stated.choices if choice.startswith(incomplete)]
        if self.stated is not None and self.stated.kind is Path:
            return [CompletionItem(incomplete, type="file")]
        return super().shell_complete(ctx, incomplete)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's spelling, and its help text with bounds and default."""
        record = super().get_help_record(ctx)
        note = "required" if self.required else f"default: {self.shown_default}" if self.shown_default else ""
        return record and (
            record[0],
            "  ".join([str(self.help), *(f"[{part}]" for part in (self.bounds, note) if part)]),
        )


class Stray(click.Argument):
    """Arguments on the command line that belong to no option; the help does not show this parameter."""

    def __init__(self) -> None:
        super().__init__(["stray"], nargs=-1, required=False, expose_value=False, is_eager=True, callback=_refuse_stray)

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """An empty list, because the usage line does not show stray arguments."""
        return []


def _refuse_stray(context: click.Context, _: click.Parameter, given: tuple[str, ...]) -> None:
    if not given:
        return
    others = [one for one in context.command.params if not isinstance(one, Stray)]
    keys = {one.key for one in others if isinstance(one, Setting)}
    images = "data" in keys and not any(isinstance(one, click.Argument) for one in others)
    hint = f" Name the folder of images with --data {given[0]}." if images else ""
    raise click.UsageError(f"Got an unexpected argument, {given[0]}.{hint}", context)


class Interrupted(click.ClickException):
    """Ctrl-C ended a command; the message is a sentence about the state that the command leaves."""

    exit_code = INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence on stderr."""
        click.echo(f"Interrupted. {self.message}", file=file, err=file is None)


class Command(click.Command):
    """A command whose help lists its options by group; `interrupted` is the sentence that Ctrl-C prints."""

    def __init__(self, *args: Any, interrupted: str = ANEW, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.interrupted = interrupted
        self.params += verbosity_options()
        if not any(one.nargs == -1 for one in self.params):
            self.params.append(Stray())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. For an unknown option, the error suggests the nearest one."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flags = {one.key: one.opts[0] for one in self.params if isinstance(one, Setting)}
            found = meant(error.option_name, list(flags))
            if not found:
                raise
            text = f"No such option, {error.option_name}. Did you mean {flags[found]}?"
            raise click.UsageError(text, ctx) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; Ctrl-C prints the sentence `interrupted`."""
        try:
            # Replace only this program's handler of Ctrl-C, not one that ignores it or Python's default.
            if signal.getsignal(signal.SIGINT) not in {signal.SIG_IGN, signal.default_int_handler}:
                signal.signal(signal.SIGINT, self._answer)
            with spoken(ctx):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(self.interrupted) from None
        except BrokenPipeError:
            # The reader, such as `head`, closed the pipe. Discard unflushed output, as Python's documentation advises.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(CLOSED_PIPE) from None

    def _answer(self, _: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt. Inside an import, where it could be lost or become another error, exit at once."""
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                cursor = SHOW_CURSOR if os.isatty(2) else ""
                os.write(2, f"{cursor}Interrupted. {self.interrupted}\n".encode())
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group that has options, in the order of the groups."""
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in (*get_args(Group), "other")}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                sections[parameter.group if isinstance(parameter, Setting) else "other"].append(record)
        for group, rows in sections.items():
            if rows:
                with formatter.section(group.capitalize()):
                    formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """The examples at the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


setting = partial(click.option, cls=Setting)


def stated_options(kind: type[Options], *names: str) -> Callable[[Function], Function]:
    """A decorator that adds the stated options of a class to a command: all, or only those in `names`."""

    def add(function: Function) -> Function:
        for name in reversed(names or tuple(kind.options)):
            function = _stated(kind.options[name])(function)
        return function

    return add


def _stated(one: Option) -> Callable[[Function], Function]:
    flag = f"{one.flag}/--no-{one.flag[2:]}" if one.kind is bool else one.flag
    return setting(
        flag,
        one.name,
        type=click.BOOL if one.kind is bool else one.parse,
        default=one.default,
        help=one.help,
        metavar=f"[{'|'.join(one.choices)}]" if one.choices else one.metavar or METAVARS.get(one.kind),
        envvar=one.environment or None,
        group=one.group,
        stated=one,
    )


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Use the values of a TOML file as defaults of the command's other options."""
    if path is None:
        return
    known = {one.key: one for one in context.command.params if isinstance(one, Setting)}
    typed, problems = check(known, read_toml(path))
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}.")
    context.default_map = {str(known[key].name): value for key, value in typed.items()}


config_option = click.option(
    "--config",
    type=PATH,
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file with these options, with underscores for dashes; the command line wins over the file.",
)
data_option = partial(setting, "--data", type=PATH, metavar="DIR", group="data")
out_option = partial(setting, "--out", type=PATH, metavar="DIR", group="output")
split_option = setting(
    "--split",
    "split_file",
    type=PATH,
    metavar="FILE.csv",
    group="data",
    help="Split to use, as written by `data split`; replaces the options that define how to split.",
)
key_option = setting(
    "--key",
    type=PATH,
    metavar="PUB.pem",
    group="model",
    unset="no signature needed",
    help="Ed25519 public key of the signer; an EXPORT without this signature is refused; needs the extra sign.",
)
threads_option = setting(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    metavar="INTEGER",
    group="machines",
    help="Number of threads; 0 means one for each core.",
)
json_option = setting(
    "--json", "as_json", is_flag=True, group="output", help="Print one JSON object instead of tables."
)
all_option = setting(
    "--all", "everything", is_flag=True, group="output", help="Print all metrics, not only the six reported most."
)
log_option = setting(
    "--log",
    type=click.Choice(get_args(Tracker)),
    group="output",
    unset="none",
    help="At the end, write curves, parameters and metrics for this tracker into the folder logs beside "
    "the results; needs the extra of this name.",
)
overwrite_option = setting(
    "--overwrite", is_flag=True, group="output", help="Delete the result in the output folder and start over."
)

dry_run_option = setting(
    "--dry-run",
    is_flag=True,
    group="output",
    help="Check everything, train a few steps in memory, and print the remaining work, its time, disk and memory; "
    "write nothing.",
)


def given(name: str) -> bool:
    """Whether the running command received this option on the command line, in a file or in the environment."""
    return click.get_current_context().get_parameter_source(name) != click.core.ParameterSource.DEFAULT


def repeated(*kinds: type[Options]) -> list[str]:
    """The options of these classes that the running command received, as words for another command line."""
    params = click.get_current_context().params
    values = {name: value for name, value in params.items() if given(name)}
    return [word for kind in kinds for word in words(kind, values)]


def follow_split(values: Mapping[str, object], split_file: Path | None) -> dict[str, object]:
    """The values of a command's options, with the strategy `file` if there is a split file.

    Raises:
        UsageError: the command line also has options that define how to split.
    """
    if split_file is None:
        return dict(values)
    source = click.get_current_context().get_parameter_source
    beside = [Config.options[n].flag for n in SPLITTING if source(n) == click.core.ParameterSource.COMMANDLINE]
    if beside:
        raise click.UsageError(f"--split already defines the split; remove {', '.join(beside)}.")
    return {**values, "strategy": "file"}


def refuse(values: Mapping[str, object], *kinds: type[Options]) -> None:
    """Check the values of several classes of options together.

    Raises:
        ConfigError: values have a wrong type or break rules. The message lists all of them.
    """
    problems = [problem for kind in kinds for problem in check(kind.options, _own(kind, values))[1]]
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


def made(kind: type[Made], values: Mapping[str, object]) -> Made:
    """The options of one class, from the values of a command. Options that the command lacks have their defaults."""
    return kind.from_dict(_own(kind, values))


def _own(kind: type[Options], values: Mapping[str, object]) -> dict[str, object]:
    return {name: values[name] for name in kind.options if name in values}
