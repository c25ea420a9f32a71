"""The metadata inside a model: its classes, image size, operating point and input guard, checked before use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from busi_tune.names import positive_word

MOST_CLASSES = 1000
MOST_SIDE = 4096
T = TypeVar("T")
D = TypeVar("D")


class GuardScore(msgspec.Struct, frozen=True):
    """One score of the input guard. An image with a score above `limit` gets the `warning`."""

    name: str
    limit: float
    warning: str

    def __post_init__(self) -> None:
        """Refuse texts that are not printable."""
        if not (self.name.isprintable() and self.warning.isprintable()):
            raise ValueError("a name or a warning is not printable")


class PositiveThreshold(msgspec.Struct, frozen=True, rename={"label": "class"}):
    """The operating point: an image is flagged if the probability of the class `label` is at least `threshold`."""

    label: str
    threshold: float


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model. `classes` are in the order of the probabilities; `image_size` is in pixels.

    `threshold` applies to the probability of the class `positive`. If the model has no such entries, `preprocessing`
    and `threshold` are None, and `positive` and `guards` are empty.
    """

    classes: tuple[str, ...]
    image_size: int
    preprocessing: int | None
    threshold: float | None
    guards: tuple[GuardScore, ...]
    positive: str = ""

    @property
    def flag(self) -> str:
        """The word for the flag in results, "malignant" or "positive"; "" if the model has no operating point."""
        return positive_word(self.positive) if self.positive else ""


def read_metadata(texts: Mapping[str, str], fixed_size: int | None) -> ModelMetadata:
    """Read the metadata in `texts`, as ONNX Runtime returns them. `fixed_size` is the size of a fixed input, or None.

    Raises:
        ValueError: an entry is missing or invalid; the message is only the reason.
    """
    if "classes" not in texts:
        raise ValueError("its metadata name no classes")
    classes = _decoded(texts, "classes", tuple[str, ...], ())
    if not _are_names(classes):
        raise ValueError("its classes are not a list of different names")
    size = int(texts["image_size"]) if "image_size" in texts else fixed_size
    if size is None or not 1 <= size <= MOST_SIDE or fixed_size not in {None, size}:
        raise ValueError("its metadata name no image size that goes with its input")
    version = texts.get("preprocessing_version")
    point = _decoded(texts, "operating_point", PositiveThreshold, None)
    if point and point.label not in classes:
        raise ValueError("its operating_point is of a class that it does not have")
    return ModelMetadata(
        classes=classes,
        image_size=size,
        preprocessing=None if version is None else int(version),
        threshold=point.threshold if point else None,
        guards=_decoded(texts, "guard", tuple[GuardScore, ...], ()),
        positive=point.label if point else "",
    )


def certificate_inside(texts: Mapping[str, str]) -> dict[str, object]:
    """The certificate in a model's metadata; empty if it is missing or cannot be read."""
    try:
        return _decoded(texts, "certificate", dict[str, object], {})
    except ValueError:
        return {}


def _are_names(names: tuple[str, ...]) -> bool:
    """Whether these are different, printable names. A terminal would interpret unprintable characters."""
    return (
        0 < len(names) <= MOST_CLASSES
        and all(name and name.isprintable() for name in names)
        and len(set(names)) == len(names)
    )


def _decoded(texts: Mapping[str, str], name: str, kind: type[T], default: D) -> T | D:
    """The value of an entry that holds JSON, or `default` if the entry is missing."""
    if name not in texts:
        return default
    try:
        return msgspec.json.decode(texts[name], type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"its {name} is damaged: {error}") from None
