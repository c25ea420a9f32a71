"""A study whose database server is stopped while it runs."""

import threading
import time

from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions
from postgres import Server

TINY = Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=3, device="cpu")


def options(server: Server, trials: int = 3) -> SearchOptions:
    return SearchOptions(trials=trials, trial_epochs=2, storage=server.url)


class Saboteur(Silent):
    """Stops the server at the start of the second trial, and starts it again after `seconds` (None: never)."""

    def __init__(self, server: Server, seconds: float | None) -> None:
        self.server, self.seconds = server, seconds
        self.notices: list[str] = []
        self.back: threading.Thread | None = None
        self.done = False

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        if task == "trial 1" and not self.done:
            self.done = True
            self.server.stop()
            if self.seconds is not None:
                self.back = threading.Thread(target=self._later, args=(self.seconds,))
                self.back.start()

    def _later(self, seconds: float) -> None:
        time.sleep(seconds)
        self.server.start()
