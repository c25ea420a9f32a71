"""What stands before the network in an exported graph: pictures of any size to its pixels, as Pillow resizes them.

The arithmetic is that of Pillow's Resample.c, bit for bit: a triangle filter whose support grows with the reduction,
weights normalised and rounded to 22 fractional bits, width first, then height, each rounded to whole grey levels. All
in double precision, in which every sum of 8-bit pixels times 22-bit weights is exact in whatever order it is added up.
"""

import numpy as np
import onnx

# Rows of the weights are multiplied in blocks, each with the window of the picture that it needs: the rest are zeros.
BLOCK = 8

# Weights of one axis, and their product with the picture along its second axis; AXIS and EXTENT are replaced.
AXIS = """
  AXIS_length = Cast <to = 11> (EXTENT)
  AXIS_scale = Div (AXIS_length, size)
  AXIS_support = Max (AXIS_scale, one)
  AXIS_sharpness = Div (one, AXIS_support)
  AXIS_center = Mul (steps, AXIS_scale)
  AXIS_left = Sub (AXIS_center, AXIS_support)
  AXIS_left_edge = Add (AXIS_left, half)
  AXIS_left_pixel = Cast <to = 7> (AXIS_left_edge)
  AXIS_first = Max (AXIS_left_pixel, zero)
  AXIS_right = Add (AXIS_center, AXIS_support)
  AXIS_right_edge = Add (AXIS_right, half)
  AXIS_right_pixel = Cast <to = 7> (AXIS_right_edge)
  AXIS_end = Min (AXIS_right_pixel, EXTENT)

  AXIS_reach = Ceil (AXIS_support)
  AXIS_reach_pixels = Cast <to = 7> (AXIS_reach)
  AXIS_both_sides = Add (AXIS_reach_pixels, AXIS_reach_pixels)
  AXIS_taps = Add (AXIS_both_sides, unit)
  AXIS_tap_count = Squeeze (AXIS_taps)
  AXIS_tap = Range (from, AXIS_tap_count, step)
  AXIS_places = Add (AXIS_first, AXIS_tap)
  AXIS_inside = Less (AXIS_places, AXIS_end)
  AXIS_position = Cast <to = 11> (AXIS_places)
  AXIS_apart = Sub (AXIS_position, AXIS_center)
  AXIS_offset = Add (AXIS_apart, half)
  AXIS_distance = Mul (AXIS_offset, AXIS_sharpness)
  AXIS_far = Abs (AXIS_distance)
  AXIS_near = Sub (one, AXIS_far)
  AXIS_triangle = Max (AXIS_near, nothing)
  AXIS_weight = Where (AXIS_inside, AXIS_triangle, nothing)
  AXIS_running = CumSum (AXIS_weight, second)
  AXIS_total = Gather <axis = 2> (AXIS_running, last)
  AXIS_share = Div (AXIS_weight, AXIS_total)
  AXIS_scaled = Mul (AXIS_share, fixed_point)
  AXIS_raised = Add (AXIS_scaled, half)
  AXIS_whole = Floor (AXIS_raised)
  AXIS_rounded = Div (AXIS_whole, fixed_point)

  AXIS_start = Slice (AXIS_first, zero, unit, unit)
  AXIS_stop = Slice (AXIS_end, last, beyond, unit)
  AXIS_windows = Sub (AXIS_stop, AXIS_start)
  AXIS_widest = ReduceMax <keepdims = 0> (AXIS_windows)
  AXIS_window = Reshape (AXIS_widest, unit)
  AXIS_room = Add (AXIS_window, AXIS_taps)
  AXIS_shape = Concat <axis = 0> (blocks, AXIS_room)
  AXIS_empty = ConstantOfShape <value = double[1] {0}> (AXIS_shape)
  AXIS_inner = Sub (AXIS_places, AXIS_start)
  AXIS_padded = ScatterElements <axis = 2> (AXIS_empty, AXIS_inner, AXIS_rounded)
  AXIS_matrix = Slice (AXIS_padded, zero, AXIS_window, second)

  AXIS_column = Range (from, AXIS_widest, step)
  AXIS_starts = Squeeze (AXIS_start, second)
  AXIS_wanted = Add (AXIS_starts, AXIS_column)
  AXIS_most = Sub (EXTENT, unit)
  AXIS_index = Min (AXIS_wanted, AXIS_most)
  AXIS_gathered = Gather <axis = 1> (AXIS_source, AXIS_index)
  AXIS_lines = Reshape (AXIS_gathered, flat)
  AXIS_levels = Cast <to = 11> (AXIS_lines)
  AXIS_sums = MatMul (AXIS_matrix, AXIS_levels)
  AXIS_up = Add (AXIS_sums, half)
  AXIS_result = Cast <to = 2> (AXIS_up)
"""

ANY_SIZE = """<ir_version: 10, opset_import: ["": 20]>
resize (uint8[batch, height, width, 3] images) => (uint8[batch, 3, SIZE, SIZE] pixels)
<
  double one = {1}, double half = {0.5}, double nothing = {0}, double fixed_point = {4194304}, double size = {SIZE},
  int64 from = {0}, int64 step = {1}, int64[1] zero = {0}, int64[1] unit = {1}, int64[1] second = {2},
  int64[1] third = {3}, int64[1] last = {-1}, int64[1] beyond = {9223372036854775807},
  int64[2] blocks = {COUNT, ROWS}, int64[4] flat = {0, 0, 0, -1}, int64[3] turned = {0, THRICE, -1},
  int64[4] square = {0, SIZE, SIZE, 3}
>
{
  shape = Shape (images)
  height_pixels = Slice (shape, unit, second)
  width_pixels = Slice (shape, second, third)
  x_source = Transpose <perm = [0, 2, 3, 1]> (images)
  X_AXIS
  narrow = Reshape (x_result, turned)
  y_source = Transpose <perm = [0, 2, 1]> (narrow)
  Y_AXIS
  resized = Reshape (y_result, square)
  pixels = Transpose <perm = [0, 3, 1, 2]> (resized)
}"""

READY = """<ir_version: 10, opset_import: ["": 20]>
ready (uint8[batch, SIZE, SIZE, 3] images) => (uint8[batch, 3, SIZE, SIZE] pixels)
{
  pixels = Transpose <perm = [0, 3, 1, 2]> (images)
}"""


def any_size(size: int) -> onnx.ModelProto:
    """`images` uint8 (batch, height, width, 3) to `pixels` uint8 (batch, 3, size, size).

    Clark et al., Pillow's src/libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc` and the two passes.
    Nothing need be clipped: weights are not negative, and what rounds them makes a level of 255 no more than 255.5 for
    reductions below 8,000 times, which `images` reads no picture beyond.
    """
    rows = max(number for number in range(1, BLOCK + 1) if size % number == 0)
    axes = {
        "X_AXIS": AXIS.replace("AXIS", "x").replace("EXTENT", "width_pixels"),
        "Y_AXIS": AXIS.replace("AXIS", "y").replace("EXTENT", "height_pixels"),
    }
    model = _parsed(ANY_SIZE, axes | {"THRICE": 3 * size, "SIZE": size, "COUNT": size // rows, "ROWS": rows})
    steps = (np.arange(size) + 0.5).reshape(size // rows, rows, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(steps, "steps"))
    return _prefixed(model)


def ready(size: int) -> onnx.ModelProto:
    """The same for images that have the network's size: `images` uint8 (batch, size, size, 3)."""
    return _prefixed(_parsed(READY, {"SIZE": size}))


def _parsed(text: str, values: dict[str, object]) -> onnx.ModelProto:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return onnx.parser.parse_model(text)


def _prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.compose.add_prefix(model, "resize.", rename_inputs=False, rename_outputs=False, inplace=True)
    return model
