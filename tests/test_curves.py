"""The recorded learning curves are whole, and a replay of studies on them gives the same figures twice."""

import sys
from pathlib import Path

import optuna
import pandas as pd

sys.path.append(str(Path(__file__).parent / "benchmarks"))
from replay_pruners import MOST_EPOCHS, NAMES, STRATEGIES, TABLE, TRIAL_EPOCHS, read, study_epochs

PATIENCE = 10


def test_every_curve_is_whole_and_ends_where_training_stopped() -> None:
    table = pd.read_csv(TABLE)
    curves = table.groupby([*NAMES, "seed"])
    assert len(table[table["seed"] == 0].groupby(NAMES)) >= 60
    for _, rows in curves:
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1))
        since_lowest = len(rows) - 1 - rows["val_loss"].to_numpy().argmin()
        assert since_lowest == PATIENCE or (since_lowest < PATIENCE and len(rows) == 30)


def test_the_grid_is_full_and_some_of_it_is_good() -> None:
    curves = read(TABLE)
    points = 1
    for axis in curves.axes:
        points *= len(axis)
    assert len(curves.best) == points
    assert 0 < sum(losses[-1] <= curves.target for losses in curves.best.values()) < points / 2
    assert all(
        len(losses) <= TRIAL_EPOCHS and losses == sorted(losses, reverse=True) for losses in curves.best.values()
    )


def test_a_replay_gives_the_same_figure_twice() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = read(TABLE)
    for name in ("random, no pruning", "TPE, median 0"):
        sampler, pruner = STRATEGIES[name]
        spent = [study_epochs(curves, sampler(3), pruner(), "replay") for _ in range(2)]
        assert spent[0] == spent[1]
        assert 0 < spent[0] <= MOST_EPOCHS
