"""Selective prediction: the error rate if a model answers only the images of which it is most confident.

The confidence of a prediction is its largest probability, as in `predict --min-confidence`. It is the softmax response
of Geifman and El-Yaniv, "Selective classification for deep neural networks", 2017. The area under the curve is AURC
(Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", 2019).
"""

import numpy as np
from numpy.typing import NDArray

from busi_tune.results import RiskCoveragePoint

# The number of points on a curve, at shares of answered images of 5 %, 10 % and so on to 100 %.
POINTS = 20


def aurc(
    confidence: NDArray[np.float64], wrong: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The area under the risk-coverage curve under each of `weights` (rows, images); NaN if all weights are 0.

    For each image, take the error rate among the images with at least its confidence; the area is the mean over all
    images. Images of equal confidence are answered together, because no threshold separates them.
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.diff(-confidence[order], prepend=-np.inf))
    every = np.add.reduceat(weights[:, order], starts, axis=1)
    errors = np.add.reduceat(np.where(wrong[order], weights[:, order], 0), starts, axis=1)
    answered = np.cumsum(every, axis=1)
    risk = np.divide(np.cumsum(errors, axis=1), answered, out=np.zeros_like(answered), where=answered > 0)
    total = weights.sum(axis=1)
    return np.asarray(np.divide((every * risk).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0))


def risk_coverage(confidence: NDArray[np.float64], wrong: NDArray[np.bool_]) -> list[RiskCoveragePoint]:
    """Points of the risk-coverage curve of at least one image, from few answered images to all.

    Each point has the threshold of confidence from which an image is answered. The threshold is in the middle between
    two images, so that rounding on another machine changes nothing. At a threshold of 0, all images are answered.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, errors = confidence[order], np.cumsum(wrong[order])
    # The last image of each distinct confidence; only after such an image can a threshold divide the order.
    ends = np.flatnonzero(np.diff(sorted_confidence, append=-1.0))
    wanted = np.ceil(np.arange(1, POINTS + 1) / POINTS * len(order)).astype(np.int64) - 1
    found = np.unique(ends[np.searchsorted(ends, wanted)])
    edges = np.append(sorted_confidence, -sorted_confidence[-1])
    return [
        {
            "confidence": float((edges[end] + edges[end + 1]) / 2),
            "coverage": float((end + 1) / len(order)),
            "error": float(errors[end] / (end + 1)),
            "images": int(end + 1),
        }
        for end in found
    ]


def halving(points: list[RiskCoveragePoint]) -> RiskCoveragePoint | None:
    """The point with the most answered images whose error is at most half the error of all images, or None.

    Its confidence is a recommendation to users, so `points` must come from validation images.
    """
    most = points[-1]["error"] / 2 if points else 0.0
    return next((point for point in reversed(points) if point["error"] <= most), None)


def answered_from(
    confidence: NDArray[np.float64], wrong: NDArray[np.bool_], threshold: float
) -> RiskCoveragePoint | None:
    """The point of the images whose confidence is at least `threshold`, or None if there are none."""
    answered = confidence >= threshold
    if not answered.any():
        return None
    return {
        "confidence": threshold,
        "coverage": float(answered.mean()),
        "error": float(wrong[answered].mean()),
        "images": int(answered.sum()),
    }
