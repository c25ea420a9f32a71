"""The trials that sampler and pruner look back at: the newest and the best, however many there are."""

from bisect import insort
from collections import deque
from collections.abc import Container, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# Of so many of the newest trials; the work for one more does not grow with the study.
WINDOW = 1_000
# Of so many of the best, be they old: TPE tells at most 25 from the rest (`default_gamma`).
BEST = 25


class Recent(optuna.Study):
    """A study as its sampler sees it; up to `WINDOW` trials that have ended it is the study.

    TPE weighs trials by their age, the oldest close to nothing (`default_weights`), so that little is lost.
    """

    seen: Sequence[FrozenTrial] = ()

    def look(
        self,
        trials: Sequence[FrozenTrial],
        running: Iterable[int],
        learnt: Sequence[int],
        ranking: Sequence[FrozenTrial],
    ) -> None:
        """Take in how it stands: all trials, the numbers of what runs and of what is learnt from, and the ranking.

        What runs is seen, too: TPE keeps away from it, so that workers do not all try the same (its constant liar).
        """
        kept = {*running, *learnt[-WINDOW:], *(trial.number for trial in ranking[:BEST])}
        self.seen = [trials[number] for number in sorted(kept)]

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: ARG002
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: ARG002
    ) -> list[FrozenTrial]:
        return [trial for trial in self.seen if states is None or trial.state in states]


class Completed:
    """The completed trials: all of them ranked, and the newest as a pruner looks at them at each epoch."""

    def __init__(self, direction: StudyDirection) -> None:
        self.direction = direction
        self.sign = 1 if direction == StudyDirection.MINIMIZE else -1
        self.ranking: list[FrozenTrial] = []
        self.newest: deque[SimpleNamespace] = deque(maxlen=WINDOW)

    def add(self, trial: FrozenTrial) -> None:
        """Take in one more; a tie goes to the earlier trial."""
        insort(self.ranking, trial, key=self._rank)
        self.newest.append(SimpleNamespace(intermediate_values=trial.intermediate_values))

    def _rank(self, trial: FrozenTrial) -> tuple[float, int]:
        assert trial.value is not None
        return self.sign * trial.value, trial.number

    def get_trials(self, deepcopy: bool, states: Sequence[TrialState]) -> Any:
        """What the median pruner asks of a study; Optuna's own trials are slow to see by the thousand."""
        assert not deepcopy
        assert states == (TrialState.COMPLETE,)
        return self.newest
