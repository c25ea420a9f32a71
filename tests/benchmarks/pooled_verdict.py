"""Verdicts on pooled answers: how often "better" is a false alarm, and how often a planted gain is found.

    python tests/benchmarks/pooled_verdict.py [--studies 1000]

In each of five folds, a baseline and a tuned model predict the fold's images. A study with a single split has 114 test
images. Without a gain, both models are equally good, and the chosen trial is best by luck only. With a spread, each
model has its own quality (trainings differ by 1.5 points): the procedures are equally good, but the models are not.
See verdict_null.py for the draws of images, groups and errors.
"""

import argparse

import numpy as np

from busi_tune.evaluation.verdict import Decision, decide
from verdict_null import World, signal_for

ALIKE = 0.5
# The number of images, and of folds that they are in.
SIZES = ((114, 1), (760, 5))


def study(number: int, images: int, folds: int, accuracy: float, *, gain: float = 0.0, spread: float = 0.0) -> Decision:
    """The decision on one study; `gain` and `spread` are in units of accuracy."""
    generator = np.random.default_rng((19, number))
    signal, width = signal_for(accuracy), signal_for(accuracy + 0.01) - signal_for(accuracy)
    higher = signal_for(accuracy + gain) - signal
    test = World(generator, images, ALIKE)
    fold = generator.permutation(images)[test.groups] % folds
    right, now = np.zeros(images, dtype=np.bool_), np.zeros(images, dtype=np.bool_)
    for each in range(folds):
        own = fold == each
        first, second = signal + 100 * spread * width * generator.standard_normal(2)
        right[own], now[own] = test.right(first)[own], test.right(second + higher)[own]
    return decide(right, now, test.groups)


def share(studies: int, images: int, folds: int, accuracy: float, **planted: float) -> tuple[float, float]:
    """The share of studies with the verdict "better", and the median detectable difference."""
    found = [study(number, images, folds, accuracy, **planted) for number in range(studies)]
    better = sum(each["verdict"] == "better" for each in found) / studies
    return better, float(np.median([each["detectable_difference"] or 1.0 for each in found]))


def show(studies: int) -> None:
    """Prints a row for each size and accuracy."""
    print("| images | folds | accuracy | no gain | no gain, models differ | 5 points | 8 points | detectable |")
    print("|---" * 8 + "|")
    for images, folds in SIZES:
        for accuracy in (0.7, 0.8, 0.9):
            quiet, detectable = share(studies, images, folds, accuracy)
            rest = [share(studies, images, folds, accuracy, **each)[0] for each in PLANTED]
            cells = " | ".join(f"{value:.3f}" for value in (quiet, *rest))
            print(f"| {images} | {folds} | {accuracy:.2f} | {cells} | {100 * detectable:.1f} points |", flush=True)


PLANTED: tuple[dict[str, float], ...] = ({"spread": 0.015}, {"gain": 0.05}, {"gain": 0.08})


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    show(parser.parse_args().studies)


if __name__ == "__main__":
    main()
