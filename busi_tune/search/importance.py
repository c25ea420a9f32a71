"""How much each parameter mattered in a study, how sure that is, and which parameters never acted."""

import copy
import logging
import warnings
from collections.abc import Container, Mapping, Sequence

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from busi_tune.config import Config
from busi_tune.search.space import Space
from busi_tune.training.epochs import Epoch, Watcher

FEWEST_TRIALS = 10
# PED-ANOVA compares the best part of the trials with all; Optuna's tenth would be one or two trials here.
BEST = 0.25
RESAMPLES = 100
SPREAD = (0.025, 0.975)


def importances(
    trials: Sequence[FrozenTrial], space: Space, direction: StudyDirection, seed: int
) -> dict[str, dict[str, float]] | None:
    """Each parameter's share of importance, from 0 to 1, and where it lies in 95 % of resamples of the trials.

    By PED-ANOVA (Watanabe et al., "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
    subspaces", 2023), of the completed trials alone; None where these are fewer than `FEWEST_TRIALS`, or the space has
    nothing that varies. The most important comes first.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    names = [name for name, distribution in space.items() if not distribution.single()]
    if len(complete) < FEWEST_TRIALS or not names:
        return None
    logging.getLogger("optuna").setLevel(logging.ERROR)
    shares = _shares(complete, names, direction)
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(complete), size=(RESAMPLES, len(complete)))
    resampled = [_shares([complete[number] for number in row], names, direction) for row in rows]
    result = {}
    for name in sorted(names, key=lambda name: -shares[name]):
        low, high = np.quantile([each[name] for each in resampled], SPREAD)
        result[name] = {"importance": shares[name], "low": float(low), "high": float(high)}
    return result


class _Sample(optuna.Study):
    """A study of given trials, some of them more than once; to add them to one would copy all that they hold."""

    def __init__(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> None:
        empty = optuna.create_study(direction=direction)
        super().__init__(empty.study_name, empty._storage)
        self.sample = [copy.copy(trial) for trial in trials]
        # They are told apart by this.
        for number, trial in enumerate(self.sample):
            trial._trial_id = number

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        assert not deepcopy
        return [trial for trial in self.sample if states is None or trial.state in states]


def _shares(trials: Sequence[FrozenTrial], names: list[str], direction: StudyDirection) -> dict[str, float]:
    study = _Sample(trials, direction)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    with warnings.catch_warnings():
        # Trials of equal value have equal shares, which is what the warning says.
        warnings.simplefilter("ignore", UserWarning)
        return get_param_importances(study, evaluator=evaluator, params=names)


def never_acted(histories: Mapping[int, Sequence[Epoch]], configs: Mapping[int, Config], space: Space) -> list[str]:
    """A sentence for each parameter of `space` that changed nothing in any trial; the trials by their numbers."""
    trained = [(history, configs[number]) for number, history in histories.items() if history]
    if not trained:
        return []
    lowered = [_lowered(history) for history, _ in trained]
    bounded = [_bounded(history, config) for history, config in trained]
    stopped = [_stopped(history, config) for history, config in trained]
    rules = {
        "scheduler_patience": (lowered, "the learning rate was lowered"),
        "scheduler_factor": (lowered, "the learning rate was lowered"),
        "min_learning_rate": (bounded, "the learning rate came down to it"),
        "early_stopping_patience": (stopped, "training was stopped early"),
    }
    return [
        f"{name} never acted: {what} in none of the {len(trained)} trials."
        for name, (acted, what) in rules.items()
        if name in space and not any(acted)
    ]


def _lowered(history: Sequence[Epoch]) -> bool:
    return history[-1].learning_rate < history[0].learning_rate


def _bounded(history: Sequence[Epoch], config: Config) -> bool:
    """Whether the scheduler lowered the learning rate to its bound, or the bound kept it where it was."""
    lowest = min(record.learning_rate for record in history)
    return lowest <= config.min_learning_rate


def _stopped(history: Sequence[Epoch], config: Config) -> bool:
    watcher = Watcher(config.early_stopping_patience)
    for record in history:
        watcher.see(record)
    return watcher.should_stop(len(history))
