"""Does ONNX Runtime answer as PyTorch does? Measured against float64, with PyTorch's own error as yardstick."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from busi_tune import images
from busi_tune.evaluation.metrics import Labels, confusion_matrix
from busi_tune.images import Pixels
from busi_tune.inference import Classifier
from busi_tune.progress import Progress

Logits = NDArray[np.float64]
FACTOR = 4.0
# Probes are few, and far from what the network was trained on, where rounding weighs more (4.7 times the yardstick on a
# ResNet50); what they are there to tell apart is thousands of times as large.
PROBE_FACTOR = 16.0
BATCH = 32
TINTED = 8
TINT = (1.0, 0.7, 0.4)
# Height and width of noise that is resized: single pixels, lines, enlargements, and both orders of the two passes.
PROBES = ((1, 1), (1, 90), (90, 1), (17, 31), (97, 61), (61, 97), (31, 311), (311, 31), (500, 333), (256, 256))
Way = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """What a model is shown: `pictures` of any size, uint8 RGB (height, width, 3), and `probes` beside them."""

    pictures: Sequence[Pixels]
    probes: Sequence[Pixels]
    size: int

    @classmethod
    def of(cls, pictures: Sequence[Pixels], size: int) -> "Shown":
        """The pictures of a test split, and what they may lack.

        Ultrasound is grey, and on grey pictures nobody can tell BGR from RGB: some are shown with a tint. They may
        have the network's size, or all the same one: noise of several sizes is resized as well.
        """
        tinted = [np.asarray(picture * np.array(TINT), dtype=np.uint8) for picture in pictures[:TINTED]]
        noise = np.random.default_rng(0)
        return cls(pictures, tinted + [noise.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in PROBES], size)

    @cached_property
    def pixels(self) -> Pixels:
        """What `images` makes of the pictures: (n, size, size, 3)."""
        return np.stack([images.resize(picture, self.size) for picture in self.pictures])

    @cached_property
    def probe_pixels(self) -> Pixels:
        """What `images` makes of the probes."""
        return np.stack([images.resize(probe, self.size) for probe in self.probes])

    def resized(self) -> "Shown":
        """The same as a model sees it that takes pictures of its own size alone."""
        return Shown(list(self.pixels), list(self.probe_pixels), self.size)


@dataclass(frozen=True)
class Reference:
    """What PyTorch answers: float64 logits (n, classes) of the pictures and of the probes, and how far its own float32
    logits are from each."""

    logits: Logits
    float32_error: float
    probe: Logits
    probe_float32_error: float
    confusion_matrix: list[list[int]]


@dataclass(frozen=True)
class Verification:
    """The certificate of one model file; errors are the largest absolute differences of a logit from float64.

    `errors` and `changed` have an entry for each way to run it; `resized_differently` counts pictures and probes whose
    pixels differ from what `images` makes of them.
    """

    passed: bool
    reasons: list[str]
    images: int
    max_error: float
    tolerance: float
    pytorch_float32_error: float
    answers_changed: int
    smallest_margin: float
    median_margin: float
    errors: dict[str, float]
    changed: dict[str, int]
    probe_error: float
    probe_tolerance: float
    probe_float32_error: float
    resized_differently: int
    confusion_matrix: dict[str, list[list[int]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a figure that is not a number is None, for JSON has no NaN."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def make_reference(logits_of: Callable[[Pixels, str], Logits], shown: Shown, labels: Labels) -> Reference:
    """The reference of a model from its logits of some images (n, size, size, 3) in "float64" and in "float32"."""
    exact, single = (logits_of(shown.pixels, precision) for precision in ("float64", "float32"))
    probe, single_probe = (logits_of(shown.probe_pixels, precision) for precision in ("float64", "float32"))
    return Reference(
        logits=exact,
        float32_error=_distance(single, exact),
        probe=probe,
        probe_float32_error=_distance(single_probe, probe),
        confusion_matrix=confusion_matrix(labels, single.argmax(axis=1), exact.shape[1]).tolist(),
    )


def _distance(given: Logits, exact: Logits) -> float:
    return float(np.abs(given - exact).max())


def ways(count: int) -> dict[str, Way]:
    """The ways to run `count` images that must all agree: batch sizes, optimisation levels, thread counts."""
    base = {"batch": BATCH, "optimisation": "all", "threads": 0}
    return {
        "batch 32, all optimisations": base,
        **{f"batch {size}": base | {"batch": size} for size in (1, 2, 7)},
        f"batch {count} (all)": base | {"batch": count},
        **{f"optimisation {level}": base | {"optimisation": level} for level in ("none", "basic")},
        **{f"threads {number}": base | {"threads": number} for number in (1, 2)},
    }


def outputs_of(
    classifier: Classifier, pictures: Sequence[Pixels], names: Sequence[str], batch: int = BATCH
) -> list[NDArray[Any]]:
    """The named outputs for all pictures, in their order; pictures of one size are run up to `batch` at a time."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(number)
    order = [rows[start : start + batch] for rows in by_size.values() for start in range(0, len(rows), batch)]
    parts = [
        classifier.session.run(list(names), {"images": np.stack([pictures[row] for row in rows])}) for rows in order
    ]
    back = np.argsort(np.concatenate(order))
    return [np.concatenate(column)[back] for column in zip(*parts, strict=True)]


def verify(
    model: Path,
    shown: Shown,
    labels: Labels,
    reference: Reference,
    progress: Progress,
    *,
    how: Mapping[str, Way] | None = None,
) -> Verification:
    """Compare `model` with `reference` on what is shown to it, in every way to run it, or in those of `how`.

    It passes when its error is at most `FACTOR` times PyTorch's own in float32, no answer differs whose margin
    exceeds twice the error, the confusion matrices are equal, and every picture is resized to the pixel.
    """
    how = how or ways(len(shown.pictures))
    classes = reference.logits.shape[1]
    errors: dict[str, float] = {}
    moved: dict[str, NDArray[np.bool_]] = {}
    answers: list[Labels] = []
    different = 0
    for done, (name, way) in enumerate(how.items(), start=1):
        classifier = Classifier(model, threads=way["threads"], optimisation=way["optimisation"])
        logits, pixels = outputs_of(classifier, shown.pictures, ("logits", "pixels"), way["batch"])
        answers.append(logits.argmax(axis=1))
        errors[name] = _distance(logits, reference.logits)
        moved[name] = answers[-1] != reference.logits.argmax(axis=1)
        different = max(different, differing(pixels, shown.pixels))
        progress.step("verifying", done, len(how), name)
    progress.close("verifying")
    probe, pixels = outputs_of(Classifier(model), shown.probes, ("logits", "pixels"))
    different += differing(pixels, shown.probe_pixels)
    matrix = confusion_matrix(labels, answers[0], classes).tolist()
    # Not `max`: it drops a NaN that does not come first.
    max_error = float(np.max(list(errors.values())))
    changed = np.any(list(moved.values()), axis=0)
    margins = np.diff(np.sort(reference.logits, axis=1)[:, -2:], axis=1)[:, 0]
    probe_error = _distance(probe, reference.probe)
    figures: dict[str, Any] = {
        "max_error": max_error,
        "tolerance": FACTOR * reference.float32_error,
        "answers_changed": int(changed.sum()),
        "probe_error": probe_error,
        "probe_tolerance": PROBE_FACTOR * max(reference.float32_error, reference.probe_float32_error),
        "resized_differently": different,
        "confusion_matrix": {"pytorch": reference.confusion_matrix, "onnxruntime": matrix},
    }
    reasons = _reasons(figures, int((changed & (margins > 2 * max_error)).sum()))
    return Verification(
        passed=not reasons,
        reasons=reasons,
        images=len(shown.pictures),
        pytorch_float32_error=reference.float32_error,
        smallest_margin=float(margins.min()),
        median_margin=float(np.median(margins)),
        errors=errors,
        changed={name: int(values.sum()) for name, values in moved.items()},
        probe_float32_error=reference.probe_float32_error,
        **figures,
    )


def differing(pixels: Pixels, expected: Pixels) -> int:
    """How many of a model's `pixels` (n, 3, size, size) are not the `expected` (n, size, size, 3)."""
    return int((pixels != expected.transpose(0, 3, 1, 2)).any(axis=(1, 2, 3)).sum())


def _reasons(figures: Mapping[str, Any], changed: int) -> list[str]:
    reasons = []
    # Not `>`: an error that is NaN must fail too.
    if not figures["max_error"] <= figures["tolerance"]:
        reasons.append(
            f"a logit is off by {figures['max_error']:.3g}, more than the tolerance of {figures['tolerance']:.3g}"
        )
    if not figures["probe_error"] <= figures["probe_tolerance"]:
        reasons.append(
            f"on tinted pictures and noise a logit is off by {figures['probe_error']:.3g}, more than "
            f"{figures['probe_tolerance']:.3g}"
        )
    if changed:
        reasons.append(f"{changed} answers differ by more than rounding")
    if figures["confusion_matrix"]["pytorch"] != figures["confusion_matrix"]["onnxruntime"]:
        reasons.append("the confusion matrices differ")
    if figures["resized_differently"]:
        reasons.append(f"{figures['resized_differently']} pictures are not resized as they were for training")
    return reasons
