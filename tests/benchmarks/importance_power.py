"""How often PED-ANOVA finds the only parameter with an effect, by number of trials and by the share called best.

python tests/benchmarks/importance_power.py [--studies 40]
"""

import argparse
import logging

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from busi_tune.search import importance
from busi_tune.search.space import Space

SPACE: Space = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "scheduler_patience": IntDistribution(2, 9),
}


def draw(generator: np.random.Generator, count: int, effect: float = 0.3) -> list[FrozenTrial]:
    """Trials whose value (to be minimised) depends on the learning rate alone, with its optimum at 10**-3.5."""
    found = []
    for _ in range(count):
        params = {
            "learning_rate": 10 ** generator.uniform(-5, -2),
            "weight_decay": 10 ** generator.uniform(-5, -1),
            "scheduler_patience": int(generator.integers(2, 10)),
        }
        value = effect * (np.log10(params["learning_rate"]) + 3.5) ** 2 + 0.05 * generator.standard_normal()
        found.append(create_trial(params=params, distributions=SPACE, value=float(value)))
    return found


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40)
    studies = parser.parse_args().studies
    logging.getLogger("optuna").setLevel(logging.ERROR)
    print("best part, trials: named first, with a range of its own; a range of its own where nothing matters")
    for best in (0.1, 0.25):
        importance.BEST = best
        for count in (10, 20, 30, 60):
            first = apart = false = 0
            for number in range(studies):
                trials = draw(np.random.default_rng((number, count)), count)
                found = importance.importances(trials, SPACE, StudyDirection.MINIMIZE, 0) or {}
                named, *others = found
                first += named == "learning_rate"
                apart += found["learning_rate"]["low"] > max(found[each]["high"] for each in others)
                quiet = draw(np.random.default_rng((number, count)), count, effect=0)
                found = importance.importances(quiet, SPACE, StudyDirection.MINIMIZE, 0) or {}
                top, *rest = found.values()
                false += top["low"] > max(each["high"] for each in rest)
            print(
                f"  {best:.2f} {count:3}: {first / studies:.2f} {apart / studies:.2f} {false / studies:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
