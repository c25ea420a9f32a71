"""The study in memory and in the database: what is written is what Optuna reads, and drivers see each other."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from busi_tune.config import Config
from busi_tune.progress import Silent
from busi_tune.search import tables
from busi_tune.search.ledger import Ledger
from busi_tune.search.storage import Database
from busi_tune.search.studies import Plan
from postgres import Server
from test_search import Recorder

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "scheduler_patience": IntDistribution(2, 9),
}
PLAN = Plan(config=Config(), space=SPACE, metric="val_loss", trial_epochs=3, split="")


def ledger(folder: Path, plan: Plan = PLAN) -> Ledger:
    return Ledger(Database.of(folder, None, Silent()), "study", plan)


def read(opened: Ledger) -> list[FrozenTrial]:
    """The trials, as Optuna alone reads them."""
    return optuna.load_study(study_name="study", storage=optuna.storages.RDBStorage(str(opened.place[0].url))).trials


def same(trial: FrozenTrial) -> dict[str, object]:
    """All of a trial but its id and its times."""
    names = ("number", "state", "value", "params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    return {name: getattr(trial, name) for name in names}


def end(opened: Ledger, trial: optuna.Trial, *values: float, state: TrialState = TrialState.COMPLETE) -> None:
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
    trial.set_user_attr("epochs_run", len(values))
    opened.tell(trial, state, values[-1] if state == TrialState.COMPLETE else None)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_is_written_is_what_optuna_reads(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: Server | None = request.getfixturevalue("postgres") if kind == "postgres" else None
    opened = Ledger(Database.of(tmp_path, server.url if server else None, Silent()), f"written in {kind}", PLAN)
    end(opened, opened.ask(), 0.5, 0.1 + 0.2)
    end(opened, opened.ask(), 1.0, math.inf, state=TrialState.PRUNED)
    end(opened, opened.ask(), state=TrialState.FAIL)
    opened.ask().report(-math.inf, 1)
    assert opened.flush() == [0, 1, 2]
    there = optuna.load_study(
        study_name=f"written in {kind}", storage=server.url if server else f"sqlite:///{tmp_path / 'study.db'}"
    ).trials
    assert [same(trial) for trial in there] == [same(trial) for trial in opened.memory.trials]
    assert all((trial.datetime_complete is not None) == trial.state.is_finished() for trial in there)
    assert all(trial.datetime_start is not None for trial in there)
    assert there[0].params == {"learning_rate": PLAN.config.learning_rate, "scheduler_patience": 5}


def test_what_becomes_of_a_trial_is_written_with_flush(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    trial = opened.ask()
    assert read(opened) == []
    assert opened.flush() == []
    end(opened, trial, 1.0)
    [there] = read(opened)
    assert there.state == TrialState.RUNNING
    assert there.params == trial.params
    assert there.intermediate_values == {}
    assert opened.flush() == [0]
    assert read(opened)[0].state == TrialState.COMPLETE
    assert opened.flush() == []


def test_the_books_are_kept_as_the_trials_stand(tmp_path: Path) -> None:
    """Two drivers in turn: what each counts is what a look at all trials finds."""
    one, other = ledger(tmp_path), ledger(tmp_path)
    generator = np.random.default_rng(0)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    at_work: list[tuple[Ledger, optuna.Trial]] = []
    for turn in range(60):
        opened = (one, other)[turn % 2]
        opened.read(epochs=True)
        if at_work and (len(at_work) > 4 or generator.uniform() < 0.5):
            its, trial = at_work.pop(int(generator.integers(len(at_work))))
            end(its, trial, *generator.uniform(size=int(generator.integers(1, 4))), state=states[turn % 3])
            its.flush()
        else:
            trial = opened.ask()
            opened.flush()
            trial.report(1.0, 9)
            at_work.append((opened, trial))
        trials = opened.memory.trials
        assert [trial.number for trial in opened.running] == [
            trial.number for trial in trials if trial.state == TrialState.RUNNING
        ]
        assert opened.ended == len(opened.finished) == sum(trial.state.is_finished() for trial in trials)
        assert opened.epochs == sum(
            trial.user_attrs["epochs_run"] if trial.state.is_finished() else len(trial.intermediate_values)
            for trial in trials
        )
        assert opened.learnt == [
            trial.number for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        assert {trial.number for trial in opened.ranked} == {
            trial.number for trial in trials if trial.state == TrialState.COMPLETE
        }
    assert len(one.memory.trials) > 20
    assert {trial.state for trial in one.memory.trials} >= set(states)
    one.flush()
    other.flush()
    one.read(epochs=True)
    again = ledger(tmp_path)
    assert (again.ended, again.epochs, again.learnt) == (one.ended, one.epochs, one.learnt)


def test_to_write_twice_is_to_write_once(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    trial = opened.ask()
    opened.flush()
    new = opened.own[trial.number]
    assert new is not None
    tables.write(*opened.place, {0: (None, new)})
    end(opened, trial, 1.0, 0.5)
    ended = opened.memory.trials[0]
    for _ in range(2):
        tables.write(*opened.place, {0: (new, ended)})
    assert [same(trial) for trial in read(opened)] == [same(ended)]


def test_drivers_see_each_others_trials(tmp_path: Path) -> None:
    one, other = ledger(tmp_path), ledger(tmp_path)
    first = one.ask()
    one.flush()
    other.read()
    second = other.ask()
    other.flush()
    assert (first.number, second.number) == (0, 1)
    end(one, first, 0.5)
    assert one.flush() == [0]
    other.read()
    assert same(other.memory.trials[0]) == same(one.memory.trials[0])
    assert other.take(0) is None
    one.read()
    second.report(0.25, 1)
    other.flush()
    one.read()
    assert one.memory.trials[1].intermediate_values == {}
    one.read(epochs=True)
    assert one.memory.trials[1].intermediate_values == {1: 0.25}
    # `other` is gone, and `one` goes on with its trial.
    taken = one.take(1)
    assert taken is not None
    assert one.own[1] is not None
    assert one.own[1].intermediate_values == {1: 0.25}
    taken.report(0.2, 2)
    one.tell(taken, TrialState.COMPLETE, 0.2)
    assert one.flush() == [1]
    assert [same(trial) for trial in read(one)] == [same(trial) for trial in one.memory.trials]


def test_a_trial_that_was_enqueued_by_hand_is_the_next(tmp_path: Path) -> None:
    end(opened := ledger(tmp_path), opened.ask(), 1.0)
    opened.flush()
    study = optuna.load_study(study_name="study", storage=str(opened.place[0].url))
    study.enqueue_trial({"learning_rate": 0.005})
    opened.read()
    trial = opened.ask()
    opened.flush()
    assert (trial.number, trial.params["learning_rate"]) == (1, 0.005)
    end(opened, trial, 0.5)
    opened.flush()
    assert [same(trial) for trial in read(opened)] == [same(trial) for trial in opened.memory.trials]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be between 1e-08 and 10, not -1."),
        ({"learning_rate": "small"}, "learning_rate must be of type float, not 'small'."),
        ({"batch_size": 8}, "batch_size must be one of 16, 32, not 8."),
    ],
)
def test_a_trial_that_was_enqueued_and_cannot_be_is_drawn(wanted: dict[str, Any], problem: str, tmp_path: Path) -> None:
    plan = replace(PLAN, space=SPACE | {"batch_size": CategoricalDistribution([16, 32])})
    seen = Recorder()
    opened = Ledger(Database.of(tmp_path, None, seen), "study", plan)
    end(opened, opened.ask(), 1.0)
    opened.flush()
    optuna.load_study(study_name="study", storage=str(opened.place[0].url)).enqueue_trial(wanted)
    opened.read()
    trial = opened.ask()
    opened.flush()
    assert trial.number == 1
    plan.config.replace(**trial.params)
    assert trial.params.keys() == plan.space.keys()
    [notice] = seen.notices
    assert notice.startswith("Trial 1 was enqueued and cannot be: ")
    assert problem in notice


def test_what_hyperband_has_decided_stays_decided(tmp_path: Path) -> None:
    """It learns by being asked: of the same epoch twice, it would answer otherwise the second time."""
    opened = ledger(tmp_path, plan := replace(PLAN, pruner="hyperband", trial_epochs=20))
    pruned = 0
    for number in range(12):
        trial = opened.ask()
        decided = False
        for epoch in range(1, plan.trial_epochs + 1):
            trial.report(float(number + 1), epoch)
            decided = opened.should_prune(trial, epoch)
            if decided:
                break
        opened.flush()
        next_driver = ledger(tmp_path, plan)
        taken = next_driver.take(trial.number)
        assert taken is not None
        assert next_driver.should_prune(taken, epoch) is opened.should_prune(trial, epoch) is decided
        pruned += decided
        opened.tell(trial, TrialState.PRUNED if decided else TrialState.COMPLETE, None if decided else number + 1.0)
    assert 0 < pruned < 12


def test_what_is_pruned_is_what_optunas_pruner_prunes(tmp_path: Path) -> None:
    """Curves drawn at random, each epoch's decision beside that of the study in memory, as Optuna sees it."""
    plan = Plan(config=Config(), space=SPACE, metric="val_loss", trial_epochs=6, split="")
    opened = ledger(tmp_path, plan)
    generator = np.random.default_rng(0)
    decisions = []
    for _ in range(40):
        trial = opened.ask()
        best = math.inf
        for epoch in range(1, plan.trial_epochs + 1):
            best = min(best, float(generator.uniform()) / epoch)
            trial.report(best, epoch)
            complete = opened.memory.get_trials(states=(TrialState.COMPLETE,))
            may = epoch > trial.params["scheduler_patience"] + 1 and len(complete) >= 3
            decisions.append(opened.should_prune(trial, epoch))
            assert decisions[-1] == (may and trial.should_prune())
        opened.tell(trial, TrialState.PRUNED if decisions[-1] else TrialState.COMPLETE, None if decisions[-1] else best)
    assert {True, False} == set(decisions)
    opened.flush()
    assert len(ledger(tmp_path, plan).completed.newest) == len(opened.completed.newest)
