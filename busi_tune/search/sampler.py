"""A sampler whose draws depend only on the study's seed, the trial's number and the ended trials."""

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from busi_tune.results import Scalar
from busi_tune.search.space import Space


class SeededTPESampler(BaseSampler):
    """Optuna's TPE sampler, reseeded for each trial; it draws all parameters of `space` at once.

    An interrupted study therefore draws the same values as an uninterrupted one, even if the interruption came between
    two parameters of a trial.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """All parameters that have more than one value."""
        return {name: distribution for name, distribution in self.space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Scalar]:
        """One value for each parameter: drawn jointly, or at random while there are too few trials to learn from."""
        tpe = self._tpe(trial.number)
        joint = tpe.sample_relative(study, trial, search_space)
        return {
            name: joint[name] if name in joint else tpe.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Scalar:
        """One value of a parameter outside `space`, which only another program can request."""
        value: Scalar = self._tpe(trial.number).sample_independent(study, trial, param_name, param_distribution)
        return value

    def _tpe(self, number: int) -> TPESampler:
        return TPESampler(seed=int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
