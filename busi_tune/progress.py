"""The interface through which long work reports its progress, and a listener that ignores it."""

from typing import Protocol


class Progress(Protocol):
    """A listener: the command line draws bars, a test records, `Silent` ignores."""

    def notice(self, text: str) -> None:
        """Say one sentence that the user should see."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` steps of `task` are finished; `detail` is a line on the last one."""

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Report that `share` (0 to 1) of the next step is finished, after `done` of `total`."""

    def close(self, task: str) -> None:
        """Report that `task` has ended, finished or not."""


class Silent:
    """Listens and says nothing."""

    def notice(self, text: str) -> None:
        """Ignore it."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Ignore it."""

    def within(self, task: str, done: int, total: int, share: float) -> None:
        """Ignore it."""

    def close(self, task: str) -> None:
        """Ignore it."""
