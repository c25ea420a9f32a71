"""Trials in Optuna: draws by seed and number, recovery of interrupted asks, and stored pruner decisions."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, event

import busi_tune
from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.results import Json
from busi_tune.search.plan import Plan
from busi_tune.search.space import Space
from busi_tune.search.storage import Database
from busi_tune.search.trials import OpenTrial, Trials, decided_before, finished, ranked, running
from postgres import Server
from recorder import Recorder

pytestmark = pytest.mark.slow

SPACE: Space = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "scheduler_patience": IntDistribution(2, 9),
}
# The attributes that are stored when a trained trial ends.
FACTS: dict[str, Json] = {"epochs_run": 1}
PLAN = Plan(config=Config(), space=SPACE, metric="val_loss", trial_epochs=20, split="")


def opened(folder: Path, plan: Plan = PLAN) -> Trials:
    return Trials(Database.of(folder, None, Silent()), "study", plan)


def asked(trials: Trials) -> OpenTrial:
    trial = trials.ask()
    assert trial is not None
    return trial


def end(trials: Trials, trial: OpenTrial, *values: float, state: TrialState = TrialState.COMPLETE) -> None:
    for epoch, value in enumerate(values, start=1):
        trials.report(trial, epoch, value)
    trials.tell(trial, state, {"epochs_run": len(values)}, values[-1] if state == TrialState.COMPLETE else None)


def loss_of(params: dict[str, float]) -> float:
    """A smooth function of the parameters with its minimum inside the space."""
    return (math.log10(params["learning_rate"]) + 3) ** 2 + (math.log10(params["weight_decay"]) + 2) ** 2


def same(trial: FrozenTrial) -> dict[str, object]:
    """All properties of a trial except its ID and its times."""
    names = ("number", "state", "value", "params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    return {name: getattr(trial, name) for name in names}


class KilledError(Exception):
    """Raised in place of a kill between two commits of the database."""


class Kill:
    """Raises an error before the n-th commit from now on."""

    def __init__(self, at: int) -> None:
        self.at, self.commits = at, 0

    def __call__(self, *_: object) -> None:
        self.commits += 1
        if self.commits == self.at:
            raise KilledError

    def __enter__(self) -> "Kill":
        event.listen(Engine, "commit", self)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "commit", self)


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    first = asked(opened(tmp_path))
    assert first.trial.params == {"learning_rate": 1e-3, "weight_decay": 1e-2, "scheduler_patience": 5}


def test_a_draw_depends_on_seed_number_and_ended_trials_alone(tmp_path: Path) -> None:
    """14 trials, the first ones random and the rest from TPE: asked by one process, and by a new process each."""
    folders = [tmp_path / name for name in ("whole", "parts", "other")]
    for folder in folders:
        folder.mkdir()
    whole, other = opened(folders[0]), opened(folders[2], replace(PLAN, config=Config(seed=1)))
    for _ in range(14):
        for trials in (whole, opened(folders[1]), other):
            trial = asked(trials)
            end(trials, trial, loss_of(trial.trial.params))
    drawn, again, else_drawn = ([trial.params for trial in opened(folder).all()] for folder in folders)
    assert drawn == again
    assert drawn[0] == else_drawn[0]
    assert all(one != two for one, two in zip(drawn[1:], else_drawn[1:], strict=True))
    # By then TPE has learnt: its last draws are nearer to the minimum than the random ones.
    assert np.mean([loss_of(params) for params in drawn[11:]]) < np.mean([loss_of(params) for params in drawn[1:10]])


@pytest.mark.parametrize("ended", [0, 3, 12], ids=["the baseline", "at random", "by TPE"])
def test_a_trial_that_was_killed_while_it_was_asked_for_is_completed_as_it_would_have_been(
    ended: int, tmp_path: Path
) -> None:
    """Covers a kill before each commit of an ask."""
    plain = tmp_path / "plain"
    plain.mkdir()
    trials = opened(plain)
    for _ in range(ended):
        trial = asked(trials)
        end(trials, trial, loss_of(trial.trial.params))
    with Kill(at=0) as count:
        expected = asked(trials).trial.params
    assert count.commits > len(SPACE)
    halves = 0
    for moment in range(1, count.commits + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        killed = opened(folder)
        for _ in range(ended):
            trial = asked(killed)
            end(killed, trial, loss_of(trial.trial.params))
        with Kill(at=moment), pytest.raises(KilledError):
            killed.ask()
        after = opened(folder)
        left = running(after.all())
        halves += any(len(trial.params) < len(SPACE) for trial in left)
        found = after.resume(left[0].number) if left else after.ask()
        assert found is not None
        assert (found.number, found.trial.params) == (ended, expected)
    assert halves > 0


def test_drivers_see_each_others_trials_and_go_on_with_them(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    first, second = asked(one), asked(other)
    assert (first.number, second.number) == (0, 1)
    end(one, first, 0.5)
    assert other.resume(0) is None
    other.report(second, 1, 0.25)
    # `other` no longer exists, and `one` resumes its trial.
    taken = one.resume(1)
    assert taken is not None
    assert taken.reported == 1
    assert taken.trial.params == second.trial.params
    one.report(taken, 1, 9.0)
    end(one, taken, 9.0, 0.2)
    assert one.all()[1].intermediate_values == {1: 0.25, 2: 0.2}
    assert [trial.number for trial in ranked(one.all(), PLAN)] == [1, 0]
    assert [same(trial) for trial in one.all()] == [same(trial) for trial in other.all()]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_study_is_optunas_own(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: Server | None = request.getfixturevalue("postgres") if kind == "postgres" else None
    name = f"read from {kind}"
    trials = Trials(Database.of(tmp_path, server.url if server else None, Silent()), name, PLAN)
    end(trials, asked(trials), 0.5, 0.1 + 0.2)
    end(trials, asked(trials), 1.0, math.inf, state=TrialState.PRUNED)
    end(trials, asked(trials), state=TrialState.FAIL)
    trials.report(asked(trials), 1, -math.inf)
    url = server.url if server else f"sqlite:///{tmp_path / 'study.db'}"
    there = optuna.load_study(study_name=name, storage=url).trials
    assert [same(trial) for trial in there] == [same(trial) for trial in trials.all()]
    assert [trial.state.name for trial in there] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert there[0].value == 0.1 + 0.2
    assert len(finished(there)) == 3


def test_a_trial_that_was_enqueued_by_hand_is_the_next(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    end(trials, asked(trials), 1.0)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'study.db'}")
    study.enqueue_trial({"learning_rate": 0.005})
    trial = asked(trials)
    assert (trial.number, trial.trial.params["learning_rate"]) == (1, 0.005)
    assert trial.trial.params.keys() == SPACE.keys()


# Optuna warns, too.
@pytest.mark.filterwarnings("ignore:Fixed parameter")
@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"learning_rate": -1.0}, "-1.0"),
        ({"learning_rate": 11.0}, "learning_rate must be between 1e-08 and 10, not 11.0"),
        ({"learning_rate": "small"}, "small"),
        ({"batch_size": 8}, "8"),
    ],
)
def test_a_trial_that_was_enqueued_with_impossible_values_fails_and_the_study_goes_on(
    wanted: dict[str, object], problem: str, tmp_path: Path
) -> None:
    plan, seen = replace(PLAN, space={**SPACE, "batch_size": CategoricalDistribution([16, 32])}), Recorder()
    trials = Trials(Database.of(tmp_path, None, seen), "study", plan)
    end(trials, asked(trials), 1.0)
    optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'study.db'}").enqueue_trial(wanted)
    assert trials.ask() is None
    failed = trials.all()[1]
    assert failed.state == TrialState.FAIL
    assert problem in failed.user_attrs["stop_reason"]
    [notice] = seen.notices
    assert notice.startswith("Trial 1 failed: It was enqueued with invalid values: ")
    assert asked(trials).number == 2


@pytest.mark.parametrize("pruner", ["stalled", "median"])
def test_a_trial_is_pruned_where_the_pruner_says_so_and_its_scheduler_could_have_acted(
    pruner: str, tmp_path: Path
) -> None:
    trials, generator = opened(tmp_path, replace(PLAN, pruner=pruner)), np.random.default_rng(0)
    decisions = []
    for _ in range(25):
        trial, best, decided = asked(trials), math.inf, False
        for epoch in range(1, 9):
            best = min(best, float(generator.uniform()) / epoch)
            trials.report(trial, epoch, best)
            decided = trials.should_prune(trial, epoch)
            may = epoch > trial.trial.params["scheduler_patience"] + 1
            assert decided == (may and trial.trial.should_prune())
            decisions.append(decided)
            if decided:
                break
        trials.tell(trial, TrialState.PRUNED if decided else TrialState.COMPLETE, FACTS, None if decided else best)
    assert {True, False} == set(decisions)


HYPERBAND = replace(PLAN, pruner="hyperband", space={"learning_rate": SPACE["learning_rate"]})
HYPERBAND = replace(HYPERBAND, config=Config(scheduler_patience=0))


def run_hyperband(folder: Path, kill_at: int) -> tuple[list[tuple[TrialState, float | None, int | None]], int]:
    """Runs trials under Hyperband, with repeated kills before the `kill_at`-th commit of a decision.

    Returns the state, value and last step of each trial, and the number of kills.
    """
    folder.mkdir()
    trials, kills = opened(folder, HYPERBAND), 0
    for number in range(14):
        trial = asked(trials)
        for epoch in range(1, HYPERBAND.trial_epochs + 1):
            trials.report(trial, epoch, float((7 * number) % 15 + 1) / epoch)
            try:
                with Kill(at=kill_at):
                    decided = trials.should_prune(trial, epoch)
            except KilledError:
                kills += 1
                trials = opened(folder, HYPERBAND)
                resumed = trials.resume(number)
                assert resumed is not None
                trial = resumed
                decided = trials.should_prune(trial, epoch)
            if decided:
                break
        state = TrialState.PRUNED if decided else TrialState.COMPLETE
        trials.tell(trial, state, FACTS, None if decided else float(number + 1))
    told = [(trial.state, trial.value, trial.last_step) for trial in trials.all()]
    return told, kills


def test_hyperbands_decisions_stay_as_they_were_over_kills(tmp_path: Path) -> None:
    """Hyperband's decisions change its own state, so a second decision on the same epoch could differ."""
    whole, none = run_hyperband(tmp_path / "whole", kill_at=0)
    assert none == 0
    assert {state for state, *_ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}
    for moment in (1, 2):
        killed, kills = run_hyperband(tmp_path / str(moment), moment)
        assert kills > 5
        assert killed == whole


def test_an_undecided_comparison_is_made_again_as_it_was(tmp_path: Path) -> None:
    """Without the records of the first decision, Hyperband would not prune any trial."""
    trials, answers = opened(tmp_path, HYPERBAND), []
    for number in range(10):
        trial = asked(trials)
        for epoch in range(1, 21):
            trials.report(trial, epoch, float(number + 1))
            answer = trial.trial.should_prune()
            assert decided_before(trials.all(), trial, "study", HYPERBAND) is answer
            answers.append(answer)
            trials._keep_rungs(trial)
            if answer:
                break
        trials.tell(trial, TrialState.PRUNED if answer else TrialState.COMPLETE, FACTS, None if answer else 1.0)
    assert any(answers)


def test_a_tell_whose_answer_was_lost_can_be_repeated(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    trial = asked(trials)
    facts: list[dict[str, Json]] = [{"epochs_run": 1}, {}]
    for given in facts:
        trials.tell(trial, TrialState.COMPLETE, given, 0.5)
    [there] = trials.all()
    assert (there.state, there.value, there.user_attrs["epochs_run"]) == (TrialState.COMPLETE, 0.5, 1)


PRIVATE = re.compile(
    r"optuna\.(\w+\.)*_|from optuna\S* import .*\b_|\._(storage|study_id|search_space|suggest|get_trials|trial_id)\b"
    r"|\(optuna\.Study\)|\(Study\)|models\.\w+Model"
)


def test_no_private_name_of_optuna_is_used_but_one() -> None:
    package = Path(busi_tune.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if PRIVATE.search(line)
    ]
    assert found == ["search/trials.py: return optuna.Trial(study, trial._trial_id)"]
