"""The comparison of ONNX Runtime with PyTorch's float64 logits. PyTorch's own float32 error sets the tolerance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
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
# Probes are few and unlike the training images, so rounding errors are larger (4.7 times PyTorch's own on a ResNet50).
# The errors that probes should reveal are thousands of times larger.
PROBE_FACTOR = 16.0
BATCH = 32
FEW = 8
TINTED = 8
TINT = (1.0, 0.7, 0.4)
# Heights and widths of noise images: single pixels, lines, enlargements, and shapes that resize more along one axis.
PROBES = ((1, 1), (1, 90), (90, 1), (17, 31), (97, 61), (61, 97), (31, 311), (311, 31), (500, 333), (256, 256))


class Way(TypedDict):
    """One way to run a model: images per batch, ONNX Runtime's optimisation level, threads (0: automatic)."""

    batch: int
    optimisation: Optimisation
    threads: int


BASE: Way = {"batch": BATCH, "optimisation": "all", "threads": 0}
# The ways to run a model, which must all agree. The first way runs all pictures, the others `FEW` of them.
WAYS: Mapping[str, Way] = {
    "batch 32, all optimisations": BASE,
    **{f"batch {size}": BASE | {"batch": size} for size in (1, 2, 7, FEW)},
    "optimisation none": BASE | {"optimisation": "none"},
    "optimisation basic": BASE | {"optimisation": "basic"},
    **{f"threads {number}": BASE | {"threads": number} for number in (1, 2)},
}


@dataclass(frozen=True)
class Shown:
    """The input of a verification: `pictures` and additional `probes` of any size, uint8 RGB (height, width, 3)."""

    pictures: Sequence[Pixels]
    probes: Sequence[Pixels]
    size: int

    @classmethod
    def of(cls, pictures: Sequence[Pixels], size: int) -> "Shown":
        """The pictures of a test split, and probes for cases that the pictures may not cover.

        Ultrasound is grey, and a grey picture does not reveal a swap of RGB and BGR, so some probes are tinted. The
        pictures may all have one size, or the network's, so other probes are noise of several sizes.
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

    def only(self, rows: NDArray[np.int64]) -> "Shown":
        """Some of the pictures, and all probes."""
        return Shown([self.pictures[row] for row in rows], self.probes, self.size)

    def resized(self) -> "Shown":
        """The same input, resized for a model that takes only pictures of its own size."""
        return Shown(list(self.pixels), list(self.probe_pixels), self.size)


class Tolerances:
    """The largest errors that a correct export may have, from the errors of PyTorch's float32 outputs.

    `step_error` is the float32 error of model copies whose weights are moved by one unit in the last place.
    """

    float32_error: float
    step_error: float
    probe_float32_error: float

    @property
    def tolerance(self) -> float:
        """The largest error that a correct export may have."""
        return FACTOR * float(np.max([self.float32_error, self.step_error]))

    @property
    def probe_tolerance(self) -> float:
        """The largest error that a correct export may have on the probes."""
        return PROBE_FACTOR * float(np.max([self.float32_error, self.step_error, self.probe_float32_error]))


@dataclass(frozen=True, kw_only=True)
class MapReference(Tolerances):
    """PyTorch's float64 class activation maps (n, classes, h, w) of pictures and probes, and its errors in float32."""

    maps: Logits
    probe: Logits
    float32_error: float
    step_error: float
    probe_float32_error: float


@dataclass(frozen=True)
class Reference(Tolerances):
    """PyTorch's float64 logits (n, classes) of pictures and probes, and the errors of its float32 logits.

    `maps` is None for a model without class activation maps.
    """

    logits: Logits
    float32_error: float
    step_error: float
    probe: Logits
    probe_float32_error: float
    confusion_matrix: Matrix
    maps: MapReference | None = None


@dataclass(frozen=True)
class Verification:
    """The result of verifying one model file. Errors are the largest absolute differences of a logit from float64.

    `errors`, `changed` and `compared` (the number of pictures) have an entry for each way to run the model.
    `resized_differently` counts the pictures and probes that the model resizes to other pixels than `images` does.
    """

    passed: bool
    reasons: list[str]
    images: int
    max_error: float
    tolerance: float
    pytorch_float32_error: float
    float32_step_error: float
    answers_changed: int
    smallest_margin: float
    median_margin: float
    errors: dict[str, float]
    changed: dict[str, int]
    compared: dict[str, int]
    probe_error: float
    probe_tolerance: float
    probe_float32_error: float
    resized_differently: int
    confusion_matrix: Matrices

    def entry(self) -> ModelFigures:
        """The result in the form of the certificate. Values that are not finite become None, as JSON has no NaN."""
        return cast("ModelFigures", finite(asdict(self)))


@dataclass(frozen=True)
class Verified:
    """A verification, and the guard's scores (n, k) of its pictures."""

    result: Verification
    guard: NDArray[np.float32]


def finite(value: object) -> object:
    """A value for JSON, in which None takes the place of each number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def distance(given: Logits, exact: Logits) -> float:
    """The largest absolute difference."""
    return float(np.abs(given - exact).max())


def few(count: int, *orders: NDArray[np.floating | np.integer]) -> NDArray[np.int64]:
    """The rows of the `count` pictures that rank first in any of the `orders`. An order has a number per picture."""
    ranks = [np.argsort(np.argsort(order, kind="stable"), kind="stable") for order in orders]
    return np.sort(np.argsort(np.min(ranks, axis=0), kind="stable")[:count])


def outputs_of(
    classifier: Classifier, pictures: Sequence[Pixels], names: Sequence[str], batch: int = BATCH
) -> list[NDArray[Any]]:
    """The named outputs for all pictures, in their order. Pictures of the same size run together, up to `batch`."""
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
    how: Mapping[str, Way] = WAYS,
) -> Verified:
    """Compare `model` with `reference` on the pictures and probes of `shown`.

    The first way of `how` runs all pictures. The other ways run the few pictures with the largest errors or smallest
    margins. The model passes if no error exceeds its tolerance, no prediction differs whose margin exceeds twice the
    largest error, and every picture is resized to exactly the expected pixels.
    """
    margins = np.diff(np.sort(reference.logits, axis=1)[:, -2:], axis=1)[:, 0]
    answers = reference.logits.argmax(axis=1)
    changed = np.zeros(len(answers), dtype=np.bool_)
    rows = np.arange(len(answers))
    # Ways that differ only in the batch size share a session.
    opened = lru_cache(maxsize=1)(partial(Classifier, model))
    found: dict[str, _Answered] = {}
    task = f"verifying {model.name}"
    for name, way in how.items():
        given, exact = shown.only(rows), reference.logits[rows]
        # A batch holds pictures of one size only, so ways with another batch size run on resized pictures.
        given = given if way["batch"] == BATCH else given.resized()
        classifier = opened(threads=way["threads"], optimisation=way["optimisation"])
        found[name] = answered = _Answered.by(classifier, given, exact, way["batch"])
        changed[rows] |= answered.logits.argmax(axis=1) != answers[rows]
        progress.step(task, len(found), len(how))
        if len(found) == 1:
            probe, pixels = outputs_of(classifier, shown.probes, ("logits", "pixels"))
            # A NaN counts as the largest error.
            rows = few(FEW, -np.nan_to_num(answered.errors, nan=np.inf), margins)
    progress.close(task)
    first = next(iter(found.values()))
    errors = {name: float(answered.errors.max()) for name, answered in found.items()}
    # `max` would drop a NaN that does not come first.
    largest = float(np.max(list(errors.values())))
    # If the margin is within rounding, either prediction is right.
    settled = np.where(margins > 2 * largest, first.logits.argmax(axis=1), answers)
    classes = reference.logits.shape[1]
    result = Verification(
        passed=False,
        reasons=[],
        images=len(shown.pictures),
        max_error=largest,
        tolerance=reference.tolerance,
        pytorch_float32_error=reference.float32_error,
        float32_step_error=reference.step_error,
        answers_changed=int(changed.sum()),
        smallest_margin=float(margins.min()),
        median_margin=float(np.median(margins)),
        errors=errors,
        changed={name: answered.changed for name, answered in found.items()},
        compared={name: len(answered.logits) for name, answered in found.items()},
        probe_error=distance(probe, reference.probe),
        probe_tolerance=reference.probe_tolerance,
        probe_float32_error=reference.probe_float32_error,
        resized_differently=max(answered.resized_differently for answered in found.values())
        + differing(pixels, shown.probe_pixels),
        confusion_matrix={
            "pytorch": reference.confusion_matrix,
            "onnxruntime": confusion_matrix(labels, first.logits.argmax(axis=1), classes).tolist(),
        },
    )
    reasons = _reasons(result, int((changed & (margins > 2 * largest)).sum()))
    if confusion_matrix(labels, settled, classes).tolist() != reference.confusion_matrix:
        reasons.append("the confusion matrices differ")
    return Verified(replace(result, passed=not reasons, reasons=reasons), first.guard)


@dataclass(frozen=True)
class _Answered:
    """A model's outputs in one way to run it, compared with float64 logits."""

    logits: Logits
    guard: NDArray[np.float32]
    errors: NDArray[np.float64]
    changed: int
    resized_differently: int

    @classmethod
    def by(cls, classifier: Classifier, shown: Shown, exact: Logits, batch: int) -> "_Answered":
        """Run the pictures of `shown`, up to `batch` at a time, and compare the logits with `exact`."""
        logits, pixels, guard = outputs_of(classifier, shown.pictures, ("logits", "pixels", "guard"), batch)
        moved = logits.argmax(axis=1) != exact.argmax(axis=1)
        errors = np.abs(logits - exact).max(axis=1)
        return cls(logits, guard, errors, int(moved.sum()), differing(pixels, shown.pixels))


def differing(pixels: Pixels, expected: Pixels) -> int:
    """The number of images whose `pixels` (n, 3, size, size) differ from `expected` (n, size, size, 3)."""
    return int((pixels != expected.transpose(0, 3, 1, 2)).any(axis=(1, 2, 3)).sum())


def _reasons(found: Verification, changed: int) -> list[str]:
    reasons = []
    # `not <=` instead of `>`, because a NaN must fail as well.
    if not found.max_error <= found.tolerance:
        reasons.append(f"a logit is off by {found.max_error:.3g}, more than the tolerance of {found.tolerance:.3g}")
    if not found.probe_error <= found.probe_tolerance:
        reasons.append(
            f"on tinted pictures and noise a logit is off by {found.probe_error:.3g}, more than "
            f"{found.probe_tolerance:.3g}"
        )
    if changed:
        reasons.append(f"{changed} predictions differ by more than rounding")
    if found.resized_differently:
        reasons.append(f"{found.resized_differently} pictures are not resized as they were for training")
    return reasons
