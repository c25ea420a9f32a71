"""Coverage and width of the 95 % intervals, and the share of intervals of width 0, on simulated answers.

    python tests/benchmarks/interval_coverage.py [--images 15 40 114] [--repetitions 1000] [--before] [--differences]

Groups have one to four images of one class, as in BUSI (88 groups for 114 images). Images of a group share most of
the causes of errors, and the model is overconfident. The true value of each metric is its value over 100,000 groups.
`--before` measures the earlier bootstrap, and `--differences` two models that share half of their errors.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

import resampled_intervals
from busi_tune.evaluation import intervals
from busi_tune.evaluation.metrics import BALANCED, Answers, Floats, Labels, Name, scores, softmax

CLASSES = ("benign", "malignant", "normal")
ACCURACIES = (0.6, 0.8, 0.9, 0.95, 0.99, 1.0)
IMAGES = (15, 40, 114, 780)
IMAGES_PER_GROUP = 1.3
# The shares of errors in common: between images of a group, and between two models.
WITHIN, ALIKE = 0.6, 0.5
# The factor by which the answers are overconfident.
SHARPNESS = 1.5
# Metrics that equal others under a second name.
SAME = [BALANCED, *(("malignant_vs_rest", metric) for metric in ("sensitivity", "roc_auc", "average_precision"))]
Drawn = tuple[list[Answers], Labels]
Found = dict[Name, tuple[float, float]]


def draw_many(generator: np.random.Generator, groups: int, signals: list[float]) -> Drawn:
    """Answers of models with these signals on the same images, and the group of each image."""
    size = generator.choice([1, 2, 3, 4], p=[0.78, 0.16, 0.04, 0.02], size=groups)
    group = np.repeat(np.arange(groups), size)
    label = generator.choice(3, p=[0.56, 0.27, 0.17], size=groups)[group]

    def noise() -> Floats:
        shared, own = generator.standard_normal((groups, 3))[group], generator.standard_normal((len(group), 3))
        return np.asarray(np.sqrt(WITHIN) * shared + np.sqrt(1 - WITHIN) * own)

    common = noise()
    found = []
    for signal in signals:
        evidence = signal * np.eye(3)[label] + np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * noise()
        found.append(Answers(label, softmax(SHARPNESS * signal * evidence), CLASSES))
    return found, group


def draw(generator: np.random.Generator, groups: int, signal: float = 1.6) -> tuple[Answers, NDArray[np.int64]]:
    """Answers of one model (accuracy 0.79 by default), and the group of each image."""
    (answers,), group = draw_many(generator, groups, [signal])
    return answers, group


def draw_pair(generator: np.random.Generator, groups: int) -> tuple[Answers, Answers, NDArray[np.int64]]:
    """Answers of two models with accuracies of 0.79 and 0.85, and the group of each image."""
    (first, second), group = draw_many(generator, groups, [1.6, 1.9])
    return first, second, group


@cache
def accuracies() -> tuple[Floats, Floats]:
    """Signals and the accuracy of a model with each, over so many images that chance is negligible."""
    signals = np.linspace(0, 8, 41)
    noise = np.random.default_rng(1).standard_normal((200_000, 3))
    return signals, np.array([((noise + signal * np.eye(3)[0]).argmax(axis=1) == 0).mean() for signal in signals])


def signal_for(accuracy: float) -> float:
    """The signal of a model with this accuracy; the strongest signal for 1."""
    signals, reached = accuracies()
    return float(np.interp(accuracy, reached, signals)) if accuracy < 1 else float(signals[-1])


def single(drawn: Drawn, before: bool, seed: int) -> Found:
    """The intervals of one model's metrics."""
    (answers,), groups = drawn
    return (
        resampled_intervals.bootstrap(answers, groups, 1000, seed)
        if before
        else intervals.measure(answers, groups).edges
    )


def difference(drawn: Drawn, before: bool, seed: int) -> Found:
    """The intervals of the differences between two models."""
    (first, second), groups = drawn
    return (
        resampled_intervals.paired(first, second, groups, 1000, seed)
        if before
        else intervals.paired(first, second, groups)
    )


def truth(signals: list[float], groups: int) -> dict[Name, float]:
    """The true value of each metric, or of its difference, over so many groups that chance is negligible."""
    found, group = draw_many(np.random.default_rng(2), groups, signals)
    every = [scores(answers, np.ones((1, len(group)))) for answers in found]
    first = every[0]
    return {name: float(every[-1][name][0] - (first[name][0] if len(every) > 1 else 0.0)) for name in first}


def coverage(
    signals: list[float], groups: int, repetitions: int, find: Callable[[Drawn, int], Found], many: int = 100_000
) -> dict[Name, tuple[float, float, float]]:
    """For each metric: the coverage of its intervals, their mean width, and the share of width 0."""
    true = truth(signals, many)
    seen: dict[Name, list[tuple[float, float]]] = {}
    for number in range(repetitions):
        for name, edges in find(draw_many(np.random.default_rng((7, number)), groups, signals), number).items():
            seen.setdefault(name, []).append(edges)
    result = {}
    for name, pairs in seen.items():
        low, high = np.array(pairs).T
        # The true value is accurate to nine digits.
        held = (low <= true[name] + 1e-9) & (true[name] <= high + 1e-9)
        result[name] = float(held.mean()), float((high - low).mean()), float((high - low < 1e-9).mean())
    return result


def show(sizes: Sequence[int], repetitions: int, *, before: bool, differences: bool) -> None:
    """Prints a table for each number of images: coverage, mean width, and the share of width 0 if there is any."""
    find = partial(difference if differences else single, before=before)
    for images in sizes:
        groups = round(images / IMAGES_PER_GROUP)
        columns = []
        for accuracy in ACCURACIES:
            signals = [signal_for(accuracy)] + ([signal_for(min(1.0, accuracy + 0.02))] if differences else [])
            columns.append(coverage(signals, groups, repetitions, lambda drawn, seed: find(drawn, seed=seed)))
        print(f"\n| {images} images | " + " | ".join(f"{accuracy:.2f}" for accuracy in ACCURACIES) + " |")
        print("|---" * (1 + len(ACCURACIES)) + "|")
        for name in (name for name in columns[-1] if name not in SAME):
            cells = [_cell(column.get(name)) for column in columns]
            print(
                f"| {' '.join(name).removeprefix('per_class ').replace('_', ' ')} | " + " | ".join(cells) + " |",
                flush=True,
            )


def _cell(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    held, width, empty = found
    return f"{held:.3f} ({width:.2f}{f'; {empty:.2f} empty' if empty >= 0.005 else ''})"


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--differences", action="store_true")
    options = parser.parse_args()
    show(options.images, options.repetitions, before=options.before, differences=options.differences)


if __name__ == "__main__":
    main()
