"""The intervals of earlier versions: a bootstrap of groups, which has width 0 for a model without errors.

`interval_coverage.py --before` measures them.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from busi_tune.evaluation.metrics import CALIBRATION_BINS, Answers, Floats, Labels, Name, calibration_bins, scores

LEVEL = 0.95
RESAMPLES = 10_000
# The number of values in a block; a few blocks fit into the processor's cache.
BLOCK = 2**18


def group_weights(groups: Labels, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of weights (rows, images): the count of each image in resamples with the original number of groups.

    `groups` has the group of each image. The images of a group always have equal counts.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(member))
    for start in range(0, resamples, rows):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        yield drawn[:, member].astype(np.float64)


def bootstrap(
    answers: Answers, groups: Labels, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Name, tuple[float, float]]:
    """The 95 % interval of each metric of `scores`, from its values over resamples of the groups.

    The interval is the bias-corrected and accelerated one (Efron, "Better bootstrap confidence intervals", 1987),
    widened for few groups like that of Hesterberg ("What teachers should know about the bootstrap", 2015). The
    calibration error has the interval of `_of_calibration`. Resamples that leave a metric undefined do not count for
    it. Without other resamples, or with only one group, there is no interval.
    """
    count = len(np.unique(groups))
    if count < 2:
        return {}
    around = _gaps(answers).sum(axis=0)
    parts, calibrated = [], []
    for weights in group_weights(groups, resamples, seed):
        parts.append(scores(answers, weights))
        calibrated.append(np.abs(weights @ _gaps(answers) - around).sum(axis=1) / weights.sum(axis=1))
    point = scores(answers, np.ones((1, len(groups))))
    left_out = [scores(answers, weights) for weights in _without_each(groups)]
    tail = expanded_tail(count)
    result = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if len(values) and not np.isnan(point[name][0]):
            result[name] = _accelerated(
                values, float(point[name][0]), np.concatenate([part[name] for part in left_out]), tail
            )
    error = ("calibration_error",)
    values = np.concatenate([part[error] for part in parts])
    result[error] = _of_calibration(values, float(point[error][0]), np.concatenate(calibrated), tail)
    return result


def _without_each(groups: Labels) -> Iterator[Floats]:
    """Blocks of weights (rows, images): each row is 0 for one group and 1 for the rest."""
    names = np.unique(groups)
    rows = max(1, BLOCK // len(groups))
    for start in range(0, len(names), rows):
        yield np.asarray(groups != names[start : start + rows, None], dtype=np.float64)


def _accelerated(values: Floats, point: float, without: Floats, tail: float) -> tuple[float, float]:
    """The BCa interval from `values` over resamples, and from the values `without` each group in turn."""
    rank = (np.mean(values < point) + np.mean(values <= point)) / 2
    bias = stats.norm.ppf(np.clip(rank, 1 / len(values), 1 - 1 / len(values)))
    defined = without[~np.isnan(without)]
    pull = defined.sum() / max(1, len(defined)) - defined
    scale = float((pull**2).sum()) ** 1.5
    acceleration = float((pull**3).sum()) / (6 * scale) if scale else 0.0
    edge = stats.norm.isf(tail)
    z = bias + np.array([-edge, edge])
    # Far from the centre the acceleration would change sign; the clip gives the most extreme value instead.
    low, high = np.quantile(values, stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-9)))
    return float(low), float(high)


def _of_calibration(values: Floats, point: float, calibrated: Floats, tail: float) -> tuple[float, float]:
    """The interval of the calibration error, which chance increases: once in the data, and again in a resample.

    The interval is the reflected ("basic") one of Davison and Hinkley, 1997. It begins at 0 if a calibrated model could
    also have had the error `point`. For this test, `calibrated` has the errors of resamples relative to the data.
    """
    low, high = np.quantile(values, [tail, 1 - tail])
    possible = point <= np.quantile(calibrated, 1 - tail)
    return 0.0 if possible else max(0.0, float(2 * point - high)), max(point, float(2 * point - low))


def paired(
    baseline: Answers, tuned: Answers, groups: Labels, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Name, tuple[float, float]]:
    """The 95 % interval of each metric's difference, `tuned` minus `baseline`, on the same images.

    Both models share each resample, so images that are hard for both do not widen the interval. The interval is the
    `reflected` one, because differences are hardly skewed. For the calibration error it is between the plain quantiles,
    because chance increases both terms alike. With only one group there is no interval.
    """
    count = len(np.unique(groups))
    if count < 2:
        return {}
    parts = []
    for weights in group_weights(groups, resamples, seed):
        first, second = scores(baseline, weights), scores(tuned, weights)
        parts.append({name: second[name] - first[name] for name in first})
    ones = np.ones((1, len(groups)))
    before, after = scores(baseline, ones), scores(tuned, ones)
    tail = expanded_tail(count)
    result = {}
    for name in before:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        point = float(after[name][0] - before[name][0])
        if len(values) and not np.isnan(point):
            result[name] = reflected(values, point, tail)
            if name == ("calibration_error",):
                low, high = np.quantile(values, [tail, 1 - tail])
                result[name] = float(low), float(high)
    return result


def reflected(values: Floats, point: float, tail: float) -> tuple[float, float]:
    """The reflected ("basic") bootstrap interval (Davison and Hinkley, 1997) from `values` over resamples."""
    low, high = np.quantile(values, [tail, 1 - tail])
    # Rounding keeps an end that should be 0 from being slightly above it.
    return round(float(2 * point - high), 12), round(float(2 * point - low), 12)


def _gaps(answers: Answers) -> Floats:
    """Correctness (0 or 1) minus confidence of each image, in the column of its confidence bin: (images, bins)."""
    bins, confidence, right = calibration_bins(answers)
    return np.asarray(np.eye(CALIBRATION_BINS)[bins] * (right - confidence)[:, None])


def expanded_tail(groups: int) -> float:
    """The share of resamples beyond each end: 0.025 for many groups, less for few (at least two)."""
    spread = stats.t.ppf((1 + LEVEL) / 2, groups - 1) * np.sqrt(groups / (groups - 1))
    return float(stats.norm.sf(spread))
