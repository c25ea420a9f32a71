"""The verdict on a baseline and a tuned model: better, worse, or no evidence of a difference.

Accuracy on the test split decides, because one metric must be named before anything is seen; all others are shown.
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
# With as many changed groups on average, at least the six that the exact test needs change with 80 % probability.
FEWEST_CHANGED = 8


class Decision(TypedDict):
    """The verdict on the accuracy, and the figures that it rests on."""

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
    """The comparison on two models' answers for the same images in the same order; `groups` has each image's group.

    `differences` has each metric under its dotted name: both values, tuned less baseline, and the 95 % interval of
    that, which is None where the models answer alike. With `paths`, the images that changed are named. `names` are the
    two accuracies in the sentence.
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
    """The decision alone, from which images the baseline has right and which the tuned model has.

    "better" and "worse" need both: an interval of accuracy's difference that excludes zero, and `grouped_p` below
    0.05. The interval alone is a little too ready where few groups changed, and the exact test alone could contradict
    the interval that is shown.
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
    """McNemar's exact two-sided p, which takes images for independent (McNemar, 1947)."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def grouped_p(gains: Counts) -> float:
    """McNemar's exact p with groups in place of images; `gains` is each group's images to right less those to wrong.

    Were the two models equally good, each group's gain could as well have been the loss: p is the probability, over
    all such exchanges of signs, of a sum at least as far from zero (Fisher's randomisation test, 1935). With one
    image a group it is McNemar's.
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
    """The smallest true difference in accuracy that would be called with 80 % probability; None where none would.

    `apart` is each group's gain less the expected one. (1.96 + 0.84) standard errors of the difference (Lachin,
    "Introduction to sample size determination and power analysis", 1981), with Student's t in the place of 1.96, but no
    less than the exact test needs.
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
    why = " (both answer alike)" if same else ""
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
    """The comparison, whose sentence ends with what would show more, where there is no evidence.

    `command` answers `images` images, all that there are. What can be seen shrinks with the root of their number.
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
            else f", and would see about {100 * smallest * (found['images'] / images) ** 0.5:.1f} points"
        )
        advice.append(f"{command} answers all {images}{seen}")
    if not advice:
        return found
    text = "; ".join(advice)
    return {**found, "sentence": f"{found['sentence']} {text[0].upper()}{text[1:]}."}


def _rounded(number: float) -> int:
    """A number up to two digits that count."""
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
    """How much better the best of `trials` equally good trials looks than it is, in accuracy on `images` images.

    Exact for trials that err independently: the expected largest of so many binomial proportions, less `accuracy`.
    Trials are right and wrong on the same images, too; only what differs is left to luck, so that a correlation of
    their being right shrinks it by sqrt(1 - correlation). Groups of images that are right together would make it
    larger.
    """
    counts = np.arange(images)
    largest = np.sum(1 - stats.binom.cdf(counts, images, accuracy) ** trials) / images
    return float((largest - accuracy) * np.sqrt(1 - max(0.0, correlation)))


def verdict_of(baseline: Path, tuned: Path, split: Split, trials: int, *, positive: str | None = None) -> VerdictFile:
    """The verdict on two finished runs that were tested on `split`, the second the best of `trials` trials.

    It has all of `compare`, then `trials`, and the expected `optimism` of the selection on the validation images, from
    the baseline's accuracy there and how alike the two models are right on the test images (None where they answer
    alike everywhere, which says nothing); `optimism_at_most` is that of trials that err independently.

    Raises:
        FileError: a file of the runs cannot be read.
        RunError: the runs were not tested on the same images, those of `split`.
    """
    rows = split.rows("test")
    # Not those of the test images alone: a model may answer a class that has none.
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
    """The correlation of two models' being right; None where they are right alike, or one of them always is."""
    if (right == now).all() or len(set(right)) == 1 or len(set(now)) == 1:
        return None
    return float(np.corrcoef(right, now)[0, 1])


def answers_of(run: Path, rows: pd.DataFrame, classes: tuple[str, ...], positive: str | None) -> Answers:
    """A run's answers for the images in `rows`, in their order."""
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
        # It refuses a path that stands there twice.
        probabilities = columns.reindex(list(wanted)).to_numpy(dtype=np.float64)
    except (ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return Answers(np.array([classes.index(label) for label in wanted.values()]), probabilities, classes, positive)


def _damaged(path: Path, error: Exception) -> FileError:
    return FileError(f"{path} is damaged ({str(error).strip()}); restore it or start anew.")
