"""Reading images: all modes and formats, Pillow's resize, and a reason for each refusal."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from busi_tune import images
from busi_tune.decoding import ON_BLACK
from busi_tune.errors import DataError, ImageError
from image_folders import encoded

BILINEAR = Image.Resampling.BILINEAR


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey_to_rgb(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def on_black(colours: NDArray[np.uint8], opacity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.rint(colours.astype(float) * opacity / 255).astype(np.uint8)


def scan(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture with edges, similar to a scan."""
    small = Image.fromarray(noise(7, 9, 3, seed=seed))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header states `width` x `height` grey pixels, without any pixel data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rgb() -> tuple[Image.Image, NDArray[np.uint8]]:
    pixels = noise(32, 32, 3)
    return Image.fromarray(pixels), pixels


def rgba() -> tuple[Image.Image, NDArray[np.uint8]]:
    pixels = noise(32, 32, 4)
    return Image.fromarray(pixels), on_black(pixels[:, :, :3], pixels[:, :, 3:])


def grey() -> tuple[Image.Image, NDArray[np.uint8]]:
    pixels = noise(32, 32)
    return Image.fromarray(pixels), grey_to_rgb(pixels)


def grey_alpha() -> tuple[Image.Image, NDArray[np.uint8]]:
    pixels = noise(32, 32, 2)
    return Image.fromarray(pixels, "LA"), grey_to_rgb(on_black(pixels[:, :, 0], pixels[:, :, 1]))


def palette() -> tuple[Image.Image, NDArray[np.uint8]]:
    colours, index = noise(256, 3), noise(32, 32, seed=1)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    return image, colours[index]


def one_bit() -> tuple[Image.Image, NDArray[np.uint8]]:
    bits = noise(32, 32) > 127
    return Image.fromarray(bits), grey_to_rgb(bits * 255)


def sixteen_bits() -> tuple[Image.Image, NDArray[np.uint8]]:
    values = np.random.default_rng(0).integers(0, 65536, (32, 32), dtype=np.uint16)
    return Image.fromarray(values), grey_to_rgb(np.rint(values / 257))


Maker = Callable[[], tuple[Image.Image, NDArray[np.uint8]]]


@pytest.mark.parametrize(
    ("maker", "mode", "form", "suffix"),
    [
        (rgb, "RGB", "PNG", "png"),
        (rgb, "RGB", "BMP", "bmp"),
        (rgb, "RGB", "TIFF", "tif"),
        (rgba, "RGBA", "PNG", "png"),
        (rgba, "RGBA", "TIFF", "tiff"),
        (grey, "L", "PNG", "png"),
        (grey, "L", "BMP", "bmp"),
        (grey_alpha, "LA", "PNG", "png"),
        (palette, "P", "PNG", "png"),
        (palette, "P", "BMP", "bmp"),
        (one_bit, "1", "PNG", "png"),
        (one_bit, "1", "TIFF", "tif"),
        (sixteen_bits, "I;16", "PNG", "png"),
        (sixteen_bits, "I;16", "TIFF", "tif"),
    ],
)
def test_every_mode_becomes_its_own_colours(tmp_path: Path, maker: Maker, mode: str, form: str, suffix: str) -> None:
    image, expected = maker()
    path = tmp_path / f"image.{suffix}"
    image.save(path, form)
    with Image.open(path) as saved:
        assert saved.mode == mode
    pixels = images.read(path, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    facts, same = images.inspect(path.read_bytes())
    notes = (ON_BLACK,) if mode in {"RGBA", "LA"} else ()
    assert facts == images.ImageInfo(form, mode, 32, 32, notes)
    np.testing.assert_array_equal(np.asarray(same), expected)


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_of_32_bits_are_refused_not_guessed(tmp_path: Path, kind: type, mode: str) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(noise(32, 32).astype(kind), mode).save(path)
    with pytest.raises(ImageError, match=r"^32-bit pixels have no agreed range; save it with 8 or 16 bits$"):
        images.read(path, 32)


def test_lossless_webp(tmp_path: Path) -> None:
    image, expected = rgb()
    path = tmp_path / "image.webp"
    image.save(path, lossless=True, exact=True)
    np.testing.assert_array_equal(images.read(path, 32), expected)


@pytest.mark.parametrize(
    ("value", "level"),
    [(0, 0), (128, 0), (129, 1), (257, 1), (32896, 128), (40_000, 156), (65_535, 255)],
)
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, value: int, level: int) -> None:
    path = tmp_path / "deep.png"
    values = np.full((20, 20), value, dtype=np.uint16)
    values[0, 0] = 65_535
    Image.fromarray(values).save(path)
    assert np.unique(images.picture(path)[1:]).tolist() == [level]


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 255, 0), (0, 255, 0)), ((0, 0, 0, 0), (255, 255, 255))],
)
def test_a_jpeg_in_printers_ink(tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    path = tmp_path / "ink.jpg"
    Image.new("CMYK", (24, 24), ink).save(path, quality=95)
    difference = images.read(path, 24).astype(int) - colour
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
@pytest.mark.parametrize(("height", "width"), [(470, 560), (224, 300), (97, 641), (20, 31), (1, 1), (300, 3)])
@pytest.mark.parametrize("size", [64, 224])
def test_the_resize_is_pillows_bilinear_one(tmp_path: Path, mode: str, height: int, width: int, size: int) -> None:
    """The result equals resizing by width and then by height. It differs from one call of Pillow by rounding only."""
    path = tmp_path / "scan.png"
    scan(height, width).convert(mode).save(path)
    with Image.open(path) as image:
        full = image.convert("RGB")
    pixels = images.read(path, size)
    wide = full.resize((size, height), BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(wide.resize((size, size), BILINEAR)))
    at_once = np.asarray(full.resize((size, size), BILINEAR))
    assert np.abs(pixels.astype(int) - at_once).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(224, 560), (560, 224), (224, 100), (100, 224), (224, 224)])
def test_where_one_axis_changes_one_call_of_pillow_gives_the_same(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "scan.png"
    image = scan(height, width)
    image.save(path)
    np.testing.assert_array_equal(images.read(path, 224), np.asarray(image.resize((224, 224), BILINEAR)))


def test_decode_keeps_the_images_own_size(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    image = scan(41, 67)
    image.save(path)
    decoded = images.decode(path)
    assert (decoded.mode, decoded.size) == ("RGB", (67, 41))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    image, expected = rgb()
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(image, "PNG"))
    np.testing.assert_array_equal(images.read(path, 32), expected)


def spoiled(form: str, place: int) -> bytes:
    """A picture whose byte at `place` is set to 0."""
    content = bytearray(encoded(scan(30, 30), form))
    content[place] = 0
    return bytes(content)


NOT_AN_IMAGE = "not a PNG, JPEG, BMP, TIFF, WEBP image"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "empty"),
        ("text.jpg", b"This is not an image.\n", NOT_AN_IMAGE),
        ("gif.png", encoded(scan(30, 30), "GIF"), f"a GIF file, {NOT_AN_IMAGE}"),
        ("dicom.png", bytes(128) + b"DICM" + bytes(200), f"a DICOM file, {NOT_AN_IMAGE}"),
        ("avif.jpg", encoded(scan(30, 30), "AVIF"), f"an AVIF file, {NOT_AN_IMAGE}"),
        ("icon.png", encoded(scan(32, 32), "ICO"), NOT_AN_IMAGE),
        ("twelve.png", encoded(scan(30, 30), "PNG")[:12], NOT_AN_IMAGE),
        ("cut.png", encoded(scan(300, 300), "PNG")[:3000], "damaged or unreadable (image file is truncated"),
        ("cut.jpg", encoded(scan(300, 300), "JPEG")[:3000], "damaged or unreadable (image file is truncated"),
        ("cut.tif", encoded(scan(300, 300), "TIFF")[:3000], "damaged or unreadable ("),
        ("cut.bmp", encoded(scan(300, 300), "BMP")[:3000], "damaged or unreadable (image file is truncated"),
        ("cut.webp", encoded(scan(300, 300), "WEBP")[:300], "damaged or unreadable ("),
        ("signature.png", spoiled("PNG", 0), NOT_AN_IMAGE),
        ("header.png", spoiled("PNG", 11), "damaged or unreadable (Truncated IHDR chunk"),
        ("chunk.png", spoiled("PNG", 35), "damaged or unreadable (broken PNG file"),
        ("bomb.png", png_header(60_000, 60_000), "more than the 50,000,000 pixels that are read"),
        ("above.png", png_header(1, 50_000_001), "1 x 50000001 pixels are more than the 50,000,000 that are read"),
        ("at.png", png_header(10_000, 5_000), "damaged or unreadable ("),
    ],
)
def test_what_is_refused_and_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        images.read(path, 32)
    assert str(error.value).startswith(reason)
    assert str(error.value).strip()
    with pytest.raises(ImageError) as error:
        images.inspect(content)
    assert str(error.value).startswith(reason)


def test_a_small_file_of_many_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (8000, 7000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match=r"^8000 x 7000 pixels are more than the 50,000,000 that are read$"):
        images.read(path, 32)


@pytest.mark.parametrize(("name", "reason"), [("none.png", "no such file or directory"), ("", "is a directory")])
def test_what_is_no_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ImageError) as error:
        images.read(tmp_path / name, 32)
    assert str(error.value) == reason
    assert isinstance(error.value, DataError)


def sources() -> dict[str, bytes]:
    image = scan(24, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.png": encoded(image, "PNG", exif=exif),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=1),
        "deep.png": encoded(sixteen_bits()[0], "PNG"),
        "scan.jpg": encoded(image, "JPEG", exif=exif),
        "ink.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "scan.tif": encoded(image, "TIFF"),
        "packed.tif": encoded(image, "TIFF", compression="tiff_lzw"),
    }


SOURCES = sources()
# Half of the positions are in the header, where changes cause the most kinds of errors.
PLACES = st.one_of(st.integers(0, 60), st.integers(0, 2000))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    changes=st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.one_of(st.none(), PLACES),
)
def test_a_damaged_file_is_an_image_or_an_image_error(
    damaged: Path, name: str, changes: list[tuple[int, int]], kept: int | None
) -> None:
    content = bytearray(SOURCES[name])
    for place, value in changes:
        content[place % len(content)] = value
    path = damaged / name
    path.write_bytes(content[:kept])
    try:
        pixels = images.read(path, 16)
    except ImageError:
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("benign (1)_mask.png", True),
        ("benign (100)_mask_1.png", True),
        ("benign (3)_mask_12.png", True),
        ("BENIGN (1)_MASK.PNG", True),
        ("normal (1)_Mask_2.png", True),
        ("benign (1).png", False),
        ("mask_benign.png", True),
        ("mask.png", True),
        ("benign_masked.png", False),
        ("benign_mask_a.png", True),
        ("benign (1)_mask (2).png", True),
        ("x_mask - Copy.png", True),
        ("x_mask copy.png", True),
        ("x_mask copy 2.png", True),
        ("x_mask (1).png", True),
        ("x-mask.png", True),
        ("x mask.png", True),
        ("x.mask.png", True),
        ("x_mask1.png", True),
        ("xMask.png", True),
        ("unmasked.png", False),
        ("unmasked_1.png", False),
        ("damask.png", False),
        ("no_mask_1.png", False),
        ("x without mask.png", False),
        ("x_tumor.png", False),
        ("tumor_1.png", False),
        ("masks/benign (1).png", False),
        ("benign_mask/benign (1).png", False),
    ],
)
def test_is_mask(name: str, expected: bool) -> None:
    assert images.is_mask(Path("data", name)) is expected


def test_walk_is_sorted_and_leaves_out_what_no_one_put_there(tmp_path: Path) -> None:
    wanted = ["10.png", "2.PNG", "a.jpeg", "b.JPG", "c.bmp", "d.tif", "e.Tiff", "f.webp", "deep/er/x.png", "deep/a.png"]
    others = [
        "._2.png",
        ".hidden.png",
        ".git/x.png",
        "__MACOSX/x.png",
        "Thumbs.db",
        "notes.txt",
        "a.gif",
        "png",
        ".png",
    ]
    for name in reversed(wanted + others):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in images.walk(tmp_path)]
    top = ["10.png", "2.PNG", "a.jpeg", "b.JPG", "c.bmp", "d.tif", "e.Tiff", "f.webp"]
    assert found == [*top, "deep/a.png", "deep/er/x.png"]


def test_walk_takes_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"{letter}/{inner}/1.png" for letter in "hcagbedf" for inner in ("z", "b", "y", "a")]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in images.walk(tmp_path)] == sorted(names)


def test_walk_follows_links_to_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").symlink_to(tmp_path / "elsewhere/b.png")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(tmp_path).as_posix() for path in images.walk(tmp_path / "data")]
    assert found == ["data/a.png", "data/more/b.png"]


def test_walk_follows_the_first_of_several_ways_to_a_folder(tmp_path: Path) -> None:
    """Links between folders are a loop only if a link leads back to a folder that contains it."""
    for name in ("data/b/1.png", "data/b/in/2.png", "data/e/3.png", "elsewhere/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in {"a": "data/b/in", "c": "elsewhere", "d": "elsewhere", "e/x": "data/b", "z": "data/e"}.items():
        (tmp_path / "data" / name).symlink_to(tmp_path / target)
    found = [path.relative_to(tmp_path / "data").as_posix() for path in images.walk(tmp_path / "data")]
    assert found == ["a/2.png", "b/1.png", "c/4.png", "e/3.png"]


def test_walk_waits_for_no_pipe_or_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    assert [path.name for path in images.walk(tmp_path)] == ["broken.png"]


@pytest.mark.parametrize("target", ["data", "data/inner", "."])
def test_walk_refuses_a_loop_of_links(tmp_path: Path, target: str) -> None:
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/inner/again").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r" again, by way of a link; remove the link\.$"):
        list(images.walk(tmp_path / "data"))


def test_walk_refuses_a_loop_by_way_of_another_folder(tmp_path: Path) -> None:
    for name in ("data/a", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/a/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data/a")
    with pytest.raises(DataError) as error:
        list(images.walk(tmp_path / "data"))
    again, first = tmp_path / "data/a/out/back", tmp_path / "data/a"
    assert str(error.value) == f"{again} is {first} again, by way of a link; remove the link."


def test_walk_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(DataError) as error:
        list(images.walk(folder))
    assert str(error.value) == f"{folder} could not be listed: No such file or directory; change its permissions."


def test_a_tall_image_that_would_grow_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tall.png"
    Image.new("1", (1, 65_000)).save(path)
    with pytest.raises(ImageError, match="1 x 65000 pixels are too narrow to be resized to 1024 x 1024"):
        images.read(path, 1024)


def test_an_image_that_is_longer_than_any_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    Image.new("1", (65_536, 1)).save(path)
    with pytest.raises(ImageError, match="65536 x 1 pixels are longer than the 65,535 that are read"):
        images.picture(path)
