"""The importance of each parameter in a study, with a bootstrap interval."""

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
# PED-ANOVA compares this share of best trials with all trials. Optuna's default, 0.1, would be one or two trials here.
BEST = 0.25
# The most and the fewest resamples. Long studies get fewer, so that all resamples hold about `RESAMPLED_TRIALS` trials.
RESAMPLES, LEAST_RESAMPLES, RESAMPLED_TRIALS = 100, 20, 20_000
SPREAD = (0.025, 0.975)


def importances(
    trials: Sequence[FrozenTrial], space: Space, direction: StudyDirection, seed: int
) -> dict[str, Importance] | None:
    """Each parameter's importance, as a share from 0 to 1, with its 95 % interval over resamples of the trials.

    The method is PED-ANOVA (Watanabe et al., "PED-ANOVA: efficiently quantifying hyperparameter importance in
    arbitrary subspaces", 2023) on the completed trials. The most important parameter comes first. The result is None
    if fewer than `FEWEST_TRIALS` trials are complete, or if no parameter of the space varies.
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
    # The method ignores the values of epochs, and trials without them are added faster.
    study.add_trials(
        [create_trial(value=trial.value, params=trial.params, distributions=trial.distributions) for trial in trials]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    with warnings.catch_warnings():
        # Optuna warns that trials of equal value give equal shares, which is the intended result.
        warnings.simplefilter("ignore", UserWarning)
        return get_param_importances(study, evaluator=evaluator, params=names)
