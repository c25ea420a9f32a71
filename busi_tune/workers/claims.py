"""The locks on trials that a driver holds, so that no two drivers train the same trial."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from busi_tune import locks


@dataclass(frozen=True)
class Claims:
    """The locks on trials that this driver holds. `folder` is the folder of the trials."""

    folder: Path
    held: dict[int, FileLock] = field(default_factory=dict)

    def take(self, number: int, *, wait: bool = False) -> bool:
        """Take the lock on a trial. Returns False if another driver holds it, or if this driver already does."""
        lock = None if number in self.held else locks.take(locks.trial_lock(self.folder, number), wait=wait)
        if lock is not None:
            self.held[number] = lock
        return lock is not None

    def release(self, number: int) -> None:
        """Release the lock on a trial."""
        locks.drop(self.held.pop(number))

    def release_all(self) -> None:
        """Release the locks on all trials."""
        for number in list(self.held):
            self.release(number)

    @contextmanager
    def holding(self, numbers: Iterable[int]) -> Iterator[None]:
        """Hold the locks on these trials during the block. Waits for locks that other drivers hold."""
        with ExitStack() as stack:
            for number in numbers:
                if self.take(number, wait=True):
                    stack.callback(self.release, number)
            yield
