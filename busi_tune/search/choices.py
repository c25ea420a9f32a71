"""The parameters that the studies of several folds chose, and how well these choices agree."""

import math
from collections.abc import Sequence
from itertools import combinations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from busi_tune.results import Agreement, Json, Scalar
from busi_tune.search.space import Space


def agreement(chosen: Sequence[dict[str, Json]], space: Space) -> dict[str, Agreement]:
    """The agreement of the `chosen` parameters of at least two studies, for each parameter of `space`.

    `spread` runs from 0 (all equal) to 1. For numbers it is their range as a share of the searched range, for other
    choices the share of unequal pairs. `by_chance` is the expected spread of values drawn uniformly.
    """
    found: dict[str, Agreement] = {}
    for name, distribution in space.items():
        values: list[Scalar] = [value for params in chosen if not isinstance(value := params[name], list)]
        found[name] = {
            "values": values,
            "spread": _spread(values, distribution),
            "by_chance": _by_chance(len(chosen), distribution),
        }
    return found


def _spread(values: Sequence[Scalar], distribution: BaseDistribution) -> float:
    if isinstance(distribution, FloatDistribution | IntDistribution):
        places = [_place(float(value), distribution) for value in values if isinstance(value, int | float)]
        return max(places) - min(places)
    pairs = list(combinations(values, 2))
    return sum(one != other for one, other in pairs) / len(pairs)


def _place(value: float, distribution: FloatDistribution | IntDistribution) -> float:
    """The position of a value in its range, from 0 to 1, on the searched (linear or log) scale."""
    low, high = float(distribution.low), float(distribution.high)
    if low == high:
        return 0.0
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _by_chance(folds: int, distribution: BaseDistribution) -> float:
    """The expected spread of `folds` values drawn uniformly."""
    if isinstance(distribution, CategoricalDistribution):
        return 1 - 1 / len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.low == distribution.high:
        return 0.0
    if distribution.step is None or distribution.log:
        return (folds - 1) / (folds + 1)
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return 1 - 2 * sum((number / count) ** folds for number in range(1, count)) / (count - 1)
