"""The spread of metrics over runs that differ only in their seed, or over folds."""

import statistics
from collections.abc import Mapping, Sequence

from busi_tune import results
from busi_tune.evaluation.metrics import numbers
from busi_tune.results import MetricsFile, SeedMetric, SeedsFile, TestSummary


def compare_seeds(found: Mapping[int, MetricsFile]) -> SeedsFile:
    """Each test metric's mean, standard deviation (n - 1) and range over at least two runs, given by their seeds."""
    return {
        "schema": results.SCHEMAS[SeedsFile],
        "seeds": list(found),
        "metrics": spreads([figures["test"] for figures in found.values()]),
    }


def spreads(summaries: Sequence[TestSummary]) -> dict[str, SeedMetric]:
    """The spread of each metric that all of at least two summaries define, by its dotted name."""
    tests = [numbers(summary) for summary in summaries]
    shared = [name for name in tests[0] if all(name in test for test in tests)]
    return {".".join(name): _spread([test[name] for test in tests]) for name in shared}


def _spread(values: list[float]) -> SeedMetric:
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values),
        "lowest": min(values),
        "highest": max(values),
    }
