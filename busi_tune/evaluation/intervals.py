"""95 % intervals of metrics on a split whose images form groups. No interval has width 0, even for a perfect model.

docs/explanation/intervals.md describes the methods, their sources and the measured coverage of each interval.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import special

from busi_tune.evaluation.metrics import (
    CALIBRATION_BINS,
    Answers,
    Flags,
    Floats,
    Labels,
    Name,
    calibration_bins,
    nested,
    proportions,
    rankings,
    scores,
    squared_errors,
)
from busi_tune.results import Intervals, Spread

TAIL = 0.025
# The number of random draws that measure how much chance adds to the calibration error.
DRAWS = 1000
# The number of weights in a block; a few blocks fit into the processor's cache.
BLOCK = 2**18
# Each macro average, and the metric of the classes that it averages.
MACRO = {
    "macro_precision": "precision",
    "macro_recall": "recall",
    "balanced_accuracy": "recall",
    "macro_f1": "f1",
    "macro_roc_auc": "roc_auc",
    "macro_average_precision": "average_precision",
}
ONE_GROUP = "all images are near-duplicates of each other"
ONE_CLASS = "all images, or all predictions, are of one class"
UNBOUNDED = "it has no upper bound, so one image more can change it by any amount"
# The metrics that may have no interval, with the reason.
WITHOUT: dict[Name, str] = {("log_loss",): UNBOUNDED, ("matthews_correlation",): ONE_CLASS}
Edges = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """All defined metrics of a model's predictions: their values, their intervals, and the change from each group."""

    values: dict[Name, float]
    edges: dict[Name, Edges]
    moves: dict[Name, Floats]

    def variance(self, name: Name) -> float:
        """The jackknife variance of a metric (Efron, 1982), over groups instead of images."""
        moves = self.moves[name]
        return float(moves.var() * (len(moves) - 1))

    def number(self, name: Name, most: float) -> float:
        """The number of images for which a proportion of the same value has the metric's variance; at most `most`."""
        share, variance = self.values[name], self.variance(name)
        return min(most, share * (1 - share) / variance) if variance > 0 else most


def exact(share: float, number: float) -> Edges:
    """The interval of Clopper and Pearson (1934) for a proportion of `number` images, which may be a fraction."""
    hits = share * number
    low = special.betaincinv(hits, number - hits + 1, TAIL) if hits > 0 else 0.0
    high = special.betainccinv(hits + 1, number - hits, TAIL) if hits < number else 1.0
    return float(low), float(high)


def effective_number(values: Floats, groups: Labels) -> float:
    """The number of independent images that would determine the mean of `values` (0 to 1) as well as these groups.

    The number follows from Kish's design effect ("Survey sampling", 1965). The correlation within groups comes from
    all pairs of images in the same group. If pairs or errors are few, a prior pulls it to 1, the conservative end.
    """
    if not len(values):
        return 0.0
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member)
    pairs = sizes * (sizes - 1)
    squares = (values - values.mean()) ** 2
    together = float((np.bincount(member, values - values.mean()) ** 2).sum() - squares.sum())
    correlation = np.clip((together + 1) / (float(pairs.sum() * squares.mean()) + 1), 0, 1)
    return float(len(values) / (1 + correlation * pairs.sum() / sizes.sum()))


def of_proportion(hits: Flags, groups: Labels) -> Edges:
    """The interval of the share of `hits` among images in `groups`."""
    return exact(float(hits.mean()) if len(hits) else 0.0, effective_number(hits.astype(np.float64), groups))


def alike(moves: Sequence[Floats], lone: float = 0.0) -> Floats:
    """The correlations of metrics, from the change that each group causes in each metric.

    For each metric, its most influential group counts `lone` more times, and then changes this metric alone. With a
    `lone` of 1, metrics that share only few errors do not appear fully correlated.
    """
    apart = np.stack([each - each.mean() for each in moves])
    spread = np.sqrt((apart**2).sum(axis=1) + lone * (apart**2).max(axis=1))
    found = apart @ apart.T / np.maximum(np.outer(spread, spread), np.finfo(np.float64).tiny)
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)


def combined(parts: Sequence[tuple[float, float, Edges]], correlations: Floats) -> Edges:
    """The interval of a weighted sum; `parts` are its factors, values and intervals.

    The method is square-and-add (Newcombe, "Interval estimation for the difference between independent proportions",
    1998) with correlations (Zou, "Toward using confidence intervals to compare correlations", 2007).
    """
    total = sum(factor * value for factor, value, _ in parts)
    signs = np.sign([factor for factor, _, _ in parts])
    # A negative factor swaps the ends of an interval.
    reach = np.array(
        [np.abs(factor * (np.array(edges[:: int(np.sign(factor))]) - value)) for factor, value, edges in parts]
    )
    low, high = (np.sqrt(max(0.0, side @ correlations @ side)) for side in reach.T * signs)
    return total - float(low), total + float(high)


def measure(answers: Answers, groups: Labels) -> Measured:
    """Every metric of the predictions `answers`, with intervals; `groups` has each image's group."""
    every = scores(answers, np.ones((1, len(groups))))
    values = {name: float(value[0]) for name, value in every.items() if not np.isnan(value[0])}
    parts = [scores(answers, weights) for weights in _without_each(groups)]
    moves = {name: values[name] - np.concatenate([part[name] for part in parts]) for name in values}
    # If a metric is undefined without a group, the change from that group counts as 0.
    found = Measured(values, {}, {name: np.nan_to_num(each) for name, each in moves.items()})
    found.edges.update(_of_proportions(found, answers, groups))
    found.edges.update(_of_rankings(found, answers, groups))
    found.edges.update(_of_whole(found, answers, groups))
    found.edges.update(_of_averages(found, answers.classes))
    return found


def _without_each(groups: Labels) -> Iterator[Floats]:
    """Blocks of weights (rows, images). Each row leaves out one group: its images have weight 0, the others 1."""
    names = np.unique(groups)
    rows = max(1, BLOCK // len(groups))
    for start in range(0, len(names), rows):
        yield np.asarray(groups != names[start : start + rows, None], dtype=np.float64)


def _of_proportions(found: Measured, answers: Answers, groups: Labels) -> dict[Name, Edges]:
    """The intervals of plain proportions, and of F1, which rises with the proportion TP / (TP + FP + FN)."""
    result = {
        name: of_proportion(hits[among], groups[among])
        for name, (hits, among) in proportions(answers).items()
        if name in found.values
    }
    for k, label in enumerate(answers.classes):
        among = (answers.labels == k) | (answers.predicted == k)
        if ("per_class", label, "f1") in found.values:
            edges = of_proportion((answers.labels == answers.predicted)[among], groups[among])
            result["per_class", label, "f1"] = _each(edges, lambda share: 2 * share / (1 + share))
    return result


def _each(edges: Edges, change: Callable[[float], float]) -> Edges:
    return change(edges[0]), change(edges[1])


def _of_rankings(found: Measured, answers: Answers, groups: Labels) -> dict[Name, Edges]:
    """The intervals of ROC areas and average precisions, which count as proportions with the same variance."""
    # Reports take finished intervals, and need not wait for scipy.stats.
    from scipy import stats

    result = {}
    for prefix, (scores_of, ill_of, among) in rankings(answers).items():
        area, precision = (*prefix, "roc_auc"), (*prefix, "average_precision")
        if area not in found.values:
            continue
        score, positive, member = scores_of[among], ill_of[among], groups[among]
        ranks = stats.rankdata(score)
        # For each image, the share of images of the other side that it is ranked correctly against.
        above = (ranks[positive] - stats.rankdata(score[positive])) / (~positive).sum()
        below = 1 - (ranks[~positive] - stats.rankdata(score[~positive])) / positive.sum()
        ill, well = effective_number(above, member[positive]), effective_number(below, member[~positive])
        most = _images_of_area(found.values[area], ill, well)
        result[area] = exact(found.values[area], found.number(area, most))
        result[precision] = exact(found.values[precision], found.number(precision, ill))
    return result


def _images_of_area(area: float, positive: float, negative: float) -> float:
    """The number of images for which a proportion has the variance of an area under the ROC curve.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2",
    2006.
    """
    others = max(0.0, (positive + negative) / 2 - 1)
    return positive * negative / (1 + others * ((1 - area) / (2 - area) + area / (1 + area)))


def _of_averages(found: Measured, classes: Sequence[str]) -> dict[Name, Edges]:
    """The intervals of macro averages, from those of the classes."""
    result: dict[Name, Edges] = {}
    for macro, metric in MACRO.items():
        names = [("per_class", label, metric) for label in classes if ("per_class", label, metric) in found.edges]
        if (macro,) in found.values:
            parts = [(1 / len(names), found.values[name], found.edges[name]) for name in names]
            result[macro,] = combined(parts, alike([found.moves[name] for name in names]))
    return result


def _of_whole(found: Measured, answers: Answers, groups: Labels) -> dict[Name, Edges]:
    """The intervals of the Brier score, Matthews' coefficient, the calibration error and AURC.

    AURC is a mean of error rates, so its interval is that of a proportion with the same variance.
    """
    losses = squared_errors(answers) / 2
    # Add one image with the best loss and one with the worst, because a small sample rarely holds a rare large loss.
    more = np.append(losses, [0.0, 1.0])
    number = effective_number(losses, groups) * more.mean() * (1 - more.mean()) / more.var()
    right = answers.labels == answers.predicted
    independent = effective_number(right.astype(np.float64), groups)
    result: dict[Name, Edges] = {
        ("brier",): _each(exact(float(losses.mean()), float(number)), lambda share: 2 * share),
        ("calibration_error",): _of_calibration(answers, independent / len(groups)),
        ("aurc",): exact(found.values["aurc",], found.number(("aurc",), independent)),
    }
    # With fixed class shares, the coefficient is a linear function of the accuracy.
    true, called = (
        np.bincount(labels, minlength=len(answers.classes)) / len(groups)
        for labels in (answers.labels, answers.predicted)
    )
    spread = float(np.sqrt((1 - (true**2).sum()) * (1 - (called**2).sum())))
    if spread > 0:
        value, accuracy = found.values["matthews_correlation",], found.values["accuracy",]
        variance = found.variance(("matthews_correlation",)) * spread**2
        if variance > 0:
            independent = min(independent, accuracy * (1 - accuracy) / variance)
        edges = exact(accuracy, independent)
        result["matthews_correlation",] = _each(
            edges, lambda edge: float(np.clip(value + (edge - accuracy) / spread, -1, 1))
        )
    return result


def _of_calibration(answers: Answers, share: float) -> Edges:
    """The interval of the calibration error; `share` is the share of independent images.

    Chance makes the error larger. The low end is therefore lower by the error that chance alone exceeds in 2.5 % of
    draws around the bins' accuracies. The high end combines by square-and-add how much each bin's gap between accuracy
    and confidence may grow.
    """
    bins, confidences, right = calibration_bins(answers)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = counts > 0
    count = counts[used]
    accuracy, confidence = (np.bincount(bins, each, CALIBRATION_BINS)[used] / count for each in (right, confidences))
    gap, number, weight = np.abs(accuracy - confidence), share * count, count / len(bins)
    error = float(weight @ gap)
    reach = np.array([exact(*each) for each in zip(accuracy, number, strict=True)]) - confidence[:, None]
    high = error + float(np.linalg.norm(weight * (np.abs(reach).max(axis=1) - gap)))
    likely = np.clip((accuracy * number + confidence) / (number + 1), 0, 1)
    trials = np.maximum(1, np.rint(number).astype(np.int64))
    drawn = np.random.default_rng(0).binomial(trials, likely, size=(DRAWS, len(count))) / trials
    chance = np.quantile(np.abs(drawn - likely) @ weight, 1 - TAIL)
    return max(0.0, error - float(chance)), min(1.0, high)


def paired(baseline: Answers, tuned: Answers, groups: Labels) -> dict[Name, Edges]:
    """The interval of each metric's difference, `tuned` minus `baseline`, on the same images.

    Square-and-add combines the intervals of both models. It accounts for their correlation, so groups that are hard for
    both models do not widen the result. If both models predict the same, there is no interval, because nothing shows
    how they could have differed.
    """
    if len(np.unique(groups)) < 2 or np.array_equal(baseline.probabilities, tuned.probabilities):
        return {}
    before, after = measure(baseline, groups), measure(tuned, groups)
    result = {}
    for name in (name for name in before.edges if name in after.edges):
        parts = [(sign, each.values[name], each.edges[name]) for sign, each in ((1.0, after), (-1.0, before))]
        result[name] = combined(parts, alike([after.moves[name], before.moves[name]], lone=1.0))
    return result


def of_gain(right: Flags, now: Flags, groups: Labels) -> Edges:
    """The interval of the gain in accuracy, computed as in `paired`.

    `right` and `now` are flags of the images that the baseline and the tuned model classify correctly.
    """
    _, member = np.unique(groups, return_inverse=True)
    shares = [float(hits.mean()) for hits in (now, right)]
    moves = [
        np.bincount(member, hits - share).astype(np.float64) for hits, share in zip((now, right), shares, strict=True)
    ]
    edges = [of_proportion(hits, groups) for hits in (now, right)]
    return combined([(1.0, shares[0], edges[0]), (-1.0, shares[1], edges[1])], alike(moves, lone=1.0))


def with_intervals(answers: Answers, groups: Labels) -> Spread:
    """The intervals of a summary, in the same tree as its metrics, and the reason for each missing interval."""
    found = measure(answers, groups)
    count = len(np.unique(groups))
    pairs = found.edges if count > 1 else {}
    return {
        "groups": count,
        "intervals": cast("Intervals", nested({name: list(pair) for name, pair in pairs.items()})),
        "without_interval": {
            ".".join(name): ONE_GROUP if count < 2 else WITHOUT[name] for name in found.values if name not in pairs
        },
    }
