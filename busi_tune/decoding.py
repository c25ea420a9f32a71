"""Conversion of an opened image file to 8-bit RGB: bit depth, inverted grey, transparency and orientation."""

import struct
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

from busi_tune.errors import ImageError

Words = NDArray[np.uint16]

# The bit depths that the values can have if the file does not state a depth.
DEPTHS = (8, 10, 12, 14, 16)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 341
PALETTES, PLAIN = ("P", "PA"), ("1", "L", "RGB")


class Note(NamedTuple):
    """A change made to an image while reading it. A `doubtful` change is one that the file itself does not ask for."""

    text: str
    doubtful: bool = False


FIRST_FRAME = Note("only the first of several frames is read", doubtful=True)
ON_BLACK = Note("transparent parts are black")
TURNED = Note("turned as its orientation tag says")


@dataclass(frozen=True)
class _Layout:
    """The pixel layout that a file declares, as far as Pillow does not handle it.

    `depth` is the number of bits of a channel. `said` is the number of bits that 16-bit values really use, or None if
    the file does not state it.
    """

    depth: int = 8
    said: int | None = None
    unsigned: bool = True
    interleaved: bool = True
    white_is_zero: bool = False
    opacity: bool = True


def to_rgb(image: ImageFile.ImageFile, file: BinaryIO) -> tuple[Image.Image, tuple[Note, ...]]:
    """Convert the first frame of `image`, opened from `file`, to 8-bit RGB. Also return the changes made.

    Raises:
        ImageError: the pixels are of a kind without an agreed range or colours, or all pixels are transparent.
    """
    layout = _layout(image, file)
    _check_kind(image.mode, layout)
    notes = [FIRST_FRAME] if getattr(image, "is_animated", False) else []
    # Pillow applies the orientation of a TIFF while loading it.
    turned = isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.Orientation) in TURNS
    if layout.depth > 8:
        picture, alpha, scaled = _of_words(image, file, layout)
        notes += scaled
    else:
        picture, alpha = _of_bytes(image, file, layout)
    if alpha is not None:
        opacity = np.asarray(alpha)
        if not opacity.any():
            raise ImageError("every pixel is transparent; save it without transparency")
        if (opacity < 255).any():
            picture = Image.composite(picture, Image.new("RGB", picture.size), alpha)
            notes.append(ON_BLACK)
    if not isinstance(image, TiffImageFile) and (turn := TURNS.get(_orientation(image))) is not None:
        picture, turned = picture.transpose(turn), True
    return picture, (*notes, *([TURNED] if turned else []))


def _layout(image: Image.Image, file: BinaryIO) -> _Layout:
    if image.format == "PNG":
        # The first chunk is the header. The ninth byte of its data is the depth.
        depth = _peek(file, 24, 1)[0]
        return _Layout(depth, _significant_bits(file) if depth == 16 else None)
    if not isinstance(image, TiffImageFile):
        return _Layout()

    def most(tag: int, default: int) -> int:
        found = np.ravel(image.tag_v2.get(tag, default)).tolist()
        return max((int(value) for value in found if isinstance(value, int | float)), default=default)

    depth = most(TiffImagePlugin.BITSPERSAMPLE, 1)
    largest = max(most(MAX_SAMPLE_VALUE, 0), most(S_MAX_SAMPLE_VALUE, 0))
    said = depth if depth < 16 else next((bits for bits in DEPTHS if 0 < largest < 2**bits), None)
    return _Layout(
        depth,
        said,
        unsigned=most(TiffImagePlugin.SAMPLEFORMAT, 1) == 1,
        interleaved=most(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 1,
        white_is_zero=most(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0,
        # 0 is a channel without meaning. 1 is premultiplied opacity, whose colours are already on black.
        opacity=image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ()) not in {(0,), (1,)},
    )


def _check_kind(mode: str, layout: _Layout) -> None:
    depth = layout.depth
    if depth > 16:
        raise ImageError("32-bit pixels have no agreed range; save it with 8 or 16 bits")
    if not layout.unsigned:
        raise ImageError("signed pixels have no agreed range; save it with 8 or 16 bits, unsigned")
    if mode == "LAB" or (depth > 8 and mode not in {"I;16", "I;16B", "RGB", "RGBA"}):
        raise ImageError(f"{mode} pixels of {depth} bits are not read; save it as grey or RGB")
    if depth > 8 and mode in {"RGB", "RGBA"} and not layout.interleaved:
        raise ImageError(f"{depth}-bit colours in separate planes are not read; save them interleaved")


def _of_bytes(image: ImageFile.ImageFile, file: BinaryIO, layout: _Layout) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image of at most 8 bits a channel, and its opacity (None if it has none)."""
    if image.mode == "RGBA" and not layout.opacity:
        # Pillow would divide the colours by their opacity.
        return Image.fromarray(_decoded_as(file, _raw_mode(image.tile[0].args).upper())).convert("RGB"), None
    image.load()
    if image.mode == "La":
        return image.getchannel(0).convert("RGB"), None
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    if image.mode in PLAIN:
        # Pillow scales grey values of 2 and 4 bits to 8 bits, but not the transparent value.
        clear = np.asarray(image.info["transparency"]) * (255 // (2**layout.depth - 1) if image.mode == "L" else 1)
        return image.convert("RGB"), _opaque_but(np.asarray(image.convert("RGB")), clear)
    whole = image.convert("RGBA") if image.mode in PALETTES else image
    return whole.convert("RGB"), whole.getchannel("A")


def _opaque_but(colours: NDArray[np.uint8] | Words, clear: NDArray[np.int64]) -> Image.Image:
    """The opacity of an image in which the colour `clear` is transparent."""
    return Image.fromarray(np.where((colours == clear).all(axis=2), 0, 255).astype(np.uint8))


def _of_words(
    image: ImageFile.ImageFile, file: BinaryIO, layout: _Layout
) -> tuple[Image.Image, Image.Image | None, list[Note]]:
    """The colours of an image of more than 8 bits a channel, scaled to 8 bits, its opacity, and the changes made."""
    words = _words(image, file)
    count = 1 if words.shape[2] < 3 else 3
    colours, alpha = words[:, :, :count], None
    said = layout.said
    bits = _bits(colours, said)
    notes = []
    if bits < 16:
        notes = [Note(f"scaled from {bits} bits, as its {'tags say' if said else 'values suggest'}", doubtful=not said)]
    if words.shape[2] > count and layout.opacity:
        opacity = words[:, :, -1]
        alpha = Image.fromarray(_levels(_bits(opacity, None))[opacity])
    elif "transparency" in image.info:
        alpha = _opaque_but(colours, np.asarray(image.info["transparency"]))
    levels = _levels(bits)
    if layout.white_is_zero:
        # Pillow inverts images where 0 is white only if they have 8 bits.
        levels = 255 - levels
    picture = levels[colours]
    return Image.fromarray(picture[:, :, 0] if count == 1 else picture).convert("RGB"), alpha, notes


def _words(image: ImageFile.ImageFile, file: BinaryIO) -> Words:
    """The values of an image of more than 8 bits a channel: uint16 (height, width, channels).

    Pillow has no mode for 16-bit colours and keeps only the high byte of each value. A second decoding with the byte
    order swapped gives the low byte.
    """
    if image.mode.startswith("I;16"):
        image.load()
        return np.asarray(image).astype(np.uint16)[:, :, None]
    raw = _raw_mode(image.tile[0].args)
    if raw == "LA;16B":
        pairs = _decoded_as(file, "RGBA")
        return np.ascontiguousarray(pairs).view(">u2").astype(np.uint16)
    # The upper-case mode keeps Pillow from dividing premultiplied colours by their opacity.
    channels, _, order = raw.upper().partition(";16")
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    words = _decoded_as(file, f"{channels};16{order}").astype(np.uint16)
    words <<= 8
    words |= _decoded_as(file, f"{channels};16{'B' if order == 'L' else 'L'}")
    return words


def _decoded_as(file: BinaryIO, raw: str) -> NDArray[np.uint8]:
    """The image in `file`, decoded with another of Pillow's raw modes, `raw`."""
    file.seek(0)
    with Image.open(file, formats=("PNG", "TIFF")) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
        ]
        return np.asarray(image)


def _raw_mode(arguments: tuple[Any, ...] | str | None) -> str:
    """The raw mode in the arguments of a Pillow decoder: the first argument, or the only one."""
    return str(arguments[0]) if isinstance(arguments, tuple) else str(arguments)


def _significant_bits(file: BinaryIO) -> int | None:
    """The largest number of significant bits in the sBIT chunk of a PNG; None if the file has no such chunk."""
    place = 8
    while len(head := _peek(file, place, 8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"sBIT":
            return next((bits for bits in sorted(_peek(file, place + 8, min(length, 4)))[::-1] if 0 < bits <= 16), None)
        if name == b"IDAT":
            break
        place += length + 12
    return None


def _peek(file: BinaryIO, place: int, count: int) -> bytes:
    """Read `count` bytes at the offset `place` without moving the file's position."""
    before = file.tell()
    file.seek(place)
    data = file.read(count)
    file.seek(before)
    return data


def _bits(words: Words, said: int | None) -> int:
    """The number of bits that the values use.

    If the file states a depth, `said`, it is that depth, or 16 if the largest value does not fit. Otherwise it is the
    smallest of `DEPTHS` that fits. Values that are all multiples of 257 were scaled from 8 to 16 bits, so they use 16.
    """
    most = int(words.max())
    if said is None and most % 257 == 0 and not (words % 257).any():
        return 16
    return next(bits for bits in ((said, 16) if said else DEPTHS) if most < 2**bits)


def _levels(bits: int) -> NDArray[np.uint8]:
    """The 8-bit level of each value of `bits` bits: uint8 (2**bits,)."""
    levels: NDArray[np.uint8] = np.rint(np.arange(2**bits) / ((2**bits - 1) / 255)).astype(np.uint8)
    return levels


def _orientation(image: Image.Image) -> int:
    """The orientation in the file's EXIF or XMP; 0 if it is missing or damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, OSError, struct.error):
        return 0
    return found if isinstance(found, int) else 0
