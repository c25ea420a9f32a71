"""The screen: bars and notices on stderr, results on stdout."""

import json
import math
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from busi_tune.errors import printable

WIDTH = 110
# The period in seconds for measuring a bar's speed. It is long because a trial may take long.
PERIOD = 3600


class TimeLeft(ProgressColumn):
    """The remaining time of a task, and of its current step if parts of the step are reported."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The remaining times, once the speed is known."""
        if not task.speed or task.remaining is None:
            return Text("")
        words = f"{_clock(task.remaining / task.speed)} left"
        if task.fields["parts"] and not task.finished:
            of_step = math.floor(task.completed) + 1 - task.completed
            words = f"epoch {_clock(of_step / task.speed)}, {words}"
        return Text(words, style="progress.remaining")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds))).removeprefix("0:")


class Screen:
    """Prints a line for each epoch and trial on stderr, and shows bars if stderr is a terminal."""

    def __init__(self) -> None:
        # A log keeps each sentence on one line; a terminal wraps it between words.
        self.console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())
        self.bars: Progress | None = None
        self.live: Live | None = None
        self.tasks: dict[str, TaskID] = {}

    def notice(self, text: str) -> None:
        """Print a sentence above the bars."""
        self.console.print(printable(text), markup=False)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Print `detail` for a step and move the bar of `task`. Without bars, also print the end of the task."""
        if detail or (self.bars is None and done == total):
            self.console.print(printable(detail or f"{task} {done}/{total}"), markup=False)
        self._move(task, done, total, done)

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Move the bar of `task` by a part of a step."""
        # Only `step` completes a step.
        self._move(task, done, total, done + min(share, 0.999), parts=True)

    def _move(self, task: str, done: int, total: int, completed: float, *, parts: bool = False) -> None:
        if self.bars is None or self.live is None:
            return
        if task not in self.tasks:
            # Earlier work counts for the bar's position, but not for its speed.
            self.tasks[task] = self.bars.add_task(task, total=total, completed=done, parts=parts, count="")
            self.live.refresh()
        shown = min(done + parts, total)
        self.bars.update(self.tasks[task], completed=completed, total=total, count=f"{shown}/{total}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table above the bars, in place of the last one; no rows remove it. Without bars, do nothing."""
        if self.live is not None and self.bars is not None:
            self.live.update(Group(_table(columns, rows, 1), self.bars) if rows else self.bars)

    def close(self, task: str) -> None:
        """Remove the bar of `task`."""
        if self.bars is not None and task in self.tasks:
            self.bars.remove_task(self.tasks.pop(task))


@contextmanager
def screen() -> Iterator[Screen]:
    """A Screen whose bars are removed at the end of the block."""
    shown = Screen()
    if not sys.stderr.isatty():
        yield shown
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}", justify="right"),
        TimeLeft(),
    )
    bars = Progress(*columns, console=shown.console, speed_estimate_period=PERIOD)
    with Live(bars, console=shown.console, transient=True, refresh_per_second=10) as live:
        shown.bars, shown.live = bars, live
        yield shown


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    for line in json_text(value, indent=1).splitlines():
        print_line(line)


def json_text(value: object, indent: int | None = None) -> str:
    """A result as JSON with only printable characters. Python's writer does not escape the character DEL."""
    return json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], *, blocks: bool = False) -> None:
    """Print a table on stdout, with numbers aligned to the right.

    With `blocks`, each row becomes a paragraph if the table is wider than the screen.
    """
    body = [list(row) for row in rows]
    if title:
        print_line(title)
    console = _results()
    tables = (_table(columns, body, space) for space in (1, 0))
    table = next((table for table in tables if _width(table) <= console.width), None)
    if table is None and blocks:
        for row in body:
            parts = [f"{name} {_text(value)}" for name, value in zip(columns, row, strict=True) if value is not None]
            print_line(textwrap.fill(", ".join(parts), console.width, subsequent_indent="    "))
        return
    console.print(table or _table(columns, body, 1))


def fits(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Whether a table fits the width of the screen."""
    return _width(_table(columns, rows, 0)) <= _results().width


def _results() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], space: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, space))
    for number, column in enumerate(columns):
        right = all(isinstance(row[number], int | float) or row[number] is None for row in rows)
        table.add_column(printable(column), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row))
    return table


def _width(table: Table) -> int:
    wide = Console(width=1000)
    return Measurement.get(wide, wide.options, table).maximum


def print_line(text: str) -> None:
    """Print one or several lines on stdout."""
    print("\n".join(map(printable, text.split("\n"))))  # noqa: T201 - this is where results are printed


def print_text(text: str) -> None:
    """Print a sentence on stdout; on a terminal, wrap it between words."""
    console = _results()
    if console.is_terminal:
        text = textwrap.fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    print_line(text)


def print_end(where: str, *following: object) -> None:
    """Print the location of a command's results, and the next command to type."""
    print_text(f"Results: {where}")
    print_line(f"Next: busi-tune {shlex.join(map(str, following))}")


def rule() -> str:
    """The character for a horizontal line in a table, chosen in the same way as in rich's tables."""
    return "-" if Console().options.ascii_only else "─"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
