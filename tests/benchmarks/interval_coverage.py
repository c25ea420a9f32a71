"""How often the 95 % intervals hold the truth, on answers whose truth and groups are known.

    python tests/benchmarks/interval_coverage.py [--repetitions 1000] [--groups 90] [--resamples 2000]

A group has one to four images of one class, as in BUSI; images of a group share most of what makes a model err. The
truth of each metric is its value over 400,000 groups.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from busi_tune.evaluation.intervals import bootstrap, paired, wilson
from busi_tune.evaluation.metrics import Answers, Name, proportions, scores, softmax

CLASSES = ("benign", "malignant", "normal")


def draw(generator: np.random.Generator, groups: int) -> tuple[Answers, NDArray[np.int64]]:
    """Answers with an accuracy of 0.79 and the group of each image."""
    size = generator.choice([1, 2, 3, 4], p=[0.78, 0.16, 0.04, 0.02], size=groups)
    group = np.repeat(np.arange(groups), size)
    label = generator.choice(3, p=[0.56, 0.27, 0.17], size=groups)[group]
    shared = generator.standard_normal((groups, 3))[group]
    own = generator.standard_normal((len(group), 3))
    logits = 1.5 * (1.6 * np.eye(3)[label] + np.sqrt(0.6) * shared + np.sqrt(0.4) * own)
    return Answers(label, softmax(logits), CLASSES), group


def draw_pair(generator: np.random.Generator, groups: int) -> tuple[Answers, Answers, NDArray[np.int64]]:
    """Answers of two models that share half of their noise, the second with the stronger signal, and the groups."""
    first, group = draw(generator, groups)
    shared, own = generator.standard_normal((2, len(group), 3))
    noise = np.sqrt(0.5) * (np.sqrt(0.6) * shared[group] + np.sqrt(0.4) * own)
    # The first model's noise is its logits less the signal.
    common = np.log(first.probabilities) / 1.5 - 1.6 * np.eye(3)[first.labels]
    second = 1.5 * (1.9 * np.eye(3)[first.labels] + np.sqrt(0.5) * common + noise)
    return first, Answers(first.labels, softmax(second), CLASSES), group


def paired_coverage(repetitions: int, groups: int, resamples: int) -> dict[Name, float]:
    """The share of paired intervals that hold the true difference of two models."""
    first, second, group = draw_pair(np.random.default_rng(1), 400_000)
    ones = np.ones((1, len(group)))
    before, after = scores(first, ones), scores(second, ones)
    held = dict.fromkeys(before, 0)
    for number in range(repetitions):
        first, second, group = draw_pair(np.random.default_rng((9, number)), groups)
        for name, (low, high) in paired(first, second, group, resamples, number).items():
            held[name] += bool(low <= after[name] - before[name] <= high)
    return {name: count / repetitions for name, count in held.items()}


def truth() -> dict[Name, float]:
    """Each metric over so many groups that chance plays no part."""
    answers, group = draw(np.random.default_rng(1), 400_000)
    return {name: float(value[0]) for name, value in scores(answers, np.ones((1, len(group)))).items()}


def coverage(repetitions: int, groups: int, resamples: int) -> tuple[dict[Name, float], dict[Name, float]]:
    """The share of intervals that hold the truth: the bootstrap's, and Wilson's for plain proportions."""
    true = truth()
    held = dict.fromkeys(true, 0)
    plain: dict[Name, int] = {}
    for number in range(repetitions):
        answers, group = draw(np.random.default_rng((7, number)), groups)
        for name, (low, high) in bootstrap(answers, group, resamples, number).items():
            held[name] += low <= true[name] <= high
        for name, (hits, total) in proportions(answers).items():
            low, high = wilson(hits, total)
            plain[name] = plain.get(name, 0) + (low <= true[name] <= high)
    return (
        {name: count / repetitions for name, count in held.items()},
        {name: count / repetitions for name, count in plain.items()},
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=90)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    held, plain = coverage(options.repetitions, options.groups, options.resamples)
    for name, share in held.items():
        print(f"{'.'.join(name):36} {share:.3f}" + (f"   Wilson {plain[name]:.3f}" if name in plain else ""))
    print("differences of two models on the same images")
    for name, share in paired_coverage(options.repetitions, options.groups, options.resamples).items():
        print(f"{'.'.join(name):36} {share:.3f}")


if __name__ == "__main__":
    main()
