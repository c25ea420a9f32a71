"""The input guard: how far an image lies from those that the network was trained on, as part of the exported graph.

Four scores of each image, and a limit for each: colour, blank, statistics (what the picture is like: brightness,
layout, texture at three scales) and features (what the network makes of it). ONNX Runtime alone
computes them, here as in use.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from busi_tune.export.assembly import IR_VERSION
from busi_tune.images import Pixels

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
WARNINGS = {
    "colour": "the image has colours that the training images do not have",
    "blank": "the image is blank, or nearly so",
    "statistics": "brightness, layout or texture are unlike those of the training images",
    "features": "the network sees something unlike the training images",
}
# The expected share of false alarms of each score.
RATES = {"colour": 0.005, "blank": 0.005, "statistics": 0.01, "features": 0.01}
# A mean difference of the strongest and the weakest channel that is no colour yet: a few annotations make as much.
LEAST_COLOUR = 2.0
COMPONENTS = 32
FOLDS = 10
# The measures are taken on a grid of every STEP-th pixel, of 64 to 127 rows: they cost the same for any network.
GRID = 64
BATCH = 32
STATISTICS = 23

# One row for each image: its colour, its contrast (negated) and the statistics.
MEASURES = """
  first = Constant <value_ints = [0, 0]> ()
  beyond = Constant <value_ints = [SIZE, SIZE]> ()
  over_image = Constant <value_ints = [2, 3]> ()
  steps = Constant <value_ints = [STEP, STEP]> ()
  grid = Slice (pixels, first, beyond, over_image, steps)
  channels = Cast <to = 1> (grid)
  over_channels = Constant <value_ints = [1]> ()
  strongest = ReduceMax (channels, over_channels)
  weakest = ReduceMin (channels, over_channels)
  chroma = Sub (strongest, weakest)
  colour = ReduceMean <keepdims = 0> (chroma, over_image)

  grey_level = ReduceMean (channels, over_channels)
  white = Constant <value_float = 255.0> ()
  scale0 = Div (grey_level, white)
  mean = ReduceMean (scale0, over_image)
  brightness = ReduceMean <keepdims = 0> (scale0, over_image)
  centred = Sub (scale0, mean)
  squares = Mul (centred, centred)
  variance = ReduceMean <keepdims = 0> (squares, over_image)
  contrast = Sqrt (variance)
  blank = Neg (contrast)

  brighter = Greater (scale0, thresholds)
  brighter_pixels = Cast <to = 1> (brighter)
  brighter_shares = ReduceMean <keepdims = 0> (brighter_pixels, over_image)
  shares = Sqrt (brighter_shares)

  tiles = AveragePool <kernel_shape = [TILE, TILE], strides = [TILE, TILE]> (scale0)
  left_columns = Constant <value_ints = [0, 1]> ()
  right_columns = Constant <value_ints = [3, 2]> ()
  left = Gather <axis = 3> (tiles, left_columns)
  right = Gather <axis = 3> (tiles, right_columns)
  both_sides = Add (left, right)
  layout = Flatten (both_sides)

  scale1 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (scale0)
  scale2 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (scale1)
  least = Constant <value_float = 1e-5> ()
  slopes0 = Conv (scale0, differences)
  slopes1 = Conv (scale1, differences)
  slopes2 = Conv (scale2, differences)
  squares0 = Mul (slopes0, slopes0)
  squares1 = Mul (slopes1, slopes1)
  squares2 = Mul (slopes2, slopes2)
  energy0 = ReduceMean <keepdims = 0> (squares0, over_image)
  energy1 = ReduceMean <keepdims = 0> (squares1, over_image)
  energy2 = ReduceMean <keepdims = 0> (squares2, over_image)
  energies = Concat <axis = 1> (energy0, energy1, energy2)
  positive = Add (energies, least)
  texture = Log (positive)
  statistics = Concat <axis = 1> (brightness, contrast, shares, layout, texture)
"""
# Mahalanobis distances. Of the features' many directions only the strongest have a variance of their own, all others
# share one: probabilistic PCA (Tipping and Bishop, 1999).
DISTANCES = """
  nothing = Constant <value_float = 0.0> ()
  across = Constant <value_ints = [1]> ()
  deviation = Sub (statistics, statistics_mean)
  whitened = MatMul (deviation, statistics_whitening)
  statistics_distance = ReduceL2 (whitened, across)

  shift = Sub (features, features_mean)
  shift_square = ReduceSumSquare (shift, across)
  shift_over_noise = Mul (shift_square, features_precision)
  projected = MatMul (shift, features_directions)
  explained = ReduceSumSquare (projected, across)
  unexplained = Sub (shift_over_noise, explained)
  distance_square = Max (unexplained, nothing)
  features_distance = Sqrt (distance_square)
  guard = Concat <axis = 1> (colour, blank, statistics_distance, features_distance)
"""
FIXED: dict[str, Floats] = {
    "thresholds": np.array([0.04, 0.08, 0.16, 0.32, 0.48, 0.64, 0.8], dtype=np.float32).reshape(1, 7, 1, 1),
    # To the pixel below, and to the pixel on the right.
    "differences": np.array([[[[-1, 0], [1, 0]]], [[[-1, 1], [0, 0]]]], dtype=np.float32),
}


@dataclass(frozen=True)
class Score:
    """One column of the guard: a value above the limit raises the warning.

    `false_alarms` is the share of images like the training images that will raise it, as far as the limit's own
    images can tell.
    """

    name: str
    limit: float
    warning: str
    false_alarms: float


@dataclass(frozen=True)
class Guard:
    """The scores in the order of the columns, and the tensors that compute them."""

    image_size: int
    scores: tuple[Score, ...]
    tensors: Mapping[str, Floats]

    def to_metadata(self) -> list[dict[str, Any]]:
        """What a consumer needs to know of each column."""
        return [asdict(score) for score in self.scores]

    def warned(self, values: Floats) -> NDArray[np.bool_]:
        """Which of an image's scores (images, k) exceed their limits."""
        # A score that is no number is not below its limit.
        return ~(values <= np.array([score.limit for score in self.scores]))


def fit_guard(
    train_pixels: Pixels, train_features: Floats, held_out_pixels: Pixels, held_out_features: Floats
) -> Guard:
    """The guard of a network trained on the one part, with limits from images that are new to it.

    Pixels are (n, size, size, 3), features (n, d): what the exported network makes of them.
    """
    size = train_pixels.shape[1]
    statistics = _run(_model(MEASURES, f"float[batch, {STATISTICS}] statistics", size, FIXED), {"pixels": train_pixels})
    measured = statistics.astype(np.float64)
    tensors = FIXED | _Statistics(measured).tensors() | _fit_features(train_features)
    model = guard_graph(Guard(size, (), tensors))
    known = _run(model, {"pixels": train_pixels, "features": train_features})
    new = _run(model, {"pixels": held_out_pixels, "features": held_out_features})
    both = np.concatenate([known, new])
    # Colour and contrast were fitted to nothing, so the training images serve as well as new ones. The network's
    # features know the training images by heart.
    left_out = np.concatenate([_left_out(measured), new[:, 2]])
    samples = dict(zip(WARNINGS, (both[:, 0], both[:, 1], left_out, new[:, 3]), strict=True))
    limits = {name: _conformal(values, RATES[name]) for name, values in samples.items()}
    least = {"colour": LEAST_COLOUR, "blank": limits["blank"][0] / 2}
    scores = (
        Score(name, max(limit, least.get(name, 0.0)), WARNINGS[name], rate) for name, (limit, rate) in limits.items()
    )
    return Guard(size, tuple(scores), tensors)


def guard_graph(guard: Guard) -> onnx.ModelProto:
    """`pixels` uint8 (n, 3, size, size) and `features` float32 (n, d) to `guard` (n, k), one column for each score."""
    model = _model(MEASURES + DISTANCES, f"float[batch, {len(WARNINGS)}] guard", guard.image_size, guard.tensors)
    onnx.compose.add_prefix(model, "guard.", rename_inputs=False, rename_outputs=False, inplace=True)
    return model


def _model(body: str, output: str, size: int, tensors: Mapping[str, Floats]) -> onnx.ModelProto:
    given = [f"uint8[batch, 3, {size}, {size}] pixels"]
    if "features_mean" in tensors:
        given.append(f"float[batch, {tensors['features_mean'].size}] features")
    step = max(1, size // GRID)
    # What does not fill the last tile is left out.
    for name, value in (("SIZE", size), ("STEP", step), ("TILE", -(-size // step) // 4)):
        body = body.replace(name, str(value))
    model = onnx.parser.parse_model(
        f'<ir_version: {IR_VERSION}, opset_import: ["": 20]>\nguard ({", ".join(given)}) => ({output}) {{{body}}}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    return model


def _run(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> Floats:
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
    """Where the statistics of images lie: their mean, their scale and the covariance of what is left."""

    def __init__(self, statistics: Doubles) -> None:
        self.mean = statistics.mean(axis=0)
        # All statistics are of the order of 1; one that is the same in all training images may change a little.
        self.scale = np.maximum(statistics.std(axis=0), 0.01)
        self.covariance = LedoitWolf(assume_centered=True).fit((statistics - self.mean) / self.scale)

    def tensors(self) -> dict[str, Floats]:
        """What the graph computes the distances with."""
        whitening = np.linalg.cholesky(self.covariance.precision_) / self.scale[:, None]
        return _single({"statistics_mean": self.mean, "statistics_whitening": whitening})

    def distances(self, statistics: Doubles) -> Doubles:
        """Mahalanobis distances."""
        squares: Doubles = self.covariance.mahalanobis((statistics - self.mean) / self.scale)
        return np.sqrt(squares)


def _left_out(statistics: Doubles) -> Doubles:
    """The distance of each training image from the others without its fold (Vovk, 2015: cross-conformal predictors).

    The folds are dealt by the distance from all images, so that they are alike and the images' order does not count.
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
    # Features that never change leave it a ratio of nothing to nothing, which is not used.
    with np.errstate(invalid="ignore"):
        pca = PCA(kept, svd_solver="full").fit(values)
    # A layer whose units are nearly all dead leaves no noise to divide by, and single precision bears no more.
    noise = max(float(pca.noise_variance_), 1e-6 * float(pca.explained_variance_[0]), 1e-12)
    variances = np.maximum(pca.explained_variance_, noise)
    directions = pca.components_.T * np.sqrt(1 / noise - 1 / variances)
    return _single(
        {"features_mean": pca.mean_, "features_precision": np.array([1 / noise]), "features_directions": directions}
    )


def _single(tensors: Mapping[str, Doubles]) -> dict[str, Floats]:
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def _conformal(values: NDArray[np.floating[Any]], rate: float) -> tuple[float, float]:
    """The limit that a new image exceeds with a probability of at most `rate`, and that probability.

    Of n + 1 exchangeable images each is as likely as any other to have a given rank (Vovk et al., 2005; for anomalies
    Laxhammar and Falkman, 2010). Too few images for `rate` give their largest value, and its own probability.
    """
    count = len(values)
    rank = min(count, int(np.ceil((count + 1) * (1 - rate))))
    return float(np.sort(values)[rank - 1]), (count + 1 - rank) / (count + 1)
