"""Near-duplicates among images: the same picture unchanged, mirrored or cropped.

The similarity of two images is the cosine of their centred grey 64 x 64 thumbnails. It is the largest of three values:
for unchanged thumbnails, for one mirrored, and for one cropped by up to 5 % at each side. The lowest frequencies show,
block by block, which pairs can be similar. Only those are compared in full, so that no table of all pairs is needed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from busi_tune.data import crops
from busi_tune.images import Pixels

THUMBNAIL = crops.SIDE
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
BLOCK = 1024
ROUNDING = 1e-5
# The least cosine of the low frequencies of a cropped copy and its original: without alignment, and with the nearest of
# 16 crops. The threshold plus COARSE_GAIN replaces the second if it is less. Measured in
# docs/explanation/near-duplicates.md.
BEFORE_ALIGNING, COARSELY_ALIGNED, COARSE_GAIN = 0.87, 0.95, 0.02

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Pairs = tuple[Integers, Integers]


def find_twins(thumbnails: Pixels, digests: Sequence[str], threshold: float) -> pd.DataFrame:
    """All pairs of images with a similarity of at least `threshold`, or with the same content.

    The table has a row for each pair: `first` < `second` (row numbers), `similarity`, and `kind`. The kinds are "copy"
    (equal `digests`), "near" (unchanged), "mirrored" and "cropped".
    """
    vectors = signatures(thumbnails)
    low = crops.low_frequencies(vectors)
    unit = crops.unit_low(low)
    parts = [_copies(digests)]
    for near, mirrored, croppable in _candidates(low, threshold):
        parts += [
            _compared(vectors, vectors, near, threshold, "near"),
            _compared(vectors, vectors[:, :, ::-1], mirrored, threshold, "mirrored"),
            _cropped(vectors, unit, croppable, threshold),
        ]
    table = pd.concat(parts, ignore_index=True)
    table = table.sort_values(["first", "second", "similarity"], ascending=[True, True, False], kind="stable")
    return table.drop_duplicates(["first", "second"]).reset_index(drop=True)


def signatures(thumbnails: Pixels) -> Floats:
    """Grey, centred, unit-length thumbnails (images, 64, 64) from RGB ones; zeros for a blank image."""
    result = np.empty(thumbnails.shape[:3], dtype=np.float32)
    for thumbnail, vector in zip(thumbnails, result, strict=True):
        grey = thumbnail @ LUMA
        grey -= grey.mean()
        vector[:] = grey / max(float(np.linalg.norm(grey)), 1e-6)
    return result


def _candidates(low: Floats, threshold: float) -> Iterator[tuple[Pairs, Pairs, Pairs]]:
    """For each block of first images: pairs that can be near, that can be mirrored, and whose second can be a crop.

    Mirroring reverses the signs of the odd horizontal frequencies. The high frequencies add at most the product of the
    two images' norms there (Cauchy-Schwarz). Each norm is therefore one more column of the even frequencies.
    """
    rest = np.sqrt(np.maximum(0, 1 - np.square(low).sum(axis=(1, 2))))[:, None]
    even = np.hstack([low[:, :, 0::2].reshape(len(low), -1), rest])
    odd = low[:, :, 1::2].reshape(len(low), -1)
    least, lowest = threshold - ROUNDING, min(BEFORE_ALIGNING, threshold) - ROUNDING
    for start in range(0, len(low), BLOCK):
        found: list[list[Pairs]] = [[], [], []]
        for other in range(0, len(low), BLOCK):
            same = even[start : start + BLOCK] @ even[other : other + BLOCK].T
            turned = odd[start : start + BLOCK] @ odd[other : other + BLOCK].T
            bound = same + turned
            first, second = np.nonzero(bound >= lowest)
            near = bound[first, second] >= least
            first, second = first + start, second + other
            found[0].append((first[near], second[near]))
            found[2].append((first[first != second], second[first != second]))
            if other >= start:
                first, second = np.nonzero(same - turned >= least)
                found[1].append((first + start, second + other))
        near_pairs, mirrored, croppable = (
            (np.concatenate([pair[0] for pair in kind]), np.concatenate([pair[1] for pair in kind])) for kind in found
        )
        yield near_pairs, mirrored, croppable


def _compared(left: Floats, right: Floats, pairs: Pairs, threshold: float, kind: str) -> pd.DataFrame:
    """The pairs first < second whose similarity, compared in full, is at least `threshold`."""
    once = pairs[0] < pairs[1]
    first, second = pairs[0][once], pairs[1][once]
    value = np.array([np.tensordot(left[a], right[b]) for a, b in zip(first, second, strict=True)], dtype=np.float32)
    kept = value >= threshold
    return _table(first[kept], second[kept], value[kept].clip(max=1), kind)


def _cropped(vectors: Floats, unit: Floats, pairs: Pairs, threshold: float) -> pd.DataFrame:
    """The pairs that are not near, but whose second image is similar to a crop of the first image."""
    least = min(COARSELY_ALIGNED, threshold + COARSE_GAIN)
    order = np.argsort(pairs[0], kind="stable")
    first, second = pairs[0][order], pairs[1][order]
    sources, begins = np.unique(first, return_index=True)
    found: list[tuple[int, int, float]] = []
    for source, begin, end in zip(sources, begins, np.append(begins, len(first))[1:], strict=True):
        targets = second[begin:end]
        likeness = unit[targets] @ crops.coarse_crops(vectors[source]).T
        for place in np.flatnonzero(likeness.max(axis=1) >= least):
            target = targets[place]
            if np.tensordot(vectors[source], vectors[target]) < threshold:
                value = crops.aligned(vectors[source], vectors[target], int(likeness[place].argmax()))
                found.append((source, target, value))
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    table = table[table[:, 2] >= threshold]
    return _table(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], "cropped")


def _copies(digests: Sequence[str]) -> pd.DataFrame:
    """Pairs of each file and the first file with the same content."""
    numbers = pd.Series(range(len(digests)))
    first = numbers.groupby(list(digests)).transform("min").to_numpy()
    second = np.flatnonzero(first < numbers)
    return _table(first[second], second, np.ones(len(second)), "copy")


def _table(first: Integers, second: Integers, similarity: NDArray[np.floating], kind: str) -> pd.DataFrame:
    low, high = np.minimum(first, second), np.maximum(first, second)
    return pd.DataFrame({"first": low, "second": high, "similarity": similarity.astype(np.float64), "kind": kind})
