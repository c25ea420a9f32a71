"""The comparison of a model's class activation maps with PyTorch's float64 maps, and with the logits."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from busi_tune.export.parity import BATCH, FEW, WAYS, Logits, Reference, Shown, Way, distance, few, finite, outputs_of
from busi_tune.inference import Classifier
from busi_tune.inference.classifier import MAPS
from busi_tune.results import MapFigures

# A certificate holds the maps of this number of probes, the last ones. They are noise, so no map is symmetric.
RECORDED = 2


def compare_maps(
    model: Path, shown: Shown, reference: Reference, how: Mapping[str, Way] = WAYS
) -> tuple[MapFigures, list[str]]:
    """Compare the maps of `model` with PyTorch's, and their means over height and width with the logits.

    The first way of `how` runs all pictures. The other ways run the few pictures with the largest errors. Returns the
    errors, and the reasons why the model does not pass (none if it passes).
    """
    maps = reference.maps
    assert maps is not None
    errors: dict[str, float] = {}
    mean_error = probe_error = 0.0
    rows = np.arange(len(shown.pictures))
    # Ways that differ only in the batch size share a session.
    opened = lru_cache(maxsize=1)(partial(Classifier, model))
    for name, way in how.items():
        classifier = opened(threads=way["threads"], optimisation=way["optimisation"])
        # A batch holds pictures of one size only.
        given = shown.only(rows) if way["batch"] == BATCH else shown.only(rows).resized()
        (found,) = outputs_of(classifier, given.pictures, (MAPS,), way["batch"])
        apart = _apart(found, maps.maps[rows])
        errors[name] = float(apart.max())
        if len(errors) == 1:
            mean_error = distance(_means(found), reference.logits)
            (probe,) = outputs_of(classifier, shown.probes, (MAPS,))
            probe_error = float(_apart(probe, maps.probe).max())
            rows = few(FEW, -np.nan_to_num(apart, nan=np.inf))
    largest = float(np.max(list(errors.values())))
    figures = {
        "shape": list(maps.probe.shape[1:]),
        "max_error": largest,
        "tolerance": maps.tolerance,
        "pytorch_float32_error": maps.float32_error,
        "float32_step_error": maps.step_error,
        "errors": errors,
        "mean_error": mean_error,
        "probe_error": probe_error,
        "probe_tolerance": maps.probe_tolerance,
        "probe_float32_error": maps.probe_float32_error,
    }
    reasons = _reasons({"a value of a class activation map": largest}, maps.tolerance)
    reasons += _reasons({"the mean of a class activation map": mean_error}, maps.tolerance)
    reasons += _reasons({"a value of a map of tinted pictures and noise": probe_error}, maps.probe_tolerance)
    return cast("MapFigures", finite(figures)), reasons


def compare_recorded(
    model: Path, shown: Shown, logits: Logits, figures: MapFigures, probe: Sequence[Sequence[Sequence[Sequence[float]]]]
) -> list[str]:
    """Compare the maps of `model` with those in its certificate, and their means with the recorded `logits`.

    `figures` come from the certificate. `probe` has the maps of the last probes in the certificate. Returns the reasons
    why the model does not pass.
    """
    classifier = Classifier(model)
    found, noise = (outputs_of(classifier, each, (MAPS,))[0] for each in (shown.pictures, shown.probes[-len(probe) :]))
    tolerance, probe_tolerance = figures["tolerance"] or 0.0, figures["probe_tolerance"] or 0.0
    errors = {"the mean of a class activation map": distance(_means(found), logits)}
    probe_errors = {"a value of a map of noise": float(_apart(noise, np.array(probe)).max())}
    return _reasons(errors, tolerance) + _reasons(probe_errors, probe_tolerance)


def _means(maps: NDArray[np.float32]) -> Logits:
    means: Logits = maps.astype(np.float64).mean(axis=(2, 3))
    return means


def _apart(found: NDArray[np.float32], exact: Logits) -> NDArray[np.float64]:
    """The largest difference of each picture's maps; infinite if their shapes differ."""
    if found.shape != exact.shape:
        return np.full(len(exact), np.inf)
    apart: NDArray[np.float64] = np.abs(found - exact).max(axis=(1, 2, 3))
    return apart


def _reasons(errors: Mapping[str, float], tolerance: float) -> list[str]:
    # `not <=` instead of `>`, because a NaN must fail as well.
    return [
        f"{name} is off by {error:.3g}, more than the tolerance of {tolerance:.3g}"
        for name, error in errors.items()
        if not error <= tolerance
    ]
