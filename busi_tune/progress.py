"""The interface for reports of progress, and an implementation that ignores them."""

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """Receives reports of progress. The command line draws bars, tests record the reports, `Silent` ignores them."""

    def notice(self, text: str) -> None:
        """Report one sentence that the user should see."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` steps of `task` are finished. `detail` describes the last step."""

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Report that `share` (0 to 1) of the next step is finished, after `done` of `total`."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Report the state of several tasks as a table, in place of the last one."""

    def close(self, task: str) -> None:
        """Report that `task` has ended, finished or not."""


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
