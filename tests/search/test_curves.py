"""The recorded learning curves are complete, and repeated replays of studies give equal results."""

import optuna
import pandas as pd
import pytest

from replay_pruners import MOST_EPOCHS, NAMES, STRATEGIES, TABLES, TRIAL_EPOCHS, read, replay

PATIENCE = 10


ARCHS = sorted(path.name.split(".")[1] for path in TABLES.glob("learning_curves.*.csv.gz"))


def test_an_architecture_is_recorded() -> None:
    assert "resnet18" in ARCHS


@pytest.mark.parametrize("arch", ARCHS)
def test_every_curve_is_whole_and_ends_where_training_stopped(arch: str) -> None:
    table = pd.read_csv(TABLES / f"learning_curves.{arch}.csv.gz")
    curves = table.groupby([*NAMES, "seed"])
    assert len(table[table["seed"] == 0].groupby(NAMES)) >= 60
    for _, rows in curves:
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1))
        since_lowest = len(rows) - 1 - rows["val_loss"].to_numpy().argmin()
        assert since_lowest == PATIENCE or (since_lowest < PATIENCE and len(rows) == 30)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_grid_is_full_and_some_of_it_is_good(arch: str) -> None:
    curves = read(arch)
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
    curves = read("resnet18")
    for name in ("random", "TPE, patience + 2"):
        sampler, pruner, _ = STRATEGIES[name]
        spent = [replay(curves, sampler(3), pruner(curves), "replay") for _ in range(2)]
        # The comparison is of texts because both values are NaN without recorded test accuracies.
        assert str(spent[0]) == str(spent[1])
        assert 0 < spent[0].until_good <= MOST_EPOCHS


@pytest.mark.parametrize("arch", ARCHS)
def test_the_default_pruner_saves_a_tenth_of_the_epochs_and_finds_as_good_a_trial(arch: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = read(arch)
    unpruned, pruned = (
        [replay(curves, STRATEGIES[name][0](seed), STRATEGIES[name][1](curves), "replay") for seed in range(10)]
        for name in ("random", "random, patience + 2")
    )
    assert sum(each.by_trials for each in pruned) < 0.9 * sum(each.by_trials for each in unpruned)
    assert [each.loss for each in pruned] == [each.loss for each in unpruned]
