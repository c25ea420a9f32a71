"""Overlays: a picture under the colours of its class activation map."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from busi_tune.errors import printable
from busi_tune.images import Pixels

# The colours from the lowest to the highest value (matplotlib's inferno without its darkest part), and the opacity at
# the highest value. Low values are nearly transparent, because dark parts of a picture must not look like low values.
COLOURS = np.array([(87, 16, 110), (188, 55, 84), (229, 92, 48), (249, 142, 9), (252, 220, 90)], dtype=np.float64)
STRONGEST = 0.6
# The longest side of an overlay that is drawn alone, in pixels, and the height of the text below.
SIDE, TEXT = 384, 20
# The limits of a map, shown with every map.
LIMITS = (
    "A map is coarse. Its colours do not show how sure the model is. It does not outline a lesion, and it does not "
    "prove a reason."
)
Map = NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """The class activation map (h, w) of the predicted class, and the picture as the model sees it.

    `seen` is (size, size, 3), uint8 RGB. `width` and `height` are those of the picture before it was resized.
    """

    seen: Pixels
    width: int
    height: int
    cam: Map

    def picture(self) -> Image.Image:
        """The seen picture in the proportions of the original picture; its longest side has `SIDE` pixels."""
        scale = SIDE / max(self.width, self.height)
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        return Image.fromarray(self.seen).resize(size, Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, cam: Map) -> Image.Image:
    """An RGB picture under the colours of its map (h, w), which covers the whole picture.

    The map's smallest value has the lowest colour, and its largest value the highest. If all values are equal, they
    have the lowest colour.
    """
    lowest, highest = float(cam.min()), float(cam.max())
    levels = (cam - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(cam)
    # Each cell of the map is a rectangle of the picture, and resampling keeps its centre in place.
    smooth = Image.fromarray(levels.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)[..., None]
    place = level[..., 0] * (len(COLOURS) - 1)
    colours = np.stack([np.interp(place, np.arange(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    share = STRONGEST * level
    return Image.fromarray(np.rint((1 - share) * np.asarray(picture) + share * colours).astype(np.uint8))


def overlay_png(explanation: Explanation) -> bytes:
    """The overlay as a PNG, without the picture beside it."""
    return _png(overlay(explanation.picture(), explanation.cam))


def explained_png(explanation: Explanation, title: str, **texts: str) -> bytes:
    """A PNG: the seen picture, its overlay on the right, and `title` below. `texts` go into the metadata."""
    picture = explanation.picture()
    whole = Image.new("RGB", (2 * picture.width + 4, picture.height + TEXT + 8), "black")
    whole.paste(picture, (0, 0))
    whole.paste(overlay(picture, explanation.cam), (picture.width + 4, 0))
    font = ImageFont.load_default(TEXT - 4)
    ImageDraw.Draw(whole).text((6, picture.height + 4), printable(title), "white", font)
    return _png(whole, **texts)


def _png(image: Image.Image, **texts: str) -> bytes:
    facts = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        facts.add_itxt(name, printable(text))
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=facts)
    return data.getvalue()
