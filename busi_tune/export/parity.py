"""The comparison of ONNX Runtime with PyTorch, against float64, with PyTorch's own float32 error as the yardstick."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from busi_tune import images
from busi_tune.evaluation.metrics import Labels, confusion_matrix
from busi_tune.images import Pixels
from busi_tune.inference import Classifier
from busi_tune.inference.classifier import Optimisation
from busi_tune.progress import Progress
from busi_tune.results import Matrices, Matrix, ModelFigures

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


class Way(TypedDict):
    """One way to run a model: images a batch, ONNX Runtime's optimisation level, threads (0: its choice)."""

    batch: int
    optimisation: Optimisation
    threads: int


@dataclass(frozen=True)
class Shown:
    """The input of a verification: `pictures` of any size, uint8 RGB (height, width, 3), and `probes` beside them."""

    pictures: Sequence[Pixels]
    probes: Sequence[Pixels]
    size: int

    @classmethod
    def of(cls, pictures: Sequence[Pixels], size: int) -> "Shown":
        """The pictures of a test split, and probes for the cases that they may lack.

        Ultrasound is grey, and on grey pictures nobody can tell BGR from RGB: some are shown with a tint. The pictures
        may all have one size, or the network's: noise of several sizes is resized as well.
        """
        tinted = [np.asarray(picture * np.array(TINT), dtype=np.uint8) for picture in pictures[:TINTED]]
        noise = np.random.default_rng(0)
        return cls(pictures, tinted + [noise.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in PROBES], size)

    @cached_property
    def pixels(self) -> Pixels:
        """The pictures resized by `images`: (n, size, size, 3)."""
        return np.stack([images.resize(picture, self.size) for picture in self.pictures])

    @cached_property
    def probe_pixels(self) -> Pixels:
        """The probes resized by `images`: (n, size, size, 3)."""
        return np.stack([images.resize(probe, self.size) for probe in self.probes])

    def resized(self) -> "Shown":
        """The same for a model that takes pictures of its own size alone."""
        return Shown(list(self.pixels), list(self.probe_pixels), self.size)


@dataclass(frozen=True)
class BothPrecisions:
    """PyTorch's logits (n, classes) of the same images, computed in float64 and in float32."""

    float64: Logits
    float32: Logits

    @property
    def error(self) -> float:
        """The largest difference between the two."""
        return _distance(self.float32, self.float64)


@dataclass(frozen=True)
class Reference:
    """PyTorch's float64 logits (n, classes) of pictures and probes, with the errors of its own float32 logits."""

    logits: Logits
    float32_error: float
    probe: Logits
    probe_float32_error: float
    confusion_matrix: Matrix


@dataclass(frozen=True)
class Verification:
    """The certificate of one model file; errors are the largest absolute differences of a logit from float64.

    `errors` and `changed` have an entry for each way to run it; `resized_differently` counts pictures and probes that
    `images` resizes to other pixels.
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
    confusion_matrix: Matrices

    def entry(self) -> ModelFigures:
        """The figures as the certificate has them; one that is not a number is None, for JSON has no NaN."""
        return cast("ModelFigures", _finite(asdict(self)))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def make_reference(pictures: BothPrecisions, probes: BothPrecisions, labels: Labels) -> Reference:
    """The reference of a model from its logits of pictures with `labels` and of probes."""
    classes = pictures.float64.shape[1]
    return Reference(
        logits=pictures.float64,
        float32_error=pictures.error,
        probe=probes.float64,
        probe_float32_error=probes.error,
        confusion_matrix=confusion_matrix(labels, pictures.float32.argmax(axis=1), classes).tolist(),
    )


def _distance(given: Logits, exact: Logits) -> float:
    return float(np.abs(given - exact).max())


def ways(count: int) -> dict[str, Way]:
    """The ways to run `count` images that must all agree: batch sizes, optimisation levels, thread counts."""
    base: Way = {"batch": BATCH, "optimisation": "all", "threads": 0}
    return {
        "batch 32, all optimisations": base,
        **{f"batch {size}": base | {"batch": size} for size in (1, 2, 7)},
        f"batch {count} (all)": base | {"batch": count},
        "optimisation none": base | {"optimisation": "none"},
        "optimisation basic": base | {"optimisation": "basic"},
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
    found: dict[str, Logits] = {}
    different = 0
    for done, (name, way) in enumerate(how.items(), start=1):
        classifier = Classifier(model, threads=way["threads"], optimisation=way["optimisation"])
        found[name], pixels = outputs_of(classifier, shown.pictures, ("logits", "pixels"), way["batch"])
        different = max(different, differing(pixels, shown.pixels))
        progress.step("verifying", done, len(how), name)
    progress.close("verifying")
    probe, pixels = outputs_of(Classifier(model), shown.probes, ("logits", "pixels"))
    different += differing(pixels, shown.probe_pixels)
    answers = reference.logits.argmax(axis=1)
    errors = {name: _distance(logits, reference.logits) for name, logits in found.items()}
    moved = {name: logits.argmax(axis=1) != answers for name, logits in found.items()}
    changed = np.any(list(moved.values()), axis=0)
    margins = np.diff(np.sort(reference.logits, axis=1)[:, -2:], axis=1)[:, 0]
    first = next(iter(found.values())).argmax(axis=1)
    result = Verification(
        passed=False,
        reasons=[],
        images=len(shown.pictures),
        # Not `max`: it drops a NaN that does not come first.
        max_error=float(np.max(list(errors.values()))),
        tolerance=FACTOR * reference.float32_error,
        pytorch_float32_error=reference.float32_error,
        answers_changed=int(changed.sum()),
        smallest_margin=float(margins.min()),
        median_margin=float(np.median(margins)),
        errors=errors,
        changed={name: int(values.sum()) for name, values in moved.items()},
        probe_error=_distance(probe, reference.probe),
        probe_tolerance=PROBE_FACTOR * max(reference.float32_error, reference.probe_float32_error),
        probe_float32_error=reference.probe_float32_error,
        resized_differently=different,
        confusion_matrix={
            "pytorch": reference.confusion_matrix,
            "onnxruntime": confusion_matrix(labels, first, reference.logits.shape[1]).tolist(),
        },
    )
    reasons = _reasons(result, int((changed & (margins > 2 * result.max_error)).sum()))
    return replace(result, passed=not reasons, reasons=reasons)


def differing(pixels: Pixels, expected: Pixels) -> int:
    """How many of a model's `pixels` (n, 3, size, size) are not the `expected` (n, size, size, 3)."""
    return int((pixels != expected.transpose(0, 3, 1, 2)).any(axis=(1, 2, 3)).sum())


def _reasons(found: Verification, changed: int) -> list[str]:
    reasons = []
    # Not `>`: an error that is NaN must fail too.
    if not found.max_error <= found.tolerance:
        reasons.append(f"a logit is off by {found.max_error:.3g}, more than the tolerance of {found.tolerance:.3g}")
    if not found.probe_error <= found.probe_tolerance:
        reasons.append(
            f"on tinted pictures and noise a logit is off by {found.probe_error:.3g}, more than "
            f"{found.probe_tolerance:.3g}"
        )
    if changed:
        reasons.append(f"{changed} answers differ by more than rounding")
    if found.confusion_matrix["pytorch"] != found.confusion_matrix["onnxruntime"]:
        reasons.append("the confusion matrices differ")
    if found.resized_differently:
        reasons.append(f"{found.resized_differently} pictures are not resized as they were for training")
    return reasons
