"""The importance of each parameter in a study, with its spread."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from busi_tune.results import Importance
from busi_tune.search.space import Space

FEWEST_TRIALS = 10
# PED-ANOVA compares the best part of the trials with all; Optuna's tenth would be one or two trials here.
BEST = 0.25
# Resamples, and of a long study fewer: their trials together.
RESAMPLES, LEAST_RESAMPLES, RESAMPLED_TRIALS = 100, 20, 20_000
SPREAD = (0.025, 0.975)


def importances(
    trials: Sequence[FrozenTrial], space: Space, direction: StudyDirection, seed: int
) -> dict[str, Importance] | None:
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
    resamples = max(LEAST_RESAMPLES, min(RESAMPLES, RESAMPLED_TRIALS // len(complete)))
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(complete), size=(resamples, len(complete)))
    resampled = [_shares([complete[number] for number in row], names, direction) for row in rows]
    result: dict[str, Importance] = {}
    for name in sorted(names, key=lambda name: -shares[name]):
        low, high = np.quantile([each[name] for each in resampled], SPREAD)
        result[name] = {"importance": shares[name], "low": float(low), "high": float(high)}
    return result


def _shares(trials: Sequence[FrozenTrial], names: list[str], direction: StudyDirection) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    # Without their epochs, which are not looked at, trials are quickly added.
    study.add_trials(
        [create_trial(value=trial.value, params=trial.params, distributions=trial.distributions) for trial in trials]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    with warnings.catch_warnings():
        # Trials of equal value have equal shares, as the warning says.
        warnings.simplefilter("ignore", UserWarning)
        return get_param_importances(study, evaluator=evaluator, params=names)
