"""A progress display that records everything."""

from busi_tune.progress import Silent


class Recorder(Silent):
    """Records the notices and the steps of a command."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[str, int]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self.steps.append((task, done))

    def epochs(self, task: str) -> list[int]:
        return [done for name, done in self.steps if name == task]
