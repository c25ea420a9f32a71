"""The interface for reports of progress, bars for scripts and notebooks, and an implementation that ignores reports."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from busi_tune.errors import printable

if TYPE_CHECKING:
    from tqdm.auto import tqdm


class Progress(Protocol):
    """Receives reports of progress. The command line draws bars, tests record the reports, `Silent` ignores them."""

    def notice(self, text: str) -> None:
        """Report one sentence that the user should see."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` steps of `task` are finished. `detail` describes the last step."""

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Report that `share` (0 to 1) of the next step is finished, after `done` of `total`."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Report the state of several tasks as a table, which replaces the previous table."""

    def close(self, task: str) -> None:
        """Report that `task` has ended, whether it is finished or not."""


class Bars:
    """Shows bars, as widgets in a notebook and otherwise as lines on stderr. Notices are printed."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm[None]] = {}
        self.cell = _cell()

    def notice(self, text: str) -> None:
        """Print a sentence above the bars."""
        from tqdm.auto import tqdm

        # Notebooks show text on stderr like an error.
        tqdm.write(printable(text), file=sys.stderr if _cell() is None else sys.stdout)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of `task`, and show `detail` after it."""
        bar = self._bar(task, done, total)
        bar.set_postfix_str(printable(detail.removeprefix(f"{task}: ")), refresh=False)
        bar.update(done - bar.n)

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Move the bar of `task` by a part of a step."""
        bar = self._bar(task, done, total)
        # Only `step` completes a step.
        bar.update(done + min(share, 0.999) - bar.n)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Ignore it: the bars show each task."""

    def close(self, task: str) -> None:
        """Remove the bar of `task`."""
        if task in self.bars:
            self.bars.pop(task).close()

    def _bar(self, task: str, done: int, total: int) -> "tqdm[None]":
        from tqdm.auto import tqdm

        if self.cell != (cell := _cell()):
            # These bars were left by an interrupted cell.
            self.bars, self.cell = {}, cell
        if task not in self.bars:
            form = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
            # Steps of an earlier command move the bar, but do not count for its speed.
            self.bars[task] = tqdm(
                desc=task, initial=done, total=total, leave=False, miniters=0, dynamic_ncols=True, bar_format=form
            )
        self.bars[task].total = total
        return self.bars[task]


def _cell() -> int | None:
    """The number of the running cell of a notebook, or None outside notebooks."""
    kernel = sys.modules.get("ipykernel")
    shell = sys.modules["IPython"].get_ipython() if kernel else None
    return None if shell is None else int(shell.execution_count)


class Silent:
    """Ignores all reports."""

    def notice(self, text: str) -> None:
        """Ignore it."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Ignore it."""

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Ignore it."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Ignore it."""

    def close(self, task: str) -> None:
        """Ignore it."""


# The default of functions that take a `Progress`.
BARS = Bars()
