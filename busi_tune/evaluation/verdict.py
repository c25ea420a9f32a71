"""The verdict on a baseline and a tuned model: better, worse, or no evidence of a difference.

Accuracy on the test split decides, because the deciding metric must be chosen before any result is seen. All other
metrics are only shown.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from busi_tune import files, results
from busi_tune.data.split import Split
from busi_tune.errors import FileError, RunError
from busi_tune.evaluation.intervals import TAIL, of_gain, paired
from busi_tune.evaluation.metrics import Answers, Counts, Floats, Labels, numbers, summarise
from busi_tune.names import composed
from busi_tune.results import Comparison, Difference, MetricsFile, VerdictFile, VerdictWord

SIGNIFICANCE = 0.05
POWER = 0.8
# If so many groups change on average, at least the six that the exact test needs change with 80 % probability.
FEWEST_CHANGED = 8


class Decision(TypedDict):
    """The verdict on the accuracy, and the numbers that it is based on."""

    verdict: VerdictWord
    groups: int
    grouped_p: float
    detectable_difference: float | None
    accuracy: Difference


def compare(
    baseline: Answers,
    tuned: Answers,
    groups: Labels,
    paths: Sequence[str] = (),
    *,
    names: tuple[str, str] = ("the baseline's", "tuned model's accuracy"),
) -> Comparison:
    """Compare two models' predictions of the same images in the same order; `groups` has each image's group.

    `differences` has each metric by its dotted name: both values, the difference (tuned minus baseline) and its 95 %
    interval. The interval is None if both models predict the same or if there is only one group. With `paths`, the
    result lists the images whose prediction became right or wrong. `names` are the names of the two accuracies in the
    sentence.
    """
    right, now = baseline.predicted == baseline.labels, tuned.predicted == tuned.labels
    gained, lost = now & ~right, right & ~now
    decided = decide(right, now, groups)
    same = np.array_equal(baseline.probabilities, tuned.probabilities)
    accuracy: Difference = {**decided["accuracy"], "interval": None} if same else decided["accuracy"]
    found: Comparison = {
        "verdict": decided["verdict"],
        "sentence": _sentence(decided, names, same=same),
        "groups": decided["groups"],
        "grouped_p": decided["grouped_p"],
        "detectable_difference": decided["detectable_difference"],
        "images": len(right),
        "changed_to_right": int(gained.sum()),
        "changed_to_wrong": int(lost.sum()),
        "mcnemar_p": mcnemar(int(gained.sum()), int(lost.sum())),
        "differences": _differences(baseline, tuned, groups) | {"accuracy": accuracy},
    }
    if len(paths):
        images = np.asarray(paths)
        found["paths_to_right"], found["paths_to_wrong"] = images[gained].tolist(), images[lost].tolist()
    return found


def decide(right: NDArray[np.bool_], now: NDArray[np.bool_], groups: Labels) -> Decision:
    """The decision alone, from the images that the baseline (`right`) and the tuned model (`now`) classify correctly.

    "better" and "worse" need two conditions: the interval of the accuracy difference excludes zero, and `grouped_p` is
    below 0.05. If few groups changed, the interval alone would decide a little too often. The exact test alone could
    contradict the interval that is shown.
    """
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member)
    gains = np.bincount(member, weights=now.astype(np.int64) - right)
    p = grouped_p(gains)
    gain = float(gains.sum() / sizes.sum())
    interval = of_gain(right, now, groups) if len(sizes) > 1 else None
    verdict: VerdictWord = "no evidence"
    if interval and p < SIGNIFICANCE and not interval[0] <= 0 <= interval[1]:
        verdict = "better" if interval[0] > 0 else "worse"
    accuracy: Difference = {
        "baseline": float(right.mean()),
        "tuned": float(now.mean()),
        "difference": gain,
        "interval": list(interval) if interval else None,
    }
    return {
        "verdict": verdict,
        "groups": len(sizes),
        "grouped_p": p,
        "detectable_difference": detectable_difference(gains - gain * sizes, len(right)),
        "accuracy": accuracy,
    }


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p, which assumes independent images (McNemar, 1947)."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def grouped_p(gains: Counts) -> float:
    """McNemar's exact p with groups instead of images.

    `gains` has, for each group, the number of images that became right minus the number that became wrong. If the
    models were equally good, each gain could equally well have been a loss of the same size. p is the probability, over
    all such changes of signs, of a sum at least as far from zero (Fisher's randomisation test, 1935). With one image
    per group, p equals McNemar's.
    """
    steps = np.abs(gains[gains != 0]).astype(np.int64)
    chances = np.ones(1)
    for step in steps:
        longer = np.zeros(len(chances) + 2 * step)
        longer[: len(chances)] += chances / 2
        longer[2 * step :] += chances / 2
        chances = longer
    sums = np.arange(len(chances)) - steps.sum()
    return min(1.0, float(chances[np.abs(sums) >= abs(gains.sum())].sum()))


def detectable_difference(apart: Floats, images: int) -> float | None:
    """The smallest true difference in accuracy that would be detected with 80 % probability, or None if none would.

    `apart` is each group's gain minus its expected gain. The result is (1.96 + 0.84) standard errors of the difference
    (Lachin, "Introduction to sample size determination and power analysis", 1981), with Student's t instead of 1.96.
    It is never below the difference that the exact test needs.
    """
    groups = len(apart)
    if groups < FEWEST_CHANGED:
        return None
    error = float(np.sqrt(groups / (groups - 1) * (apart**2).sum())) / images
    reach = float(stats.t.isf(TAIL, groups - 1) + stats.norm.ppf(POWER)) * error
    return min(1.0, max(reach, FEWEST_CHANGED / groups))


def _sentence(found: Decision, names: tuple[str, str], *, same: bool) -> str:
    gain, interval = 100 * found["accuracy"]["difference"], found["accuracy"]["interval"]
    if interval and found["verdict"] != "no evidence":
        word = "higher" if gain > 0 else "lower"
        low, high = sorted(100 * abs(edge) for edge in interval)
        return (
            f"{found['verdict'].capitalize()}: the {names[1]} is {abs(gain):.1f} points {word} than "
            f"{names[0]} (95 % interval {low:.1f} to {high:.1f})."
        )
    why = " (both models predict alike)" if same else ""
    if interval and not interval[0] <= 0 <= interval[1]:
        why = f" (its interval excludes zero, but the exact test by groups has p = {found['grouped_p']:.3f})"
    smallest = found["detectable_difference"]
    seen = (
        f"at this test size only differences above {100 * smallest:.1f} points could be seen"
        if smallest is not None
        else f"with {found['groups']} groups of test images no difference could be seen"
    )
    return f"No evidence of a difference{why}; {seen}."


def with_advice(found: Comparison, images: int, command: str) -> Comparison:
    """The comparison; if it found no evidence, its sentence ends with advice on how to detect smaller differences.

    `command` is the command that would predict `images` images, the whole data set. The detectable difference shrinks
    with the square root of the number of images.
    """
    if found["verdict"] != "no evidence":
        return found
    smallest, gain = found["detectable_difference"], abs(found["differences"]["accuracy"]["difference"])
    advice = []
    if smallest is not None and 0 < gain < smallest:
        needed = found["images"] * (smallest / gain) ** 2
        advice.append(f"to see the {100 * gain:.1f} points measured here would take about {_rounded(needed):,} images")
    if images > found["images"]:
        seen = (
            ""
            if smallest is None
            else f", and could see about {100 * smallest * (found['images'] / images) ** 0.5:.1f} points"
        )
        advice.append(f"{command} predicts all {images}{seen}")
    if not advice:
        return found
    text = "; ".join(advice)
    return {**found, "sentence": f"{found['sentence']} {text[0].upper()}{text[1:]}."}


def _rounded(number: float) -> int:
    """A number rounded up to two significant digits."""
    step = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / step) * step


def _differences(baseline: Answers, tuned: Answers, groups: Labels) -> dict[str, Difference]:
    first, second = (numbers(summarise(answers)) for answers in (baseline, tuned))
    intervals = paired(baseline, tuned, groups)
    return {
        ".".join(name): {
            "baseline": first[name],
            "tuned": second[name],
            "difference": second[name] - first[name],
            "interval": list(intervals[name]) if name in intervals else None,
        }
        for name in first
        if name in second
    }


def selection_optimism(trials: int, images: int, accuracy: float, correlation: float = 0.0) -> float:
    """The expected excess in accuracy of the best of `trials` equally good trials, on the `images` that selected it.

    The result is exact for trials with independent errors: the expected largest of `trials` binomial proportions, minus
    `accuracy`. Real trials are often right and wrong on the same images, and luck decides only the other images. The
    correlation of their correctness therefore shrinks the excess by sqrt(1 - correlation). Groups of images that are
    right together would increase the excess.
    """
    counts = np.arange(images)
    largest = np.sum(1 - stats.binom.cdf(counts, images, accuracy) ** trials) / images
    return float((largest - accuracy) * np.sqrt(1 - max(0.0, correlation)))


def verdict_of(baseline: Path, tuned: Path, split: Split, trials: int, *, positive: str | None = None) -> VerdictFile:
    """The verdict on two finished runs that were tested on `split`; `tuned` is the best of `trials` trials.

    It has the results of `compare`, `trials`, and `optimism`: the expected excess of the best trial's accuracy on the
    validation images that selected it. `optimism` follows from the baseline's validation accuracy, and from the
    correlation of the two models' correctness on the test images; without a correlation it is None. `optimism_at_most`
    is the excess for trials with independent errors.

    Raises:
        FileError: a file of the runs cannot be read.
        RunError: the runs were not tested on the same images, those of `split`.
    """
    rows = split.rows("test")
    # The classes of all images, because a model may predict a class that has no test image.
    classes = tuple(sorted(set(split.used["class"])))
    first, second = (answers_of(folder, rows, classes, positive) for folder in (baseline, tuned))
    found = compare(first, second, rows["group"].to_numpy(), list(rows["path"]))
    found = with_advice(found, len(split.used), "`busi-tune search --folds 5`")
    validation = results.read(baseline / results.METRICS, MetricsFile)["validation"]
    images, accuracy = validation["images"], validation["accuracy"]
    alike = _correlation(first.predicted == first.labels, second.predicted == second.labels)
    optimism = None if alike is None else selection_optimism(trials, images, accuracy, alike)
    most = selection_optimism(trials, images, accuracy)
    return {
        "schema": results.SCHEMAS[VerdictFile],
        **found,
        "trials": trials,
        "optimism": optimism,
        "optimism_at_most": most,
    }


def _correlation(right: NDArray[np.bool_], now: NDArray[np.bool_]) -> float | None:
    """The correlation of two models' correctness.

    It is None if both are right on the same images, or if one of them is always right or always wrong.
    """
    if (right == now).all() or len(set(right)) == 1 or len(set(now)) == 1:
        return None
    return float(np.corrcoef(right, now)[0, 1])


def answers_of(run: Path, rows: pd.DataFrame, classes: tuple[str, ...], positive: str | None) -> Answers:
    """A run's predictions for the images in `rows`, in the same order.

    Raises:
        FileError: the run's predictions.csv cannot be read.
        RunError: the run was tested on other images than `rows`.
    """
    path = run / results.PREDICTIONS
    with files.explained(path, "read"):
        try:
            table = pd.read_csv(path, dtype={"path": str, "class": str}, keep_default_na=False)
            table["path"] = table["path"].map(composed)
            answered = dict(zip(table["path"], table["class"], strict=True))
        except (ValueError, KeyError) as error:
            raise _damaged(path, error) from error
    wanted = dict(zip(map(composed, rows["path"]), rows["class"], strict=True))
    different = sorted(set(wanted.items()) ^ set(answered.items()))
    if different:
        raise RunError(
            f"{run} was not tested on the test images of the study's split ({len(different)} differ, such as "
            f"{different[0][0]}); train the baseline on that split (--split)."
        )
    try:
        columns = table.set_index("path")[[f"p_{name}" for name in classes]]
        # reindex raises ValueError if a path occurs twice.
        probabilities = columns.reindex(list(wanted)).to_numpy(dtype=np.float64)
    except (ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return Answers(np.array([classes.index(label) for label in wanted.values()]), probabilities, classes, positive)


def _damaged(path: Path, error: Exception) -> FileError:
    return FileError(f"{path} is damaged ({str(error).strip()}); restore it or start over.")
