"""What a model says of itself in its metadata, checked before anything relies on it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_CLASSES = 1000
MOST_SIDE = 4096
PREPROCESSING = "preprocessing_version"


@dataclass(frozen=True)
class GuardScore:
    """One score of the input guard: above the limit the image gets the warning."""

    name: str
    limit: float
    warning: str


@dataclass(frozen=True)
class ModelFacts:
    """The classes in the order of the probabilities, and what else the model carries for its use."""

    classes: tuple[str, ...]
    image_size: int
    preprocessing: int | None
    threshold: float | None
    guards: tuple[GuardScore, ...]


def facts_of(metadata: Mapping[str, str], fixed_size: int | None) -> ModelFacts:
    """The facts in a model's metadata; its image size from the shape of its input where that is fixed.

    Raises:
        ValueError: something is missing or makes no sense; the message is the bare reason.
    """
    if "classes" not in metadata:
        raise ValueError("its metadata name no classes")
    classes = json.loads(metadata["classes"])
    if not _are_names(classes):
        raise ValueError("its classes are no list of different names")
    size = int(metadata["image_size"]) if "image_size" in metadata else fixed_size
    if size is None or not 1 <= size <= MOST_SIDE or fixed_size not in {None, size}:
        raise ValueError("its metadata name no image size that goes with its input")
    version = metadata.get(PREPROCESSING)
    return ModelFacts(
        classes=tuple(classes),
        image_size=size,
        preprocessing=None if version is None else int(version),
        threshold=_threshold(json.loads(metadata.get("operating_point", "null")), classes),
        guards=tuple(_guard(entry) for entry in json.loads(metadata.get("guard", "[]"))),
    )


def _are_names(value: Any) -> bool:
    """Names that can be shown: a terminal obeys what is not printable."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(isinstance(name, str) and name and name.isprintable() for name in value)
        and len(set(value)) == len(value)
    )


def _threshold(point: Any, classes: list[str]) -> float | None:
    if point is None:
        return None
    if not isinstance(point, dict) or point.get("class") != "malignant" or "malignant" not in classes:
        raise ValueError("its operating point is not one of the class malignant")
    return _number(point.get("threshold"), "the threshold of its operating point")


def _guard(entry: Any) -> GuardScore:
    texts = [entry.get(key) for key in ("name", "warning")] if isinstance(entry, dict) else [None]
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise ValueError("its guard has a score without a name or a warning")
    return GuardScore(entry["name"], _number(entry.get("limit"), "a limit of its guard"), entry["warning"])


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is no number")
    return float(value)
