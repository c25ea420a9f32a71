"""The resize in front of the network in an exported graph: pictures of any size to its pixels, as Pillow resizes them.

The arithmetic is that of Pillow's Resample.c, bit for bit: a triangle filter whose support grows with the reduction,
weights normalised and rounded to 22 fractional bits, width first, then height, each rounded to whole grey levels. All
in double precision, in which every sum of 8-bit pixels times 22-bit weights is exact in whatever order it is added up.
"""

import numpy as np
import onnx
from onnx import TensorProto
from onnxscript import DOUBLE, INT64, UINT8, script
from onnxscript import opset20 as op

from busi_tune.export.graphs import graph_of

# Rows of the weights are multiplied in blocks, each with the window of the picture that it needs: the rest are zeros.
BLOCK = 8
FIXED_POINT = 2.0**22
ZERO = np.zeros(1)


@script()
def weights_of(
    extent: INT64[...], steps: DOUBLE[...], size: DOUBLE[...]
) -> tuple[DOUBLE[...], INT64[...], INT64[...], INT64[...]]:
    """Weights (blocks, rows, taps) of one axis of `extent` pixels, their pixels, and the first and the last plus one.

    `steps` (blocks, rows, 1) are the middles of the `size` new pixels.
    """
    scale = op.Cast(extent, to=TensorProto.DOUBLE) / size
    support = op.Max(scale, 1.0)
    center = steps * scale
    first = op.Max(op.Cast(center - support + 0.5, to=TensorProto.INT64), 0)
    end = op.Min(op.Cast(center + support + 0.5, to=TensorProto.INT64), extent)

    reach = op.Cast(op.Ceil(support), to=TensorProto.INT64)
    taps = op.Squeeze(reach + reach + 1)
    places = first + op.Range(0, taps, 1)
    distance = (op.Cast(places, to=TensorProto.DOUBLE) - center + 0.5) * (1.0 / support)
    triangle = op.Where(places < end, op.Max(1.0 - op.Abs(distance), 0.0), 0.0)
    total = op.Gather(op.CumSum(triangle, 2), [-1], axis=2)
    return op.Floor(triangle / total * FIXED_POINT + 0.5) / FIXED_POINT, places, first, end


@script()
def resized(pixels: UINT8[...], extent: INT64[...], steps: DOUBLE[...], size: DOUBLE[...]) -> UINT8[...]:
    """Pixels (batch, extent, ...) to (batch, blocks, rows, all others)."""
    weights, places, first, end = weights_of(extent, steps, size)
    start = first[:, :1]
    widest = op.ReduceMax(end[:, -1:] - start, keepdims=0)
    window = op.Reshape(widest, [1])
    # Each row's weights are moved to their places in its block's window.
    shape = op.Concat(op.Shape(steps, start=0, end=2), window + op.Shape(weights, start=2), axis=0)
    padded = op.ScatterElements(op.ConstantOfShape(shape, value=ZERO), places - start, weights, axis=2)
    matrix = op.Slice(padded, [0], window, [2])

    index = op.Min(op.Squeeze(start, [2]) + op.Range(0, widest, 1), extent - 1)
    lines = op.Reshape(op.Gather(pixels, index, axis=1), [0, 0, 0, -1])
    return op.Cast(op.MatMul(matrix, op.Cast(lines, to=TensorProto.DOUBLE)) + 0.5, to=TensorProto.UINT8)


def any_size(size: int) -> onnx.ModelProto:
    """`images` uint8 (batch, height, width, 3) to `pixels` uint8 (batch, 3, size, size).

    Clark et al., Pillow's src/libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc` and the two passes.
    Nothing need be clipped: weights are not negative, and what rounds them makes a level of 255 no more than 255.5 for
    reductions below 8,000 times, which `images` reads no picture beyond.
    """
    rows = max(number for number in range(1, BLOCK + 1) if size % number == 0)
    middles = (np.arange(size) + 0.5).reshape(size // rows, rows, 1)
    edge = np.array(size, dtype=np.float64)
    turned, square = [0, 3 * size, -1], [0, size, size, 3]

    @script()
    def resize(images: UINT8[...]) -> UINT8[...]:
        shape = op.Shape(images)
        steps = op.Constant(value=middles)
        size = op.Constant(value=edge)
        narrow = resized(op.Transpose(images, perm=[0, 2, 3, 1]), shape[2:3], steps, size)
        small = resized(op.Transpose(op.Reshape(narrow, turned), perm=[0, 2, 1]), shape[1:2], steps, size)
        return op.Transpose(op.Reshape(small, square), perm=[0, 3, 1, 2])

    given = UINT8["batch", "height", "width", 3]
    return graph_of(resize, [given], {"pixels": UINT8["batch", 3, size, size]}, "resize")


@script()
def planes(images: UINT8[...]) -> UINT8[...]:
    """Images (batch, height, width, 3) as (batch, 3, height, width)."""
    return op.Transpose(images, perm=[0, 3, 1, 2])


def ready(size: int) -> onnx.ModelProto:
    """The same for images that have the network's size: `images` uint8 (batch, size, size, 3)."""
    return graph_of(planes, [UINT8["batch", size, size, 3]], {"pixels": UINT8["batch", 3, size, size]}, "resize")
