"""The pictures of a report: images of the data folder as small JPEGs, and the most similar training image."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from busi_tune import images
from busi_tune.data.listing import Listing
from busi_tune.data.pixel_cache import decoded, find_decoded
from busi_tune.data.twins import THUMBNAIL, Floats, signatures
from busi_tune.errors import BusiTuneError, ImageError
from busi_tune.images import Pixels
from busi_tune.names import composed
from busi_tune.overlays import Map, overlay
from busi_tune.progress import Progress
from busi_tune.results import NearestImage

# The longest side of a picture, in pixels.
SIDE = 192


@dataclass
class Album:
    """Small pictures of images in `root`, as base64 JPEGs by their paths; empty if the images are not available.

    `missing` is the reason why they are not available. `changed` lists images that are gone or have changed. `overlays`
    has the same pictures under their class activation maps.
    """

    root: Path | None
    progress: Progress
    pictures: dict[str, str] = field(default_factory=dict)
    overlays: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    changed: list[str] = field(default_factory=list)
    listing: Listing | None = None
    places: dict[str, int] = field(default_factory=dict)
    vectors: Floats | None = None

    def __post_init__(self) -> None:
        if self.root is None or not self.root.is_dir():
            place = "" if self.root is None else f" in {self.root}"
            self.missing = f"The images are not{place or ' named by this folder'}; name their folder with --data."
            return
        try:
            self.listing = find_decoded(self.root, [THUMBNAIL], self.progress)
            self.vectors = signatures(decoded(self.listing, THUMBNAIL, self.progress))
        except BusiTuneError as error:
            self.listing, self.missing = None, str(error)
            return
        self.places = {composed(image.path): row for row, image in enumerate(self.listing.images)}

    def add(self, path: str, sha256: str) -> None:
        """Add the picture of an image, if its file is unchanged."""
        if self.listing is None or self.root is None or composed(path) in self.pictures:
            return
        place = self.places.get(composed(path))
        if place is None or self.listing.images[place].sha256 != sha256:
            self.changed.append(path)
            return
        try:
            _, image = images.inspect(self.root / self.listing.images[place].path)
        except ImageError:
            self.changed.append(path)
            return
        self.pictures[composed(path)] = base64.b64encode(images.preview(image, SIDE)).decode()

    def seen(self, path: str, size: int) -> Pixels:
        """An image that has been added, as a network with inputs of `size` pixels sees it."""
        return images.read(self._file(path), size)

    def explain(self, path: str, cam: Map) -> None:
        """Add the overlay of an image that has been added; `cam` is the map (h, w) of its prediction."""
        picture = images.decode(self._file(path))
        picture.thumbnail((SIDE, SIDE))
        self.overlays[composed(path)] = base64.b64encode(images.preview(overlay(picture, cam), SIDE)).decode()

    def _file(self, path: str) -> Path:
        assert self.listing is not None
        return self.listing.root / self.listing.images[self.places[composed(path)]].path

    def nearest(self, path: str, training: pd.DataFrame) -> NearestImage | None:
        """The image of `training` with the most similar thumbnail, also mirrored; its picture is added."""
        own = self.places.get(composed(path))
        rows = [self.places.get(composed(other)) for other in training["path"]]
        if self.vectors is None or own is None or None in rows:
            return None
        others = self.vectors[[row for row in rows if row is not None]]
        sides = (others, others[:, :, ::-1])
        alike = np.maximum(*(np.tensordot(side, self.vectors[own], axes=2) for side in sides))
        best = int(alike.argmax())
        found = training.iloc[best]
        self.add(found["path"], found["sha256"])
        return {"path": found["path"], "class": found["class"], "similarity": min(1.0, float(alike[best]))}
