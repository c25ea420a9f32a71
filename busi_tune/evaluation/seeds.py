"""The comparison of runs that differ in their seed alone."""

import statistics
from collections.abc import Mapping

from busi_tune import results
from busi_tune.evaluation.metrics import numbers
from busi_tune.results import MetricsFile, SeedMetric, SeedsFile


def compare_seeds(found: Mapping[int, MetricsFile]) -> SeedsFile:
    """Each test metric's mean, standard deviation (n - 1) and range over at least two runs, given by their seeds."""
    tests = [numbers(figures["test"]) for figures in found.values()]
    metrics = {".".join(name): _spread([test[name] for test in tests]) for name in tests[0]}
    return {"schema": results.SCHEMAS[SeedsFile], "seeds": list(found), "metrics": metrics}


def _spread(values: list[float]) -> SeedMetric:
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values),
        "lowest": min(values),
        "highest": max(values),
    }
