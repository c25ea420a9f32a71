"""What the sampler looks back at: in a small study all of it, in a large one its newest and its best."""

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from busi_tune.search import recent
from busi_tune.search.recent import Completed, Recent

SPACE = {"x": FloatDistribution(-3.0, 3.0), "y": FloatDistribution(1e-3, 1.0, log=True)}


def study_of(count: int, direction: StudyDirection = StudyDirection.MINIMIZE) -> optuna.Study:
    """A study of trials with random values, every fifth pruned and every seventh failed, and of four that run."""
    generator = np.random.default_rng(0)
    study = optuna.create_study(direction=direction)
    for number in range(count):
        state = TrialState.FAIL if number % 7 == 6 else TrialState.PRUNED if number % 5 == 4 else TrialState.COMPLETE
        x, y = generator.uniform(-3, 3), 10 ** generator.uniform(-3, 0)
        value = round(x * x + y, 1)
        study.add_trial(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params={"x": x, "y": y},
                distributions=SPACE,
                intermediate_values={1: value},
            )
        )
    for _ in range(4):
        params = {"x": generator.uniform(-3, 3), "y": 10 ** generator.uniform(-3, 0)}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE))
    return study


def seen(study: optuna.Study) -> tuple[Recent, list[FrozenTrial]]:
    """The study as its sampler sees it, and all its completed trials, the best first."""
    completed = Completed(study.direction)
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        completed.add(trial)
    view = Recent(study.study_name, study._storage)
    trials = study.get_trials(deepcopy=False)
    running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
    ended = [trial.number for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    view.look(trials, running, ended, completed.ranking)
    return view, completed.ranking


def drawn(study: optuna.Study, trial_id: int) -> dict[str, float]:
    study.sampler = TPESampler(seed=1)
    return optuna.Trial(study, trial_id).relative_params


@pytest.mark.parametrize("direction", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
def test_from_a_small_study_the_sampler_draws_as_it_would_from_optunas_own(direction: StudyDirection) -> None:
    study = study_of(60, direction)
    asked = study.ask()
    view, _ = seen(study)
    # TPE keeps away from what runs, and it would draw otherwise if it did not see it.
    assert len(view.trials) == 52 + 4 + 1
    assert drawn(view, asked._trial_id) == drawn(study, asked._trial_id)
    assert drawn(view, asked._trial_id).keys() == SPACE.keys()


def test_from_a_large_study_it_sees_the_newest_and_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "WINDOW", 30)
    view, ranking = seen(study_of(200))
    numbers = [trial.number for trial in view.trials]
    ended = [number for number in range(200) if number % 7 != 6]
    best = {trial.number for trial in ranking[: recent.BEST]}
    assert numbers == sorted({*ended[-30:], *best, *range(200, 204)})
    assert min(best) < ended[-30]


@pytest.mark.parametrize("direction", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
def test_trials_are_ranked_by_value_and_a_tie_goes_to_the_earlier(direction: StudyDirection) -> None:
    completed = Completed(direction)
    trials = study_of(80, direction).get_trials(states=(TrialState.COMPLETE,))
    for trial in reversed(trials):
        completed.add(trial)
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    assert completed.ranking == sorted(trials, key=lambda trial: sign * (trial.value or 0.0))
    assert len({trial.value for trial in trials}) < len(trials)
