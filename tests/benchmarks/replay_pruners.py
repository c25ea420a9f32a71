"""Replays studies on recorded learning curves: how many epochs each sampler and pruner needs to find a good trial.

    python tests/benchmarks/replay_pruners.py --repetitions 200 --json replay.json --plot docs/images/pruner-replay.png

A trial is one of the recorded configurations, trained for at most `TRIAL_EPOCHS`; it reports, stops early and is
pruned as the driver has it (busi_tune/search/driver.py). A study has found what it looks for when a complete trial's
best validation loss is within one seed's standard deviation of the best recorded one.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PatientPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

TABLE = Path(__file__).parents[1] / "data" / "learning_curves.csv.gz"
NAMES = ["learning_rate", "weight_decay", "scheduler_patience"]
TRIAL_EPOCHS = 20
# A study that has not found it by then is counted with so many epochs.
MOST_EPOCHS = 1500
N_MIN_TRIALS = 3
Point = tuple[int, ...]


@dataclass(frozen=True)
class Curves:
    """The recorded grid: the values of each axis, and each point's best loss so far, epoch by epoch."""

    axes: list[list[float]]
    best: dict[Point, list[float]]
    target: float
    deviation: float


def read(path: Path) -> Curves:
    """The recorded curves of seed 0, cut to a trial's epochs, and what counts as good."""
    table = pd.read_csv(path)
    table = table[table["epoch"] <= TRIAL_EPOCHS]
    first = table[table["seed"] == 0]
    axes = [sorted(first[name].unique().tolist()) for name in NAMES]
    best = {
        tuple(axis.index(value) for axis, value in zip(axes, key, strict=True)): rows["val_loss"].cummin().tolist()
        for key, rows in first.groupby(NAMES)
    }
    seeds = table.groupby([*NAMES, "seed"])["val_loss"].min().groupby(NAMES)
    repeated = seeds.std()[seeds.count() > 2]
    deviation = float(np.sqrt((repeated**2).mean()))
    return Curves(axes, best, min(losses[-1] for losses in best.values()) + deviation, deviation)


def study_epochs(curves: Curves, sampler: BaseSampler, pruner: BasePruner, name: str) -> int:
    """How many epochs a study spends until it holds a good trial, at most `MOST_EPOCHS`."""
    study = optuna.create_study(sampler=sampler, pruner=pruner, study_name=name)
    base = (1e-3, 1e-3, 6)
    nearest = [
        int(np.abs(np.log(np.array(axis) / value)).argmin()) for axis, value in zip(curves.axes, base, strict=True)
    ]
    study.enqueue_trial(dict(zip(NAMES, nearest, strict=True)))
    space: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(axis) - 1) for name, axis in zip(NAMES, curves.axes, strict=True)
    }
    spent = 0
    while spent < MOST_EPOCHS:
        trial = study.ask(space)
        losses = curves.best[tuple(trial.params[name] for name in NAMES)]
        patience = curves.axes[2][trial.params["scheduler_patience"]]
        epochs = trained_epochs(study, trial, losses, patience)
        spent += abs(epochs)
        if epochs < 0:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        for step in range(len(losses) + 1, TRIAL_EPOCHS + 1):
            trial.report(losses[-1], step)
        study.tell(trial, losses[-1])
        if losses[-1] <= curves.target:
            return spent
    return MOST_EPOCHS


def trained_epochs(study: optuna.Study, trial: optuna.Trial, losses: list[float], patience: float) -> int:
    """How many epochs the trial is trained; below zero where it is pruned then."""
    for epoch, loss in enumerate(losses, start=1):
        trial.report(loss, epoch)
        wanted = trial.should_prune()
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # In its last epoch there is nothing left to save.
        if wanted and patience + 1 < epoch < len(losses) and len(complete) >= N_MIN_TRIALS:
            return -epoch
    return len(losses)


class Oracle(BasePruner):
    """Knows how each trial would end, and wants to prune all that would not be good: no pruner can do more."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:  # noqa: ARG002
        """Whether the trial would end above the target."""
        return self.curves.best[tuple(trial.params[name] for name in NAMES)][-1] > self.curves.target


def median(warm_up: int, startup: int = 5) -> BasePruner:
    """Optuna's median pruner."""
    return MedianPruner(n_startup_trials=startup, n_warmup_steps=warm_up, n_min_trials=N_MIN_TRIALS)


STRATEGIES: dict[str, tuple[Callable[[int], BaseSampler], Callable[[], BasePruner]]] = {
    # The yardstick comes first.
    "random, no pruning": (lambda seed: RandomSampler(seed=seed), NopPruner),
    "random, median 0": (lambda seed: RandomSampler(seed=seed), lambda: median(0)),
    "TPE, no pruning": (lambda seed: TPESampler(seed=seed), NopPruner),
    "TPE, median 0": (lambda seed: TPESampler(seed=seed), lambda: median(0)),
    "TPE, median 0, 3 first": (lambda seed: TPESampler(seed=seed), lambda: median(0, 3)),
    "TPE, median 6": (lambda seed: TPESampler(seed=seed), lambda: median(6)),
    "TPE, median 10": (lambda seed: TPESampler(seed=seed), lambda: median(10)),
    "TPE, Hyperband": (lambda seed: TPESampler(seed=seed), lambda: HyperbandPruner(2, TRIAL_EPOCHS)),
    "TPE, patient median": (lambda seed: TPESampler(seed=seed), lambda: PatientPruner(median(0), 2)),
    "GP, no pruning": (lambda seed: GPSampler(seed=seed), NopPruner),
    "GP, median 0": (lambda seed: GPSampler(seed=seed), lambda: median(0)),
}


def main() -> None:
    """Replay every strategy, and print, write and draw what it spent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--curves", type=Path, default=TABLE)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    curves = read(options.curves)
    good = sum(losses[-1] <= curves.target for losses in curves.best.values())
    print(
        f"{len(curves.best)} configurations, {good} within one standard deviation ({curves.deviation:.4f}) of the best"
    )
    spent = {}
    strategies = STRATEGIES | {
        "random, an oracle prunes": (lambda seed: RandomSampler(seed=seed), lambda: Oracle(curves))
    }
    for name, (sampler, pruner) in strategies.items():
        seeds = range(options.repetitions)
        spent[name] = [study_epochs(curves, sampler(seed), pruner(), f"{name} {seed}") for seed in seeds]
        mean = np.mean(spent[name]) / np.mean(spent["random, no pruning"])
        resamples = np.random.default_rng(0).choice(spent[name], (2000, len(seeds))).mean(axis=1)
        low, high = np.quantile(resamples, [0.025, 0.975])
        print(
            f"{name:24} median {np.median(spent[name]):5.0f}  "
            f"mean {np.mean(spent[name]):6.1f} ({low:.0f} to {high:.0f})  ratio {mean:.2f}  "
            f"unfinished {sum(epochs == MOST_EPOCHS for epochs in spent[name])}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(spent) + "\n")
    if options.plot:
        draw(spent, options.plot)


def draw(spent: dict[str, list[int]], path: Path) -> None:
    """One box a strategy."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.boxplot(list(spent.values()), orientation="horizontal", tick_labels=list(spent), showfliers=False)
    axes.invert_yaxis()
    axes.set_xlabel("epochs until the study holds a good trial")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
