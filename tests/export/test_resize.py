"""The resize inside the graph equals Pillow's, bit for bit, at any size."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from busi_tune import images
from busi_tune.export import resize
from busi_tune.images import Pixels
from image_folders import BUSI, needs_busi

SIZES = (224, 100, 37)


def session(size: int) -> onnxruntime.InferenceSession:
    model = resize.any_size(size)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


SESSIONS = {size: session(size) for size in SIZES}


def in_graph(pictures: Pixels, size: int) -> Pixels:
    """Pictures (n, height, width, 3), resized by the graph to (n, size, size, 3)."""
    found: Pixels = SESSIONS[size].run(["pixels"], {"images": pictures})[0]
    return found.transpose(0, 2, 3, 1)


def picture(kind: str, height: int, width: int, seed: int = 0) -> Pixels:
    """A picture of noise, of black and white only (the hardest case for rounding), of a ramp, or of one level."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "noise":
        return noise
    if kind == "black and white":
        return np.where(noise > 127, 255, 0).astype(np.uint8)
    if kind == "ramp":
        return np.broadcast_to(np.linspace(0, 255, width)[None, :, None], noise.shape).astype(np.uint8)
    return np.full_like(noise, seed % 256)


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    kind=st.sampled_from(["noise", "black and white", "ramp", "flat"]),
    seed=st.integers(0, 255),
)
def test_no_pixel_differs(size: int, height: int, width: int, kind: str, seed: int) -> None:
    given_ = picture(kind, height, width, seed)
    np.testing.assert_array_equal(in_graph(given_[None], size)[0], images.resize(given_, size))


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 5000), (5000, 1), (224, 224), (224, 500), (500, 224), (3000, 4000), (4000, 17), (223, 225)],
)
def test_no_pixel_differs_at_the_edges(height: int, width: int) -> None:
    given_ = picture("black and white", height, width)
    np.testing.assert_array_equal(in_graph(given_[None], 224)[0], images.resize(given_, 224))


def test_a_batch_is_resized_as_its_pictures_are() -> None:
    several = np.stack([picture("noise", 90, 123, seed) for seed in range(5)])
    together = in_graph(several, 100)
    for one, found in zip(several, together, strict=True):
        np.testing.assert_array_equal(found, images.resize(one, 100))


def test_the_graph_has_standard_operators_alone_and_is_always_the_same() -> None:
    for model in (resize.any_size(100), resize.ready(100)):
        assert not model.functions
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not {node.op_type for node in model.graph.node} & {"Constant", "CastLike", "Identity"}
    assert resize.any_size(100).SerializeToString() == resize.any_size(100).SerializeToString()


@needs_busi
def test_real_images() -> None:
    for path in list(images.walk(BUSI))[::60]:
        found = images.picture(path)
        np.testing.assert_array_equal(in_graph(found[None], 224)[0], images.read(path, 224))


# For `picture("noise", height, width)` resized to 37 pixels: three pixels, and the sum of all values. These are
# fixed, whatever later versions of Pillow and ONNX Runtime compute.
GOLDEN = {
    (500, 400): [[123, 122, 126], [129, 126, 124], [125, 127, 136], 522697],
    (61, 97): [[128, 150, 154], [180, 185, 137], [150, 130, 85], 524033],
    (97, 61): [[173, 168, 164], [159, 163, 99], [96, 60, 144], 524194],
    (20, 30): [[95, 130, 194], [106, 92, 131], [60, 109, 222], 515361],
    (311, 19): [[120, 125, 111], [111, 119, 144], [143, 80, 110], 523989],
    (1, 1): [[95, 130, 194], [95, 130, 194], [95, 130, 194], 573611],
}


@pytest.mark.parametrize("shape", GOLDEN)
def test_golden_pixels(shape: tuple[int, int]) -> None:
    given_ = picture("noise", *shape)
    for found in (in_graph(given_[None], 37)[0], images.resize(given_, 37)):
        assert [found[0, 0].tolist(), found[18, 20].tolist(), found[36, 36].tolist(), int(found.sum())] == GOLDEN[shape]


def plainly(levels: Pixels, size: int) -> NDArray[np.int64]:
    """Resizes (width,) levels with Pillow's weights along one axis, following its C code."""
    width = len(levels)
    scale = width / size
    support = max(scale, 1.0)
    found = []
    for place in range(size):
        center = (place + 0.5) * scale
        first, end = max(0, int(center - support + 0.5)), min(width, int(center + support + 0.5))
        raw = [max(0.0, 1 - abs((x - center + 0.5) * (1 / support))) for x in range(first, end)]
        fixed = [int(0.5 + weight / sum(raw) * 2**22) for weight in raw]
        found.append((2**21 + sum(w * int(v) for w, v in zip(fixed, levels[first:end], strict=True))) >> 22)
    return np.array(found)


@pytest.mark.parametrize("width", [1, 20, 37, 90, 333])
def test_the_weights_are_those_of_pillows_source(width: int) -> None:
    row = picture("noise", 1, width)
    given_ = np.repeat(row, 37, axis=0)
    expected = np.stack([plainly(row[0, :, channel], 37) for channel in range(3)], axis=1)
    np.testing.assert_array_equal(in_graph(given_[None], 37)[0][5], expected)


def test_the_order_of_the_passes_is_told_apart() -> None:
    # Shows that the order of the passes matters, so that other tests can detect a wrong order.
    given_ = picture("black and white", 300, 90)
    turned = Image.fromarray(given_).resize((90, 37), Image.Resampling.BILINEAR)
    other = np.asarray(turned.resize((37, 37), Image.Resampling.BILINEAR))
    assert (other != images.resize(given_, 37)).any()
