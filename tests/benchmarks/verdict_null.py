"""How often the verdict is wrong on studies with known truth, and how often it finds a planted gain.

    python tests/benchmarks/verdict_null.py [--studies 100]

In a study, models that differ in their seed alone predict the validation images. The best of them and the first one
(the baseline) then predict the test images. Groups have one to four images, as in BUSI. The difficulty of a group is
partly common to all models and partly that of one model. A planted gain belongs to the chosen model alone.
"""

import argparse
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from busi_tune.evaluation.verdict import SIGNIFICANCE, Decision, decide, selection_optimism

Booleans = NDArray[np.bool_]
Test = tuple[Booleans, Booleans, NDArray[np.int64]]
TRIALS, VALIDATION = 20, 117


def draw_groups(generator: np.random.Generator, images: int) -> NDArray[np.int64]:
    """The group of each image."""
    size = generator.choice([1, 2, 3, 4], p=[0.78, 0.16, 0.04, 0.02], size=images)
    return np.repeat(np.arange(images), size)[:images]


class World:
    """Images with a class and a difficulty; `alike` is the share of errors that models have in common."""

    def __init__(self, generator: np.random.Generator, images: int, alike: float) -> None:
        self.generator, self.alike = generator, alike
        self.groups = draw_groups(generator, images)
        self.labels = generator.choice(3, p=[0.56, 0.27, 0.17], size=images)[self.groups]
        self.common = self.noise()

    def noise(self) -> NDArray[np.float64]:
        """Normal noise (images, 3), three fifths of which are common to the images of a group."""
        shared, own = self.generator.standard_normal((2, len(self.groups), 3))
        return np.asarray(np.sqrt(0.6) * shared[self.groups] + np.sqrt(0.4) * own)

    def right(self, signal: float) -> Booleans:
        """Whether a new model is right on each image."""
        noise = np.sqrt(self.alike) * self.common + np.sqrt(1 - self.alike) * self.noise()
        return np.asarray((signal * np.eye(3)[self.labels] + noise).argmax(axis=1) == self.labels)


@cache
def accuracies() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signals and the accuracy of a model with each, over so many images that chance is negligible."""
    signals = np.linspace(0, 8, 41)
    world = World(np.random.default_rng(1), 200_000, 1.0)
    return signals, np.array([world.right(signal).mean() for signal in signals])


def signal_for(accuracy: float) -> float:
    """The signal of a model with this accuracy."""
    signals, reached = accuracies()
    return float(np.interp(accuracy, reached, signals))


def study(number: int, *, images: int, alike: float, signal: float, gain: float = 0.0, spread: float = 0.0) -> Test:
    """Whether baseline and chosen model are right on each test image, and the group of each image.

    `spread` is the standard deviation of the trials' signals. With a spread, the chosen model is truly a little better.
    Trial 0 is the baseline and is never chosen, because a difference of 0 would make the test too easy.
    """
    generator = np.random.default_rng((11, number))
    signals = signal + spread * generator.standard_normal(TRIALS)
    validation = World(generator, VALIDATION, alike)
    chosen = 1 + int(np.argmax([validation.right(each).mean() for each in signals[1:]]))
    test = World(generator, images, alike)
    return test.right(signals[0]), test.right(signals[chosen] + gain), test.groups


def verdicts(studies: int, **world: Any) -> list[Decision]:
    """The decisions on so many studies."""
    return [decide(*study(number, **world)) for number in range(studies)]


def count(found: list[Decision], verdict: str = "better") -> int:
    """The number of decisions with this verdict."""
    return sum(each["verdict"] == verdict for each in found)


def by_interval(each: Decision) -> bool:
    """Whether the interval alone would give "better"."""
    interval = each["accuracy"]["interval"]
    return interval is not None and interval[0] > 0


def by_test(each: Decision) -> bool:
    """Whether the exact test alone would give "better"."""
    return bool(each["grouped_p"] < SIGNIFICANCE and each["accuracy"]["difference"] > 0)


def show_null(studies: int) -> None:
    """Prints how often "better" is a false alarm: for the interval, the exact test, and both."""
    print(f"no gain, {studies} studies: how often the interval, the exact test, and both (the verdict) say better")
    for images in (117, 1000):
        for accuracy in (0.8, 0.9, 0.97):
            signal = signal_for(accuracy)
            for alike in (0.5, 0.9):
                drawn = [study(n, images=images, alike=alike, signal=signal) for n in range(studies)]
                found = [decide(*each) for each in drawn]
                changed = np.mean([(first != second).mean() for first, second, _ in drawn])
                shares = [np.mean([rule(each) for each in found]) for rule in (by_interval, by_test)]
                print(
                    f"  {images:4} images, accuracy {accuracy:.2f}, {changed:4.0%} change: "
                    f"{shares[0]:.3f} {shares[1]:.3f} {count(found) / studies:.3f}"
                )


def show_power(studies: int) -> None:
    """Prints how often a planted gain is found: one of 8 points, and one of the detectable difference."""
    for images in (117, 1000):
        for accuracy in (0.8, 0.9):
            signal = signal_for(accuracy)
            quiet = verdicts(studies, images=images, alike=0.5, signal=signal)
            smallest = float(np.median([each["detectable_difference"] for each in quiet]))
            seen = {}
            # A gain above an accuracy of 1 is impossible.
            for gain in (each for each in (0.08, smallest) if accuracy + each < 1):
                higher = signal_for(accuracy + gain)
                found = verdicts(studies, images=images, alike=0.5, signal=signal, gain=higher - signal)
                seen[gain] = count(found) / studies
            said = ", ".join(f"a gain of {100 * gain:.1f} points in {share:.3f}" for gain, share in seen.items())
            print(f"  {images:4} images, accuracy {accuracy:.2f}: {said}")


def show_optimism(studies: int) -> None:
    """Prints by how much the best of 20 on the validation images looks better than it is: simulated and computed."""
    for accuracy in (0.8, 0.9):
        signal = signal_for(accuracy)
        for alike in (0.0, 0.5, 0.9):
            looks, correlations = [], []
            for number in range(studies):
                world = World(np.random.default_rng((13, number)), VALIDATION, alike)
                right = [world.right(signal) for _ in range(TRIALS)]
                looks.append(max(each.mean() for each in right) - accuracy)
                correlations.append(np.corrcoef(right[0], right[1])[0, 1])
            alone, shared = (
                selection_optimism(TRIALS, VALIDATION, accuracy, each) for each in (0.0, float(np.mean(correlations)))
            )
            print(
                f"  accuracy {accuracy:.2f}, correlation {np.mean(correlations):.2f}: {100 * np.mean(looks):.1f} "
                f"points (computed {100 * shared:.1f}; independent {100 * alone:.1f})"
            )


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=100)
    options = parser.parse_args()
    show_null(options.studies)
    print("a planted gain: how often it is called better")
    show_power(options.studies)
    signal, further = signal_for(0.8), signal_for(0.815)
    found = verdicts(options.studies, images=117, alike=0.5, signal=signal, spread=further - signal)
    print(f"seeds that differ by 1.5 points: better in {count(found) / options.studies:.3f}")
    print(f"the best of {TRIALS} on {VALIDATION} validation images looks better than it is by")
    show_optimism(options.studies)


if __name__ == "__main__":
    main()
