"""Which images are the same picture, or nearly: cosine similarity of centred grey thumbnails."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from busi_tune.images import Pixels

THUMBNAIL = 64
BLOCK = 1024

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def signatures(thumbnails: Pixels) -> NDArray[np.float32]:
    """Grey, centred, unit-length vectors of shape (images, pixels) from RGB thumbnails."""
    grey = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    flat = grey.reshape(len(grey), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(length, 1e-6))


def similar_pairs(vectors: NDArray[np.float32], threshold: float) -> Pairs:
    """All pairs i < j whose cosine similarity is at least `threshold`, with it; in blocks, never N x N."""
    firsts, seconds, values = [], [], []
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        for other in range(start, len(vectors), BLOCK):
            similarity = block @ vectors[other : other + BLOCK].T
            rows, columns = np.nonzero(similarity >= threshold)
            keep = rows + start < columns + other
            firsts.append(rows[keep] + start)
            seconds.append(columns[keep] + other)
            values.append(similarity[rows[keep], columns[keep]])
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(values)


def group_numbers(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """The connected components of `pairs` over `count` images, numbered by their first image."""
    first, second, _ = pairs
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, leader, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(leader))
    return np.asarray(rank[inverse], dtype=np.int64)
