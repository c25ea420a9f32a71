"""The screen: bars and notices on stderr, results on stdout."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from busi_tune.errors import printable

WIDTH = 110


class Screen:
    """Bars where stderr is a terminal; elsewhere a line for each epoch and trial."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def notice(self, text: str) -> None:
        """Print a sentence above the bars."""
        self.console.print(printable(text), markup=False)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of `task`, or print a line."""
        if self.bars is None:
            if done == total or detail:
                line = f"{task} {done}/{total}" + (f": {detail}" if detail else "")
                self.console.print(printable(line), markup=False)
            return
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=total, detail="")
        self.bars.update(self.tasks[task], completed=done, total=total, detail=detail)

    def close(self, task: str) -> None:
        """Take the bar of `task` away."""
        if self.bars is not None and task in self.tasks:
            self.bars.remove_task(self.tasks.pop(task))


@contextmanager
def screen() -> Iterator[Screen]:
    """A Screen whose bars live as long as the block."""
    shown = Screen()
    if not sys.stderr.isatty():
        yield shown
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=shown.console, transient=True) as bars:
        shown.bars = bars
        yield shown


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    for line in json_text(value, indent=1).splitlines():
        print_line(line)


def json_text(value: object, indent: int | None = None) -> str:
    """A result as JSON of printable characters alone; Python's writer lets the character DEL pass."""
    return json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table on stdout; numbers to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    body = [list(row) for row in rows]
    for number, column in enumerate(columns):
        right = all(isinstance(row[number], int | float) or row[number] is None for row in body)
        table.add_column(printable(column), justify="right" if right else "left", overflow="fold")
    for row in body:
        table.add_row(*(_text(value) for value in row))
    if title:
        print_line(title)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def print_line(text: str) -> None:
    """Print a line on stdout."""
    print(printable(text))  # noqa: T201 - this is where results are printed


def rule() -> str:
    """The character of a line across a table; rich's own tables choose theirs in the same way."""
    return "-" if Console().options.ascii_only else "─"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
