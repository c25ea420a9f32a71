"""The resize in an exported graph: pictures of any size to the network's size, with exactly the pixels of Pillow.

The result equals that of Pillow's Resample.c, bit for bit. The filter is a triangle whose support grows with the
reduction. Its weights are normalised and rounded to 22 fractional bits. The first pass resizes the width, the second
the height, and each pass rounds to whole grey levels.

Pillow computes in double precision. The graph computes in whole numbers below 2**24, which float32 holds exactly. It
therefore needs no type that browsers and small devices lack, and no sum depends on the order of its terms. Pillow's
weights are fractions of whole numbers. None of them is so close to the middle of two 22-bit numbers that double
precision would round it to the wrong one.
"""

import numpy as np
import onnx
from onnx import TensorProto
from onnxscript import FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op

from busi_tune.export.graphs import graph_of

# Rows of weights are multiplied in blocks, each with only the window of the picture where its weights are not zero.
BLOCK = 8
# The base of a weight's lower part (8 bits), and of the long division (six digits of 4 bits).
LOWER, DIGIT = 256.0, 16.0
ZERO = np.zeros(1, dtype=np.float32)


@script()
def digit_of(rest: FLOAT[...], total: FLOAT[...], quotient: FLOAT[...]) -> tuple[FLOAT[...], FLOAT[...]]:
    """One step of the long division of `rest` by `total`: the new remainder, and the quotient with one more digit."""
    shifted = rest * DIGIT
    digit = op.Floor(shifted / total)
    return shifted - digit * total, quotient * DIGIT + digit


@script()
def rounded_ratio(part: FLOAT[...], total: FLOAT[...]) -> FLOAT[...]:
    """`part / total`, two whole numbers, in units of 2**-22 and rounded to the nearest."""
    first, one = digit_of(part, total, part * 0.0)
    second, two = digit_of(first, total, one)
    third, three = digit_of(second, total, two)
    fourth, four = digit_of(third, total, three)
    fifth, five = digit_of(fourth, total, four)
    _sixth, six = digit_of(fifth, total, five)
    return op.Floor((op.Floor(six * 0.5) + 1.0) * 0.5)


@script()
def weights_of(
    extent: INT64[...], steps: FLOAT[...], size: FLOAT[...]
) -> tuple[FLOAT[...], INT64[...], INT64[...], INT64[...]]:
    """The weights (blocks, rows, taps) of one axis of `extent` pixels, and the pixels that they apply to.

    The last two results are each row's first pixel, and its last pixel plus one. `steps` (blocks, rows, 1) are twice
    the centres of the `size` new pixels. All lengths are in units of half an old pixel divided by `size`; the weights
    are in units of 2**-22.
    """
    length = op.Cast(extent, to=TensorProto.FLOAT)
    support = op.Max(length, size) * 2.0
    center = steps * length
    unit = size * 2.0
    first = op.Max(op.Cast(op.Floor((center - support + size) / unit), to=TensorProto.INT64), 0)
    end = op.Min(op.Cast(op.Floor((center + support + size) / unit), to=TensorProto.INT64), extent)

    reach = op.Cast(op.Ceil(support / unit), to=TensorProto.INT64)
    taps = op.Squeeze(reach + reach + 1)
    places = first + op.Range(0, taps, 1)
    distance = op.Abs((op.Cast(places, to=TensorProto.FLOAT) * 2.0 + 1.0) * size - center)
    triangle = op.Where(places < extent, op.Max(support - distance, 0.0), 0.0)
    return rounded_ratio(triangle, op.ReduceSum(triangle, [2])), places, first, end


@script()
def resized(pixels: UINT8[...], extent: INT64[...], steps: FLOAT[...], size: FLOAT[...]) -> UINT8[...]:
    """Resize the axis `extent` of pixels (batch, extent, ...); the result is (batch, blocks, rows, all others)."""
    weights, places, first, end = weights_of(extent, steps, size)
    start = first[:, :1]
    widest = op.ReduceMax(end[:, -1:] - start, keepdims=0)
    window = op.Reshape(widest, [1])
    # Products of pixels and weights would need 30 bits, so the weights' upper 14 and lower 8 bits are separate factors.
    upper = op.Floor(weights / LOWER)
    parts = op.Concat(upper, weights - upper * LOWER, axis=1)
    # Move each row's weights to their position in the window of its block.
    moved = places - start
    shape = op.Concat(op.Shape(parts, start=0, end=2), window + op.Shape(parts, start=2), axis=0)
    padded = op.ScatterElements(op.ConstantOfShape(shape, value=ZERO), op.Concat(moved, moved, axis=1), parts, axis=2)
    matrix = op.Slice(padded, [0], window, [2])

    index = op.Min(op.Squeeze(start, [2]) + op.Range(0, widest, 1), extent - 1)
    lines = op.Reshape(op.Gather(pixels, index, axis=1), [0, 0, 0, -1])
    sums = op.MatMul(matrix, op.Cast(lines, to=TensorProto.FLOAT))
    rows = op.Shape(steps, start=1, end=2)
    high, low = op.Slice(sums, [0], rows, [2]), op.Slice(sums, rows, rows + rows, [2])
    return op.Cast((high + op.Floor(low / LOWER) + 8192.0) / 16384.0, to=TensorProto.UINT8)


def any_size(size: int) -> onnx.ModelProto:
    """The graph from `images` uint8 (batch, height, width, 3) to `pixels` uint8 (batch, 3, size, size).

    Source: Clark et al., Pillow's src/libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc` and the two
    passes. Clipping is not needed: weights are not negative, and their rounding raises a level of 255 to no more than
    255.5.

    All numbers are below 2**24 if pictures are reduced at most 128 times and their sides are below sqrt(2**19 * size)
    pixels: 4,096 for a size of 32, 10,836 for 224. For larger pictures a level may be off by one.
    """
    rows = max(number for number in range(1, BLOCK + 1) if size % number == 0)
    middles = (2 * np.arange(size, dtype=np.float32) + 1).reshape(size // rows, rows, 1)
    edge = np.array(size, dtype=np.float32)
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
    """The graph of `any_size` for images that already have the network's size: uint8 (batch, size, size, 3)."""
    return graph_of(planes, [UINT8["batch", size, size, 3]], {"pixels": UINT8["batch", 3, size, size]}, "resize")
