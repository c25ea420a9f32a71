"""Kinds of image files: each gives the values or the refusal that docs/explanation/pictures.md states."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from busi_tune import images
from busi_tune.errors import ImageError
from image_folders import encoded
from picture_files import png, tiff

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "pictures.md"


def values(most: int, *channels: int) -> NDArray[np.uint16]:
    """Random values from 0 to `most`, with `most` at one position: (11, 14, channels)."""
    found = np.random.default_rng(0).integers(0, most, (11, 14, *(channels or (1,))), endpoint=True)
    found[0, 0] = most
    return found.astype(np.uint16)


def level(found: NDArray[Any], most: int) -> NDArray[np.uint8]:
    """Values from 0 to `most`, scaled to an 8-bit picture."""
    grey = np.rint(found.astype(float) * 255 / most).astype(np.uint8)
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey


BITS = {name: values(2**bits - 1) for name, bits in (("10", 10), ("12", 12), ("14", 14), ("16", 16))}
COLOURS = {bits: values(2**bits - 1, 3) for bits in (8, 12, 16)}
BYTES = COLOURS[8].astype(np.uint8)
GREY = BYTES[:, :, :1]
PICTURE = Image.fromarray(BYTES)
OPACITY = np.linspace(0, 255, 11 * 14).reshape(11, 14, 1).astype(np.uint8)
DIMMED = np.rint(BYTES.astype(float) * OPACITY / 255).astype(np.uint8)
WITH_OPACITY = Image.fromarray(np.concatenate([BYTES, OPACITY], axis=2))
OTHER = Image.fromarray(255 - BYTES)


def oriented(form: str, orientation: int = 6, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PICTURE, form, exif=exif, **options)


def palette(opacity: bytes | int) -> tuple[bytes, NDArray[np.uint8]]:
    """A PNG with a palette of four colours, and its expected picture.

    `opacity` gives one opacity for each colour (bytes), or the number of the transparent colour (int).
    """
    index = np.arange(11 * 14, dtype=np.uint8).reshape(11, 14) % 4
    colours = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230], [200, 200, 200]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    shown = (
        np.frombuffer(opacity, np.uint8) if isinstance(opacity, bytes) else np.where(np.arange(4) == opacity, 0, 255)
    )
    return encoded(image, "PNG", transparency=opacity), np.rint(
        colours[index] * (shown[index] / 255)[:, :, None]
    ).astype(np.uint8)


def clear(found: NDArray[Any], colour: Sequence[int], seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture `seen` with black wherever `found` has this colour."""
    return np.where((found == colour).all(axis=2, keepdims=True), 0, seen).astype(np.uint8)


def words(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


def frames(form: str, **options: Any) -> bytes:
    return encoded(PICTURE, form, save_all=True, append_images=[OTHER], **options)


FIRST = "only the first of several frames is read"
BLACK = "transparent parts are black"
TURN = "turned as its orientation tag says"
GUESSED = "scaled from {} bits, as its values suggest".format
TOLD = "scaled from {} bits, as its tags say".format

TWO_BITS = np.arange(11 * 14).reshape(11, 14, 1) % 4
CLEAR = COLOURS[16][3, 4].tolist()
DIM = values(900)
EIGHT = values(255)
TWICE = (EIGHT // 2 * 257).astype(np.uint16)
DEEP, DEEP_GREY = level(COLOURS[16], 65535), level(BITS["16"], 65535)
DIMMED_DEEP, DIMMED_BLUE = (np.rint(seen * (OPACITY / 255)).astype(np.uint8) for seen in (DEEP, DEEP[:, :, [2, 2, 2]]))
PALE = np.rint(np.asarray(PICTURE.convert("L"))[:, :, None].repeat(3, axis=2) * (OPACITY / 255))
DEEP_OPACITY = np.concatenate([COLOURS[16], OPACITY.astype(np.uint16) * 257], axis=2)
# A palette from black to green with 16-bit entries.
RAMP = [0] * 256 + [257 * value for value in range(256)] + [0] * 256
INDEXED = np.concatenate([GREY, OPACITY], axis=2)
GREEN = np.concatenate([np.zeros_like(GREY), np.rint(GREY * (OPACITY / 255)), np.zeros_like(GREY)], axis=2)
MULTIPLIED = np.concatenate([DIMMED, OPACITY], axis=2)

# By row of the table in docs/explanation/pictures.md: file, expected picture, and notes.
READ: dict[str, list[tuple[bytes, NDArray[np.uint8], list[str]]]] = {
    "8-bit grey, colours or palette": [
        (encoded(PICTURE, "PNG"), BYTES, []),
        (encoded(PICTURE, "BMP"), BYTES, []),
        (encoded(PICTURE, "TIFF", compression="tiff_lzw"), BYTES, []),
        (encoded(PICTURE, "WEBP", lossless=True), BYTES, []),
        (tiff(GREY, 1), np.repeat(GREY, 3, axis=2), []),
    ],
    "1, 2 or 4 bits": [
        (png(TWO_BITS, 0, 2), level(TWO_BITS, 3), []),
        (png(TWO_BITS % 2, 0, 1), level(TWO_BITS % 2, 1), []),
        (tiff(TWO_BITS.astype(np.uint8), 1, packed=4), level(TWO_BITS, 15), []),
    ],
    "16-bit grey": [
        (png(BITS["16"], 0), DEEP_GREY, []),
        (tiff(BITS["16"], 1), DEEP_GREY, []),
        (tiff(BITS["16"], 1, ">"), DEEP_GREY, []),
        (encoded(Image.fromarray(BITS["16"][:, :, 0]), "TIFF", compression="tiff_lzw"), DEEP_GREY, []),
    ],
    "16-bit colours (RGB48)": [
        (png(COLOURS[16], 2), DEEP, []),
        (tiff(COLOURS[16], 2), DEEP, []),
        (tiff(COLOURS[16], 2, ">"), DEEP, []),
        (tiff(DEEP_OPACITY, 2, t338=[0]), DEEP, []),
    ],
    "16-bit grey or colours with opacity": [
        (png(DEEP_OPACITY, 6), DIMMED_DEEP, [BLACK]),
        (tiff(DEEP_OPACITY, 2, t338=[2]), DIMMED_DEEP, [BLACK]),
        (tiff(DEEP_OPACITY, 2, t338=[1]), DEEP, []),
        (png(DEEP_OPACITY[:, :, 2:], 4), DIMMED_BLUE, [BLACK]),
    ],
    "10, 12 or 14 bits in 16, by their tags": [
        (tiff(BITS["12"], 1, packed=12), level(BITS["12"], 4095), [TOLD(12)]),
        (tiff(DIM, 1, t281=[4095]), level(DIM, 4095), [TOLD(12)]),
        (tiff(DIM, 1, t341=[16383]), level(DIM, 16383), [TOLD(14)]),
        (tiff(DIM, 1, t281=[65535]), level(DIM, 65535), []),
        (png(DIM, 0, more=[(b"sBIT", b"\x0c")]), level(DIM, 4095), [TOLD(12)]),
        (png(DIM, 0, more=[(b"sBIT", b"\x10")]), level(DIM, 65535), []),
        (png(BITS["16"], 0, more=[(b"sBIT", b"\x0c")]), DEEP_GREY, []),
        (png(BITS["16"], 0, more=[(b"sBIT", b"\xff")]), DEEP_GREY, []),
        (png(COLOURS[12] // 8, 2, more=[(b"sBIT", b"\x0c\x0c\x0c")]), level(COLOURS[12] // 8, 4095), [TOLD(12)]),
    ],
    "8, 10, 12 or 14 bits in 16, by their values": [
        (png(BITS["12"], 0), level(BITS["12"], 4095), [GUESSED(12)]),
        (png(BITS["10"], 0), level(BITS["10"], 1023), [GUESSED(10)]),
        (tiff(BITS["12"], 1), level(BITS["12"], 4095), [GUESSED(12)]),
        (tiff(BITS["14"], 1, ">"), level(BITS["14"], 16383), [GUESSED(14)]),
        (png(COLOURS[12], 2), level(COLOURS[12], 4095), [GUESSED(12)]),
        (tiff(COLOURS[12], 2), level(COLOURS[12], 4095), [GUESSED(12)]),
        (png(EIGHT, 0), level(EIGHT, 255), [GUESSED(8)]),
        (png(TWICE, 0), level(EIGHT // 2, 255), []),
        (png(np.zeros_like(EIGHT), 0), np.zeros_like(BYTES), []),
    ],
    "MinIsWhite": [
        (tiff(BITS["16"], 0), 255 - DEEP_GREY, []),
        (tiff(BITS["12"], 0), 255 - level(BITS["12"], 4095), [GUESSED(12)]),
        (tiff(GREY, 0), np.repeat(255 - GREY, 3, axis=2), []),
        (tiff(TWO_BITS.astype(np.uint8), 0, packed=4), 255 - level(TWO_BITS, 15), []),
    ],
    "Orientation": [
        (oriented("PNG"), np.rot90(BYTES, -1), [TURN]),
        (oriented("WEBP", lossless=True), np.rot90(BYTES, -1), [TURN]),
        (oriented("TIFF"), np.rot90(BYTES, -1), [TURN]),
        (oriented("TIFF", compression="tiff_lzw"), np.rot90(BYTES, -1), [TURN]),
        (oriented("PNG", 3), np.rot90(BYTES, 2), [TURN]),
        (oriented("PNG", 8), np.rot90(BYTES), [TURN]),
        (oriented("PNG", 2), BYTES[:, ::-1], [TURN]),
        (oriented("PNG", 4), BYTES[::-1], [TURN]),
        (oriented("PNG", 5), BYTES.transpose(1, 0, 2), [TURN]),
        (oriented("PNG", 7), BYTES[::-1, ::-1].transpose(1, 0, 2), [TURN]),
        (oriented("PNG", 1), BYTES, []),
        (oriented("PNG", 99), BYTES, []),
        (tiff(COLOURS[16], 2, t274=[6]), np.rot90(DEEP, -1), [TURN]),
        (tiff(BITS["16"], 0, t274=[6]), np.rot90(255 - DEEP_GREY, -1), [TURN]),
    ],
    "Opacity": [
        (encoded(WITH_OPACITY, "PNG"), DIMMED, [BLACK]),
        (encoded(WITH_OPACITY, "WEBP", lossless=True, exact=True), DIMMED, [BLACK]),
        (encoded(WITH_OPACITY, "TIFF"), DIMMED, [BLACK]),
        (encoded(PICTURE.convert("RGBA"), "PNG"), BYTES, []),
        (tiff(MULTIPLIED, 2, t338=[1]), DIMMED, []),
        (tiff(MULTIPLIED[:, :, 2:], 1, t338=[1]), DIMMED[:, :, [2, 2, 2]], []),
        (tiff(MULTIPLIED, 2, t338=[0]), DIMMED, []),
        (tiff(INDEXED, 3, t338=[2], t320=RAMP), GREEN, [BLACK]),
        (encoded(WITH_OPACITY.convert("LA"), "PNG"), PALE, [BLACK]),
    ],
    "One transparent colour (tRNS), or a palette with opacity": [
        (png(BYTES, 2, 8, [(b"tRNS", words(*BYTES[3, 4]))]), clear(BYTES, BYTES[3, 4], BYTES), [BLACK]),
        (png(GREY, 0, 8, [(b"tRNS", words(GREY[3, 4, 0]))]), clear(GREY, GREY[3, 4], level(GREY, 255)), [BLACK]),
        (png(TWO_BITS, 0, 2, [(b"tRNS", words(2))]), clear(TWO_BITS, [2], level(TWO_BITS, 3)), [BLACK]),
        (png(TWO_BITS % 2, 0, 1, [(b"tRNS", words(1))]), np.zeros_like(BYTES), [BLACK]),
        (png(COLOURS[16], 2, more=[(b"tRNS", words(*CLEAR))]), clear(COLOURS[16], CLEAR, DEEP), [BLACK]),
        (png(BITS["16"], 0, more=[(b"tRNS", words(65535))]), clear(BITS["16"], [65535], DEEP_GREY), [BLACK]),
        (*palette(2), [BLACK]),
        (*palette(bytes([255, 0, 128, 10])), [BLACK]),
    ],
    "Several pages or frames": [
        (frames("PNG"), BYTES, [FIRST]),
        (frames("WEBP", lossless=True), BYTES, [FIRST]),
        (frames("TIFF"), BYTES, [FIRST]),
    ],
    "CMYK": [
        (encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF"), np.full((9, 9, 3), (255, 0, 0)), []),
    ],
}  # fmt: skip

REFUSED: dict[str, list[tuple[bytes, str]]] = {
    "Signed values": [
        (tiff(values(30_000).astype(np.int16), 1, t339=[2]), "signed pixels have no agreed range"),
        (tiff(GREY.astype(np.int8), 1, t339=[2]), "signed pixels have no agreed range"),
    ],
    "32-bit or floating-point values": [
        (encoded(Image.fromarray(GREY[:, :, 0].astype(np.float32)), "TIFF"), "32-bit pixels have no agreed range"),
        (encoded(Image.fromarray(GREY[:, :, 0].astype(np.int32)), "TIFF"), "32-bit pixels have no agreed range"),
        (tiff(GREY.astype(np.float16), 1, t339=[3]), "a TIFF file that is damaged or of a kind that is not read"),
    ],
    "16-bit CMYK, or LAB": [
        (tiff(values(65535, 4), 5), "CMYK pixels of 16 bits are not read; save it as grey or RGB"),
        (tiff(BYTES, 8), "LAB pixels of 8 bits are not read; save it as grey or RGB"),
    ],
    "16-bit colours in separate planes": [
        (tiff(COLOURS[16], 2, t284=[2]), "16-bit colours in separate planes are not read; save them interleaved"),
    ],
    "MinIsWhite of 16 bits, high byte first": [
        (tiff(BITS["16"], 0, ">"), "a TIFF file that is damaged or of a kind that is not read"),
    ],
    "TIFF with 10 or 14 bits side by side": [
        (tiff(BITS["10"], 1, packed=10), "a TIFF file that is damaged or of a kind that is not read"),
        (tiff(BITS["14"], 1, packed=14), "a TIFF file that is damaged or of a kind that is not read"),
    ],
    "Every pixel transparent": [
        (encoded(Image.new("RGBA", (9, 9), (200, 100, 50, 0)), "PNG"), "every pixel is transparent"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_has_its_right_values(kind: str) -> None:
    for number, (data, seen, notes) in enumerate(READ[kind]):
        facts, picture = images.inspect(data)
        np.testing.assert_array_equal(np.asarray(picture), seen, err_msg=f"{kind}, {number}")
        assert ([note.text for note in facts.notes], number) == (notes, number)
        assert (facts.width, facts.height) == picture.size == seen.shape[1::-1]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_in_a_sentence(kind: str) -> None:
    for data, reason in REFUSED[kind]:
        with pytest.raises(ImageError) as error:
            images.inspect(data)
        assert str(error.value).startswith(reason)


def test_the_document_has_a_row_for_each_kind() -> None:
    table = DOCS.read_text().partition("| kind of file |")[2].partition("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [*READ, *REFUSED]


def test_a_jpeg_is_turned() -> None:
    smooth = PICTURE.resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth, "JPEG", quality=100, subsampling=0, exif=exif)
    plain = np.asarray(Image.open(io.BytesIO(encoded(smooth, "JPEG", quality=100, subsampling=0))))
    facts, picture = images.inspect(data)
    np.testing.assert_array_equal(np.asarray(picture), np.rot90(plain, -1))
    assert [note.text for note in facts.notes] == [TURN]


def test_a_path_and_its_content_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    for data, *_ in [case for cases in READ.values() for case in cases]:
        path.write_bytes(data)
        by_path, by_content = images.inspect(path), images.inspect(data)
        assert by_path[0] == by_content[0]
        assert by_path[1].tobytes() == by_content[1].tobytes()


@pytest.mark.parametrize("damage", [slice(20), slice(0, 6), slice(0, 11), slice(8, None)])
def test_a_damaged_orientation_turns_nothing(damage: slice) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PICTURE, "WEBP", lossless=True, exif=exif.tobytes()[damage])
    np.testing.assert_array_equal(np.asarray(images.inspect(data)[1]), BYTES)


def test_every_suffix_that_pillow_knows_for_the_formats_is_read() -> None:
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in images.FORMATS}
    assert known == images.SUFFIXES
