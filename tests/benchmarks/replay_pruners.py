"""Replays studies on recorded learning curves: the epochs that samplers and pruners spend, and their results.

    python tests/benchmarks/replay_pruners.py --arch resnet18 --repetitions 1000 --plot FILE.png

A trial is one of the recorded configurations, trained for at most `TRIAL_EPOCHS`. It reports, stops early and is
pruned in the same way as in the driver (busi_tune/search/driver.py). All strategies replay the same seeds, so ratios
are of pairs of studies. The intervals of ratios resample the studies.
"""

import argparse
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from busi_tune.search.pruner import MORE_EPOCHS, StalledPruner

TABLES = Path(__file__).parents[1] / "data"
NAMES = ["learning_rate", "weight_decay", "scheduler_patience"]
TRIAL_EPOCHS = 20
# The default number of trials in a study.
TRIALS = 20
# A study without a good trial stops here, and counts with this many epochs.
MOST_EPOCHS = 1500
N_MIN_TRIALS = 3
Point = tuple[int, ...]


@dataclass(frozen=True)
class Curves:
    """A recorded grid: the values of each axis, and for each point the lowest loss up to each epoch.

    `test_accuracy` belongs to the epoch that a full training keeps. A trial is good if its lowest loss is at most
    `target`: the lowest recorded loss plus the standard deviation over seeds.
    """

    axes: list[list[float]]
    best: dict[Point, list[float]]
    test_accuracy: dict[Point, float]
    target: float
    deviation: float

    def part(self, points: set[Point]) -> "Curves":
        """The same grid restricted to `points`, with their own target."""
        best = {point: losses for point, losses in self.best.items() if point in points}
        target = min(losses[-1] for losses in best.values()) + self.deviation
        return Curves(self.axes, best, self.test_accuracy, target, self.deviation)


@dataclass(frozen=True)
class Spent:
    """The epochs of a study up to its first good trial, and epochs and best results of its first `TRIALS` trials."""

    until_good: int
    by_trials: int
    loss: float
    test_accuracy: float


def read(arch: str) -> Curves:
    """The recorded curves of seed 0, cut to a trial's epochs, with the target."""
    whole = pd.read_csv(TABLES / f"learning_curves.{arch}.csv.gz")
    table = whole[whole["epoch"] <= TRIAL_EPOCHS]
    first = table[table["seed"] == 0]
    axes = [sorted(first[name].unique().tolist()) for name in NAMES]

    def point(key: tuple[Hashable, ...]) -> Point:
        return tuple(list[Hashable](axis).index(value) for axis, value in zip(axes, key, strict=True))

    best = {point(key): rows["val_loss"].cummin().tolist() for key, rows in first.groupby(NAMES)}
    tests = {}
    if "test_accuracy" in whole:
        kept = whole[whole["seed"] == 0].sort_values(
            ["val_accuracy", "val_loss", "epoch"], ascending=[False, True, True]
        )
        tests = {point(key): float(rows["test_accuracy"].iloc[0]) for key, rows in kept.groupby(NAMES)}
    seeds = table.groupby([*NAMES, "seed"])["val_loss"].min().groupby(NAMES)
    repeated = seeds.std()[seeds.count() > 2]
    deviation = float(np.sqrt((repeated**2).mean()))
    return Curves(axes, best, tests, min(losses[-1] for losses in best.values()) + deviation, deviation)


def replay(curves: Curves, sampler: BaseSampler, pruner: BasePruner, name: str) -> Spent:
    """Replays one study."""
    study = optuna.create_study(sampler=sampler, pruner=pruner, study_name=name)
    baseline = (1e-3, 1e-3, 6)
    nearest = tuple(
        int(np.abs(np.log(np.array(axis) / value)).argmin()) for axis, value in zip(curves.axes, baseline, strict=True)
    )
    if nearest in curves.best:
        study.enqueue_trial(dict(zip(NAMES, nearest, strict=True)))
    space: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(axis) - 1) for name, axis in zip(NAMES, curves.axes, strict=True)
    }
    spent, trials, until_good, by_trials = 0, 0, None, 0
    best: tuple[float, Point] = (np.inf, nearest)
    while spent < MOST_EPOCHS and (until_good is None or trials < TRIALS):
        trial = study.ask(space)
        point = tuple(trial.params[name] for name in NAMES)
        if point not in curves.best:
            # A point outside this part of the grid fails at no cost.
            study.tell(trial, state=TrialState.FAIL)
            continue
        losses = curves.best[point]
        epochs, pruned = trained_epochs(study, trial, losses, curves.axes[2][point[2]])
        spent, trials = spent + epochs, trials + 1
        end(study, trial, losses, pruned=pruned)
        if not pruned and trials <= TRIALS:
            best = min(best, (losses[-1], point))
        if not pruned and until_good is None and losses[-1] <= curves.target:
            until_good = spent
        if trials == TRIALS:
            by_trials = spent
    return Spent(until_good or MOST_EPOCHS, by_trials or spent, best[0], curves.test_accuracy.get(best[1], np.nan))


def end(study: optuna.Study, trial: optuna.Trial, losses: list[float], *, pruned: bool) -> None:
    """Tells the study the end of a trial."""
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
        return
    for step in range(len(losses) + 1, TRIAL_EPOCHS + 1):
        trial.report(losses[-1], step)
    study.tell(trial, losses[-1])


def trained_epochs(study: optuna.Study, trial: optuna.Trial, losses: list[float], patience: float) -> tuple[int, bool]:
    """The number of trained epochs of a trial, and whether it is then pruned."""
    fewest = 0 if isinstance(study.pruner, StalledPruner) else N_MIN_TRIALS
    for epoch, loss in enumerate(losses, start=1):
        trial.report(loss, epoch)
        wanted = trial.should_prune()
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # Pruning in the last epoch would save nothing.
        if wanted and patience + 1 < epoch < len(losses) and len(complete) >= fewest:
            return epoch, True
    return len(losses), False


class Oracle(BasePruner):
    """Knows the end of each trial and prunes all that will not be good: the upper limit for any pruner."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:  # noqa: ARG002
        """Whether the trial's final loss is above the target."""
        return self.curves.best[tuple(trial.params[name] for name in NAMES)][-1] > self.curves.target


def random(seed: int) -> BaseSampler:
    """Random search."""
    return RandomSampler(seed=seed)


def tpe(seed: int) -> BaseSampler:
    """Optuna's default sampler."""
    return TPESampler(seed=seed)


def none(curves: Curves) -> BasePruner:  # noqa: ARG001
    """No pruning."""
    return NopPruner()


def median(curves: Curves) -> BasePruner:  # noqa: ARG001
    """Optuna's median pruner with the settings of `--pruner median`."""
    return MedianPruner(n_startup_trials=5, n_min_trials=N_MIN_TRIALS)


def hyperband(curves: Curves) -> BasePruner:  # noqa: ARG001
    """Optuna's Hyperband with the settings of `--pruner hyperband`."""
    return HyperbandPruner(2, TRIAL_EPOCHS)


class Waiting(StalledPruner):
    """This project's rule with another number of epochs without improvement.

    It is `epochs`, or the scheduler's patience + `more`, whose value is that of a point of the grid.
    """

    def __init__(self, curves: Curves, *, epochs: int | None = None, more: int = MORE_EPOCHS) -> None:
        super().__init__(0)
        self.curves, self.epochs, self.more = curves, epochs, more

    def waits(self, trial: optuna.trial.FrozenTrial) -> int:
        """The number of epochs."""
        return self.epochs or int(self.curves.axes[2][trial.params["scheduler_patience"]]) + self.more


def stalled(epochs: int) -> Callable[[Curves], BasePruner]:
    """Waits for a fixed number of epochs."""
    return lambda curves: Waiting(curves, epochs=epochs)


def lowered(more: int) -> Callable[[Curves], BasePruner]:
    """Waits for the scheduler's patience and `more` epochs; with `MORE_EPOCHS` it is the default pruner."""
    return lambda curves: Waiting(curves, more=more)


# By name: sampler, pruner, and the strategy to compare with (the one without a pruner).
STRATEGIES: dict[str, tuple[Callable[[int], BaseSampler], Callable[[Curves], BasePruner], str]] = {
    "random": (random, none, "random"),
    "random, median": (random, median, "random"),
    "random, Hyperband": (random, hyperband, "random"),
    "random, 3 epochs": (random, stalled(3), "random"),
    "random, 5 epochs": (random, stalled(5), "random"),
    "random, 7 epochs": (random, stalled(7), "random"),
    "random, patience + 1": (random, lowered(1), "random"),
    "random, patience + 2": (random, lowered(2), "random"),
    "random, patience + 3": (random, lowered(3), "random"),
    "random, oracle": (random, Oracle, "random"),
    "TPE": (tpe, none, "random"),
    "TPE, median": (tpe, median, "TPE"),
    "TPE, Hyperband": (tpe, hyperband, "TPE"),
    "TPE, 3 epochs": (tpe, stalled(3), "TPE"),
    "TPE, patience + 2": (tpe, lowered(MORE_EPOCHS), "TPE"),
}


def interval(values: NDArray[np.float64], others: NDArray[np.float64], *, ratio: bool) -> str:
    """The ratio or the difference of two means over the same studies, with its 95 % interval."""
    rows = np.random.default_rng(0).integers(0, len(values), size=(2000, len(values)))
    means, other_means = values[rows].mean(axis=1), others[rows].mean(axis=1)
    found = values.mean() / others.mean() if ratio else values.mean() - others.mean()
    low, high = np.quantile(means / other_means if ratio else means - other_means, [0.025, 0.975])
    return f"{found:.3f} ({low:.3f} to {high:.3f})"


def show(curves: Curves, names: list[str], repetitions: int) -> dict[str, list[int]]:
    """Replays the strategies `names` and prints their rows; returns each study's epochs up to a good trial."""
    good = sum(losses[-1] <= curves.target for losses in curves.best.values())
    print(f"{len(curves.best)} configurations, {good} within one deviation ({curves.deviation:.4f}) of the best")
    print(
        "| strategy | epochs to a good trial | of random's | of its sampler's | of 20 trials | loss | test accuracy |"
    )
    print("|---|---|---|---|---|---|---|")
    spent: dict[str, list[Spent]] = {}
    for name in names:
        sampler, pruner, against = STRATEGIES[name]
        spent[name] = [replay(curves, sampler(seed), pruner(curves), f"{name} {seed}") for seed in range(repetitions)]
        own, other, first = (
            np.array([[each.until_good, each.by_trials, each.loss, each.test_accuracy] for each in spent[key]])
            for key in (name, against, "random")
        )
        print(
            f"| {name} | {own[:, 0].mean():.1f} | {interval(own[:, 0], first[:, 0], ratio=True)} | "
            f"{interval(own[:, 0], other[:, 0], ratio=True)} | {interval(own[:, 1], other[:, 1], ratio=True)} | "
            f"{interval(own[:, 2], other[:, 2], ratio=False)} | {interval(own[:, 3], other[:, 3], ratio=False)} |",
            flush=True,
        )
    return {name: [each.until_good for each in studies] for name, studies in spent.items()}


def draw(spent: dict[str, list[int]], path: Path) -> None:
    """Draws one box for each strategy."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.boxplot(list(spent.values()), orientation="horizontal", tick_labels=list(spent), showfliers=False)
    axes.invert_yaxis()
    axes.set_xlabel("epochs until the study holds a good trial")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Replays all strategies on all curves, or those with random search on each random half of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--halves", action="store_true", help="each half of the curves by itself, with random search")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    curves = read(options.arch)
    points = np.random.default_rng(5).permutation(sorted(curves.best))
    halves = [{tuple(point.tolist()) for point in points[half::2]} for half in (0, 1)]
    # TPE would learn from the failures of the points that the other half holds.
    names = [name for name, (sampler, _, _) in STRATEGIES.items() if sampler is random or not options.halves]
    for part in halves if options.halves else [set(curves.best)]:
        spent = show(curves.part(part), names, options.repetitions)
    if options.plot:
        draw(spent, options.plot)


if __name__ == "__main__":
    main()
