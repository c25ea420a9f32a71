"""Does ONNX Runtime answer as PyTorch does? Measured against float64, with PyTorch's own error as yardstick."""

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
    """What PyTorch answers on the test split: float64 logits (n, classes), and its own float32 error.

    `probe` are its float64 logits of `colour_probe`.
    """

    logits: Logits
    probe: Logits
    float32_error: float
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
    confusion_matrix: dict[str, list[list[int]]]
    model_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an error that is not a number is None, for JSON has no NaN."""
        errors = {name: value if np.isfinite(value) else None for name, value in self.errors.items()}
        return asdict(self) | {"errors": errors, "max_error": self.max_error if np.isfinite(self.max_error) else None}


def make_reference(float64: Logits, float32: Logits, probe: Logits, labels: Labels) -> Reference:
    """The reference of a model from its logits of the test images in both precisions, and of the probe in float64."""
    matrix = confusion_matrix(labels, float32.argmax(axis=1), float64.shape[1])
    return Reference(float64, probe, float(np.abs(float32 - float64).max()), matrix.tolist())


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
    tinted = answers(model, colour_probe(pixels), **next(iter(ways.values())))
    errors = {"colour probe": float(np.abs(tinted - reference.probe).max())}
    changed = np.zeros(len(pixels), dtype=bool)
    first: Logits | None = None
    for done, (name, way) in enumerate(ways.items(), start=1):
        given = answers(model, pixels, **way)
        first = given if first is None else first
        errors[name] = float(np.abs(given - reference.logits).max())
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
