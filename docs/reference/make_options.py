"""Generates options.md, the reference of all options, from their definitions in the code; run by `make reference`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import click

from busi_tune.cli import cli
from busi_tune.cli.parameters import Setting
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.export_options import ExportOptions
from busi_tune.option import KINDS, Group, Option
from busi_tune.search_options import SearchOptions

PAGE = Path(__file__).with_name("options.md")
INTRODUCTION = """\
# Options

`make reference` writes this page from the code; a test says when it is out of date.

On the command line an option is `--learning-rate 0.001`. In Python it is a field, as in `Config(learning_rate=0.001)`,
and `help(Config)` shows the same text. In a file that `--config FILE.toml` names, it is a key:

```toml
learning_rate = 0.001
class_weights = false
fractions = [0.7, 0.15, 0.15]
timeout = "1h30m"
```

A file may hold every option of its command except `--config` itself. The command line wins over the file. Options that
are true or false have two spellings: `--class-weights` switches it on, `--no-class-weights` switches it off.

Every command also takes `-q` (only results and errors), `-v` (also log messages of libraries, and tracebacks),
`--json` and `--help`.
"""


def page() -> str:
    """The text of the whole page."""
    stated = (
        (
            "The configuration",
            Config,
            "`run`, `baseline`, `search` and `crossval`, and in part `data audit` and `data split`",
        ),
        ("The search", SearchOptions, "`run` and `search`"),
        ("The cross-validation", CrossvalOptions, "`crossval`"),
        ("The export", ExportOptions, "`run` and `export`"),
    )
    parts = [INTRODUCTION]
    for title, kind, commands in stated:
        parts.append(f"## {title}\n\n`{kind.__name__}` in Python. Taken by {commands}.\n")
        for group in get_args(Group):
            rows = [_row(one) for one in kind.options.values() if one.group == group]
            if rows:
                table = _table(("Option", "Values", "Default", "Meaning"), rows)
                parts.append(f"### {group.capitalize()}\n\n{table}")
    parts.append("## Options of single commands\n\nThese come in addition to the options above.\n")
    parts += [_command(name, command) for name, command in _commands()]
    return "\n".join(parts)


def _row(one: Option) -> tuple[str, ...]:
    values = one.values if one.choices else f"{KINDS[one.kind]} {one.values}".strip()
    flag = f"`{one.flag}`, `--no-{one.flag[2:]}`" if one.kind is bool else f"`{one.flag}`"
    return flag, values, one.shown_default, one.help


def _commands() -> Iterable[tuple[str, click.Command]]:
    """All commands by their full names."""
    for name, command in cli.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        yield from ((f"{name} {each}", inner[each]) for each in inner)
        if not inner:
            yield name, command


def _command(name: str, command: click.Command) -> str:
    own = [one for one in command.params if isinstance(one, Setting) and one.stated is None]
    rows = [
        (
            f"`{', '.join(one.opts)}`",
            "required" if one.required else one.shown_default or ("off" if one.is_flag else "none"),
            str(one.help),
        )
        for one in own
    ]
    stated = [one.opts[0] for one in command.params if isinstance(one, Setting) and one.stated is not None]
    few = f"Also `{'`, `'.join(stated)}`.\n" if name.startswith("data ") and stated else ""
    return f"### busi-tune {name}\n\n{_table(('Option', 'Default', 'Meaning'), rows)}" + (f"\n{few}" if few else "")


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is up to date.\n")
