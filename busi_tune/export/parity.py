"""Does ONNX Runtime answer as PyTorch does? Measured against float64, with PyTorch's own error as yardstick."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from busi_tune import files
from busi_tune.images import Pixels
from busi_tune.inference import Classifier
from busi_tune.metrics import Labels, confusion_matrix
from busi_tune.progress import Progress

Logits = NDArray[np.float64]
FACTOR = 4.0
BATCH = 32
PROBES = 8
TINT = (1.0, 0.7, 0.4)


@dataclass(frozen=True)
class Reference:
    """What PyTorch answers: float64 logits (n, classes) of the test images and of `colour_probe`, and how far its own
    float32 logits are from each."""

    logits: Logits
    float32_error: float
    probe: Logits
    probe_float32_error: float
    confusion_matrix: list[list[int]]


@dataclass(frozen=True)
class Verification:
    """The certificate of one export; errors are the largest absolute differences of a logit from float64."""

    passed: bool
    reasons: list[str]
    images: int
    max_error: float
    tolerance: float
    pytorch_float32_error: float
    answers_changed: int
    smallest_margin: float
    errors: dict[str, float]
    probe_error: float
    probe_tolerance: float
    probe_float32_error: float
    confusion_matrix: dict[str, list[list[int]]]
    model_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a figure that is not a number is None, for JSON has no NaN."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def make_reference(logits_of: Callable[[Pixels, str], Logits], pixels: Pixels, labels: Labels) -> Reference:
    """The reference of a model from its logits of some images in "float64" and in "float32"."""
    exact, single = logits_of(pixels, "float64"), logits_of(pixels, "float32")
    tinted = colour_probe(pixels)
    probe = logits_of(tinted, "float64")
    return Reference(
        logits=exact,
        float32_error=_distance(single, exact),
        probe=probe,
        probe_float32_error=_distance(logits_of(tinted, "float32"), probe),
        confusion_matrix=confusion_matrix(labels, single.argmax(axis=1), exact.shape[1]).tolist(),
    )


def _distance(given: Logits, exact: Logits) -> float:
    return float(np.abs(given - exact).max())


def colour_probe(pixels: Pixels) -> Pixels:
    """Some of the images with a tint: ultrasound is grey, and on grey images nobody can tell BGR from RGB."""
    return np.asarray(pixels[:PROBES] * np.array(TINT), dtype=np.uint8)


def variants(count: int) -> dict[str, dict[str, Any]]:
    """The ways to run `count` images that must all agree: batch sizes, optimisation levels, thread counts."""
    base = {"batch": BATCH, "optimisation": "all", "threads": 0}
    return {
        "batch 32, all optimisations": base,
        **{f"batch {size}": base | {"batch": size} for size in (1, 2, 7)},
        f"batch {count} (all)": base | {"batch": count},
        **{f"optimisation {level}": base | {"optimisation": level} for level in ("none", "basic")},
        **{f"threads {number}": base | {"threads": number} for number in (1, 2)},
    }


def answers(model: Path, pixels: Pixels, *, batch: int, optimisation: str, threads: int) -> Logits:
    """ONNX Runtime's logits of `pixels`, run in one way, as float64 (n, classes)."""
    classifier = Classifier(model, threads=threads, optimisation=optimisation)
    parts = [
        classifier.logits_and_probabilities(pixels[start : start + batch])[0] for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts).astype(np.float64)


def verify(model: Path, pixels: Pixels, labels: Labels, reference: Reference, progress: Progress) -> Verification:
    """Compare `model` with `reference` on images (n, size, size, 3) in every variant.

    It passes when its error is at most `FACTOR` times PyTorch's own in float32, no answer differs whose margin
    exceeds twice the error, and the confusion matrices are equal.
    """
    ways = variants(len(pixels))
    errors: dict[str, float] = {}
    changed = np.zeros(len(pixels), dtype=bool)
    first: Logits | None = None
    for done, (name, way) in enumerate(ways.items(), start=1):
        given = answers(model, pixels, **way)
        first = given if first is None else first
        errors[name] = _distance(given, reference.logits)
        changed |= given.argmax(axis=1) != reference.logits.argmax(axis=1)
        progress.step("verifying", done, len(ways), name)
    progress.close("verifying")
    assert first is not None
    matrix = confusion_matrix(labels, first.argmax(axis=1), first.shape[1]).tolist()
    # Not `max`: it drops a NaN that does not come first.
    max_error = float(np.max(list(errors.values())))
    tolerance = FACTOR * reference.float32_error
    margins = np.diff(np.sort(reference.logits, axis=1)[:, -2:], axis=1)[:, 0]
    reasons = _reasons(max_error, tolerance, int((changed & (margins > 2 * max_error)).sum()))
    tinted = answers(model, colour_probe(pixels), **next(iter(ways.values())))
    probe_error, probe_tolerance = _distance(tinted, reference.probe), FACTOR * reference.probe_float32_error
    if not probe_error <= probe_tolerance:
        reasons.append(f"on tinted images a logit is off by {probe_error:.3g}, more than {probe_tolerance:.3g}")
    if matrix != reference.confusion_matrix:
        reasons.append(f"the confusion matrices differ: PyTorch {reference.confusion_matrix}, ONNX Runtime {matrix}")
    return Verification(
        passed=not reasons,
        reasons=reasons,
        images=len(pixels),
        max_error=max_error,
        tolerance=tolerance,
        pytorch_float32_error=reference.float32_error,
        answers_changed=int(changed.sum()),
        smallest_margin=float(margins.min()),
        errors=errors,
        probe_error=probe_error,
        probe_tolerance=probe_tolerance,
        probe_float32_error=reference.probe_float32_error,
        confusion_matrix={"pytorch": reference.confusion_matrix, "onnxruntime": matrix},
        model_sha256=files.sha256(model),
    )


def _reasons(max_error: float, tolerance: float, changed: int) -> list[str]:
    reasons = []
    # Not `>`: an error that is NaN must fail too.
    if not max_error <= tolerance:
        reasons.append(f"a logit is off by {max_error:.3g}, more than the tolerance of {tolerance:.3g}")
    if changed:
        reasons.append(f"{changed} answers differ by more than rounding")
    return reasons
