"""The input guard: scores in the exported graph that show how much an image differs from the training images.

Each image has four scores, each with a limit: colour, blank, statistics (brightness, layout and texture at three
scales) and features (of the network's last layer). ONNX Runtime computes the scores both here and in prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime import InferenceSession
from onnxscript import FLOAT, UINT8, script
from onnxscript import opset18 as op
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from busi_tune.export.graphs import graph_of
from busi_tune.images import Pixels
from busi_tune.results import GuardEntry

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
WARNINGS = {
    "colour": "the image has colours that the training images do not have",
    "blank": "the image is blank, or nearly so",
    "statistics": "brightness, layout or texture are unlike those of the training images",
    "features": "the network sees something unlike the training images",
}
# The expected false-alarm rate of each score.
RATES = {"colour": 0.005, "blank": 0.005, "statistics": 0.01, "features": 0.01}
# The lowest limit for colour (the mean difference of the strongest and weakest channel); a few annotations reach it.
LEAST_COLOUR = 2.0
COMPONENTS = 32
FOLDS = 10
# Pixels are sampled on a grid of 64 to 127 rows, so that the guard costs about the same for any image size.
GRID = 64
BATCH = 32
STATISTICS = 23

THRESHOLDS = np.array([0.04, 0.08, 0.16, 0.32, 0.48, 0.64, 0.8], dtype=np.float32).reshape(1, 7, 1, 1)
# The differences to the pixel below and to the pixel on the right.
DIFFERENCES = np.array([[[[-1, 0], [1, 0]]], [[[-1, 1], [0, 0]]]], dtype=np.float32)
BEYOND = [2**31, 2**31]


@script()
def energy(grey: FLOAT[...]) -> FLOAT[...]:
    """The mean squared differences of neighbouring pixels (images, 2): vertical, horizontal."""
    # ONNX Runtime on WebGPU needs all attributes, even those with default values.
    slopes = op.Conv(
        grey,
        op.Constant(value=DIFFERENCES),
        dilations=[1, 1],
        group=1,
        kernel_shape=[2, 2],
        pads=[0, 0, 0, 0],
        strides=[1, 1],
    )
    return op.ReduceMean(slopes * slopes, [2, 3], keepdims=0)


@script()
def layout_of(grey: FLOAT[...], tile: Sequence[int]) -> FLOAT[...]:
    """The brightness of tiles, four per row. Left and right tiles are added, so that mirroring changes nothing."""
    tiles = op.AveragePool(grey, kernel_shape=tile, strides=tile)
    return op.Flatten(op.Gather(tiles, [0, 1], axis=3) + op.Gather(tiles, [3, 2], axis=3))


@script()
def measures(
    pixels: UINT8[...], stride: Sequence[int], tile: Sequence[int]
) -> tuple[FLOAT[...], FLOAT[...], FLOAT[...]]:
    """Colour (images, 1), negative contrast (images, 1) and statistics (images, k) of `pixels` on a grid."""
    grid = op.Slice(pixels, [0, 0], BEYOND, [2, 3], stride)
    channels = op.Cast(grid, to=TensorProto.FLOAT)
    colour = op.ReduceMean(op.ReduceMax(channels, [1]) - op.ReduceMin(channels, [1]), [2, 3], keepdims=0)

    grey = op.ReduceMean(channels, [1]) / 255.0
    brightness = op.ReduceMean(grey, [2, 3], keepdims=0)
    centred = grey - op.ReduceMean(grey, [2, 3])
    contrast = op.Sqrt(op.ReduceMean(centred * centred, [2, 3], keepdims=0))
    brighter = op.Cast(grey > op.Constant(value=THRESHOLDS), to=TensorProto.FLOAT)
    shares = op.Sqrt(op.ReduceMean(brighter, [2, 3], keepdims=0))
    half = op.AveragePool(grey, kernel_shape=[2, 2], strides=[2, 2])
    quarter = op.AveragePool(half, kernel_shape=[2, 2], strides=[2, 2])
    texture = op.Log(op.Concat(energy(grey), energy(half), energy(quarter), axis=1) + 1e-5)
    statistics = op.Concat(brightness, contrast, shares, layout_of(grey, tile), texture, axis=1)
    return colour, op.Neg(contrast), statistics


@script()
def statistics_distance(statistics: FLOAT[...], mean: FLOAT[...], whitening: FLOAT[...]) -> FLOAT[...]:
    """Mahalanobis distances (images, 1)."""
    return op.ReduceL2(op.MatMul(statistics - mean, whitening), [1])


@script()
def features_distance(
    features: FLOAT[...], mean: FLOAT[...], precision: FLOAT[...], directions: FLOAT[...]
) -> FLOAT[...]:
    """Mahalanobis distances (images, 1) of features.

    Only the strongest directions have individual variances; all others share one (probabilistic PCA, Tipping and
    Bishop, 1999).
    """
    shift = features - mean
    explained = op.ReduceSumSquare(op.MatMul(shift, directions), [1])
    return op.Sqrt(op.Max(op.ReduceSumSquare(shift, [1]) * precision - explained, 0.0))


@dataclass(frozen=True)
class Score:
    """One column of the guard: a value above the limit raises the warning.

    `false_alarms` is the expected share of false warnings among images like the training images, estimated from the
    images that set the limit.
    """

    name: str
    limit: float
    warning: str
    false_alarms: float


@dataclass(frozen=True)
class Guard:
    """The scores in the order of the columns, and the tensors from which the graph computes them."""

    image_size: int
    scores: tuple[Score, ...]
    tensors: Mapping[str, Floats]

    def entries(self) -> list[GuardEntry]:
        """The scores in the form of the certificate and the model's metadata."""
        return [
            {
                "name": score.name,
                "limit": score.limit,
                "warning": score.warning,
                "false_alarms": score.false_alarms,
            }
            for score in self.scores
        ]

    def warned(self, values: Floats) -> NDArray[np.bool_]:
        """Which of the images' scores (images, k) exceed their limits."""
        # A NaN counts as exceeding its limit.
        return ~(values <= np.array([score.limit for score in self.scores]))


def fit_guard(
    train_pixels: Pixels, train_features: Floats, held_out_pixels: Pixels, held_out_features: Floats
) -> Guard:
    """The guard of a network, fitted on its training images, with limits from held-out images that are new to it.

    Pixels are (n, size, size, 3). Features (n, d) come from the exported network; `train_features` may cover only
    some of the training images.
    """
    size = train_pixels.shape[1]
    measured = _run(statistics_graph(size), {"pixels": train_pixels}).astype(np.float64)
    tensors = _Statistics(measured).tensors() | _fit_features(train_features)
    unlimited = Guard(size, (), tensors)
    known = pixel_scores(unlimited, train_pixels)
    new = all_scores(unlimited, held_out_pixels, held_out_features)
    both = np.concatenate([known, new])
    # Colour and contrast are not fitted, so training images can set their limits as well as new ones. The network was
    # fitted to the training images, so only new images can set the limit of its features.
    left_out = np.concatenate([_left_out(measured), new[:, 2]])
    samples = dict(zip(WARNINGS, (both[:, 0], both[:, 1], left_out, new[:, 3]), strict=True))
    limits = {name: _conformal(values, RATES[name]) for name, values in samples.items()}
    least = {"colour": LEAST_COLOUR, "blank": limits["blank"][0] / 2}
    scores = (
        Score(name, max(limit, least.get(name, 0.0)), WARNINGS[name], rate) for name, (limit, rate) in limits.items()
    )
    return Guard(size, tuple(scores), tensors)


def guard_graph(guard: Guard) -> onnx.ModelProto:
    """The graph from `pixels` uint8 (n, 3, size, size) and `features` float32 (n, d) to the scores `guard` (n, k)."""
    tensors, (grid_step, tile_side) = guard.tensors, _grid(guard.image_size)

    @script()
    def scores(pixels: UINT8[...], features: FLOAT[...]) -> FLOAT[...]:
        colour, blank, statistics = measures(pixels, stride=grid_step, tile=tile_side)
        statistics_mean = op.Constant(value=tensors["statistics_mean"])
        statistics_whitening = op.Constant(value=tensors["statistics_whitening"])
        features_mean = op.Constant(value=tensors["features_mean"])
        features_precision = op.Constant(value=tensors["features_precision"])
        features_directions = op.Constant(value=tensors["features_directions"])
        unusual = statistics_distance(statistics, statistics_mean, statistics_whitening)
        unknown = features_distance(features, features_mean, features_precision, features_directions)
        return op.Concat(colour, blank, unusual, unknown, axis=1)

    given = [UINT8["batch", 3, guard.image_size, guard.image_size], FLOAT["batch", tensors["features_mean"].size]]
    return graph_of(scores, given, {"guard": FLOAT["batch", len(WARNINGS)]}, "guard")


def all_scores(guard: Guard, pixels: Pixels, features: Floats) -> Floats:
    """The scores (n, k) of images (n, size, size, 3) with their network features (n, d)."""
    return _run(guard_graph(guard), {"pixels": pixels, "features": features})


def pixel_scores(guard: Guard, pixels: Pixels) -> Floats:
    """The scores (n, k) of images (n, size, size, 3) without the network; the features' score is 0."""
    features = np.broadcast_to(guard.tensors["features_mean"], (len(pixels), guard.tensors["features_mean"].size))
    return all_scores(guard, pixels, features)


def statistics_graph(size: int) -> onnx.ModelProto:
    """The graph from `pixels` uint8 (n, 3, size, size) to `statistics` float32 (n, k)."""
    grid_step, tile_side = _grid(size)

    @script()
    def statistics_of(pixels: UINT8[...]) -> FLOAT[...]:
        _colour, _blank, statistics = measures(pixels, stride=grid_step, tile=tile_side)
        return statistics

    return graph_of(statistics_of, [UINT8["batch", 3, size, size]], {"statistics": FLOAT["batch", STATISTICS]}, "guard")


def _grid(size: int) -> tuple[list[int], list[int]]:
    """The grid's step and the side of a tile, for both axes. Pixels that do not fill the last tile are left out."""
    step = max(1, size // GRID)
    tile = -(-size // step) // 4
    return [step, step], [tile, tile]


def _run(model: onnx.ModelProto, inputs: Mapping[str, NDArray[np.generic]]) -> Floats:
    """The output for all images; pixels are (n, size, size, 3)."""
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    count = len(inputs["pixels"])
    parts = []
    for start in range(0, count, BATCH):
        batch = {name: values[start : start + BATCH] for name, values in inputs.items()}
        batch["pixels"] = np.ascontiguousarray(batch["pixels"].transpose(0, 3, 1, 2))
        parts.append(session.run(None, batch)[0])
    return np.concatenate(parts)


class _Statistics:
    """The distribution of images' statistics: mean, scale, and the covariance of the standardised values."""

    def __init__(self, statistics: Doubles) -> None:
        self.mean = statistics.mean(axis=0)
        # Statistics are of the order of 1. The floor allows for small changes in one that never varies in training.
        self.scale = np.maximum(statistics.std(axis=0), 0.01)
        self.covariance = LedoitWolf(assume_centered=True).fit((statistics - self.mean) / self.scale)

    def tensors(self) -> dict[str, Floats]:
        """The tensors from which the graph computes the distances."""
        whitening = np.linalg.cholesky(self.covariance.precision_) / self.scale[:, None]
        return _single({"statistics_mean": self.mean, "statistics_whitening": whitening})

    def distances(self, statistics: Doubles) -> Doubles:
        """The Mahalanobis distances (n,) of statistics (n, k)."""
        squares: Doubles = self.covariance.mahalanobis((statistics - self.mean) / self.scale)
        return np.sqrt(squares)


def _left_out(statistics: Doubles) -> Doubles:
    """The distance of each training image from the images outside its fold (cross-conformal predictors: Vovk, 2015).

    Folds are assigned in the order of the distance from all images. The folds are then similar, and the order of the
    images does not matter.
    """
    order = np.argsort(_Statistics(statistics).distances(statistics))
    distances = np.empty(len(statistics))
    for fold in (order[start::FOLDS] for start in range(min(FOLDS, len(order)))):
        distances[fold] = _Statistics(np.delete(statistics, fold, axis=0)).distances(statistics[fold])
    return distances


def _fit_features(features: Floats) -> dict[str, Floats]:
    values = features.astype(np.float64)
    count, width = values.shape
    kept = max(1, min(COMPONENTS, count // 4, width - 1))
    # Constant features make PCA divide 0 by 0; the result is not used.
    with np.errstate(invalid="ignore"):
        pca = PCA(kept, svd_solver="full").fit(values)
    # If nearly all units are dead, the noise is close to 0; these floors keep the division within single precision.
    noise = max(float(pca.noise_variance_), 1e-6 * float(pca.explained_variance_[0]), 1e-12)
    variances = np.maximum(pca.explained_variance_, noise)
    directions = pca.components_.T * np.sqrt(1 / noise - 1 / variances)
    return _single(
        {"features_mean": pca.mean_, "features_precision": np.array([1 / noise]), "features_directions": directions}
    )


def _single(tensors: Mapping[str, Doubles]) -> dict[str, Floats]:
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def _conformal(values: Floats | Doubles, rate: float) -> tuple[float, float]:
    """The limit that a new image exceeds with a probability of at most `rate`, and that probability.

    Each of n + 1 exchangeable images is equally likely to have a given rank (Vovk et al., 2005; for anomalies
    Laxhammar and Falkman, 2010). With too few images for `rate`, the limit is the largest value, and the returned
    probability exceeds `rate`.
    """
    count = len(values)
    rank = min(count, int(np.ceil((count + 1) * (1 - rate))))
    return float(np.sort(values)[rank - 1]), (count + 1 - rank) / (count + 1)
