"""One configuration: every value of the documented baseline is the default of one field here."""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from busi_tune.errors import ConfigError
from busi_tune.files import explained

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
Triple = tuple[float, float, float]


def option(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with its help text and the values it may take (both bounds inclusive)."""
    rule = {"help": text, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=rule)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run is: the same configuration on the same split gives the same result.

    Raises:
        ConfigError: one or more fields break their rule; all of them are named.
    """

    strategy: str = option("grouped", "how images are split", choices=("grouped", "random"))
    fractions: Triple = option((0.7, 0.15, 0.15), "shares of training, validation and test images", 0.01, 0.98)
    similarity: float = option(0.93, "images at least this alike form a group (cosine)", 0.5, 1.0)
    conflicts: str = option("exclude", "groups that carry two labels", choices=("exclude", "keep"))
    split_seed: int = option(0, "seed of the split", 0, 2**31 - 1)
    arch: str = option("resnet50", "a torchvision classification model")
    weights: str = option("imagenet", "imagenet, none, or a file of weights")
    image_size: int = option(224, "height and width of the model's input, in pixels", 16, 1024)
    mean: Triple = option(IMAGENET_MEAN, "mean of each colour channel, in 0..1", 0.0, 1.0)
    std: Triple = option(IMAGENET_STD, "standard deviation of each colour channel", 1e-3, 1.0)
    horizontal_flip: float = option(0.5, "probability of a horizontal flip in training", 0.0, 1.0)
    class_weights: bool = option(True, "balanced class weights in the loss")
    weighted_sampler: bool = option(True, "draw classes equally often in training")
    batch_size: int = option(32, "images a training step", 2, 4096)
    epochs: int = option(80, "most epochs to train", 1, 10_000)
    learning_rate: float = option(1e-3, "AdamW's learning rate", 1e-8, 10.0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", 0.0, 10.0)
    scheduler_factor: float = option(0.5, "factor of the learning rate on a plateau", 0.01, 0.99)
    scheduler_patience: int = option(5, "epochs without a lower validation loss before that", 0, 10_000)
    min_learning_rate: float = option(1e-5, "the scheduler goes no lower", 0.0, 1.0)
    early_stopping_patience: int = option(10, "epochs without a lower validation loss before the end", 1, 10_000)
    seed: int = option(0, "seed of the initial weights, the sampler and the flips", 0, 2**31 - 1)
    precision: str = option("auto", "arithmetic of training", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        problems = [text for field in dataclasses.fields(self) for text in _problems(field, getattr(self, field.name))]
        if not problems and abs(sum(self.fractions) - 1) > 1e-6:
            problems.append(f"fractions must sum to 1, not {sum(self.fractions):.6g}")
        if not problems and not DEVICE.fullmatch(self.device):
            problems.append(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if problems:
            raise ConfigError(f"The configuration breaks a rule: {'; '.join(problems)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and TOML hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def replace(self, **changes: Any) -> "Config":
        """The same configuration with some fields changed."""
        return from_dict({**self.to_dict(), **changes}, source="the configuration")


TYPES: dict[str, Any] = get_type_hints(Config)
FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Config)}


def _problems(field: "dataclasses.Field[Any]", value: Any) -> list[str]:
    rule = field.metadata
    name = field.name
    if rule["choices"] and value not in rule["choices"]:
        return [f"{name} must be one of {', '.join(rule['choices'])}, not {value!r}"]
    if rule["low"] is None:
        return []
    numbers = value if isinstance(value, tuple) else (value,)
    if all(math.isfinite(number) and rule["low"] <= number <= rule["high"] for number in numbers):
        return []
    return [f"{name} must be between {rule['low']:g} and {rule['high']:g}, not {value!r}"]


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """A Config from plain values; `source` names their origin in errors.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type, or a broken rule.
    """
    problems = []
    typed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in FIELDS:
            problems.append(unknown(name, list(FIELDS)))
            continue
        try:
            typed[name] = _typed(name, value)
        except TypeError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}.")
    return Config(**typed)


def unknown(name: str, known: list[str]) -> str:
    """Say that `name` is not a known key, and which one is nearest."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"unknown key {name!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "")


def _typed(name: str, value: Any) -> Any:
    wanted = TYPES[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted == Triple:
        if isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value):
            return tuple(float(v) for v in value)
        raise TypeError(f"{name} must be three numbers, not {value!r}")
    if type(value) is not wanted:
        raise TypeError(f"{name} must be of type {wanted.__name__}, not {value!r}")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        FileError: it cannot be read.
        ConfigError: it is not TOML.
    """
    with explained(path, "read"):
        data = path.read_bytes()
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, each as `name: old -> new`."""
    names = list(dict.fromkeys([*old, *new]))
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]
