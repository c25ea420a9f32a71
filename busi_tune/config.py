"""One configuration: every value of the documented baseline is the default of one field here."""

import dataclasses
import difflib
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

    strategy: str = option(
        "grouped", "how images are split (file: as --split says)", choices=("grouped", "random", "file")
    )
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
        typed, problems = _checked(vars(self))
        if problems:
            raise ConfigError(f"The configuration breaks a rule: {'; '.join(problems)}.")
        for name, value in typed.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and TOML hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def replace(self, **changes: Any) -> "Config":
        """The same configuration with some fields changed."""
        return from_dict({**self.to_dict(), **changes}, source="the configuration")


TYPES: dict[str, Any] = get_type_hints(Config)
FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Config)}


def _checked(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of known fields in their types, and a line for each that has another type or breaks its rule."""
    typed: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        try:
            typed[name] = _in_range(name, _typed(name, value))
        except ValueError as error:
            problems.append(str(error))
    fractions = typed.get("fractions", (1.0,))
    if abs(sum(fractions) - 1) > 1e-6:
        problems.append(f"fractions must sum to 1, not {sum(fractions):.6g}")
    device = typed.get("device", "auto")
    if not DEVICE.fullmatch(device):
        problems.append(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
    return typed, problems


def _typed(name: str, value: Any) -> Any:
    wanted = TYPES[name]
    if wanted == Triple:
        if isinstance(value, list | tuple) and len(value) == 3 and all(type(v) in (int, float) for v in value):
            return tuple(value)
        raise ValueError(f"{name} must be three numbers, not {value!r}")
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise ValueError(f"{name} must be of type {wanted.__name__}, not {value!r}")
    return value


def _in_range(name: str, value: Any) -> Any:
    rule = FIELDS[name].metadata
    if rule["choices"] and value not in rule["choices"]:
        raise ValueError(f"{name} must be one of {', '.join(rule['choices'])}, not {value!r}")
    if rule["low"] is None:
        return value
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(rule["low"] <= number <= rule["high"] for number in numbers):
        raise ValueError(f"{name} must be between {rule['low']:g} and {rule['high']:g}, not {value!r}")
    if isinstance(value, tuple):
        return tuple(float(number) for number in value)
    return TYPES[name](value)


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """A Config from plain values; `source` names their origin in errors.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values of a wrong type, broken rules: all of them.
    """
    problems = [unknown(name, list(FIELDS)) for name in values if name not in FIELDS]
    typed, wrong = _checked({name: value for name, value in values.items() if name in FIELDS})
    if problems + wrong:
        raise ConfigError(f"{source}: {'; '.join(problems + wrong)}.")
    return Config(**typed)


def unknown(name: str, known: list[str], kind: str = "key") -> str:
    """Say that `name` is not a known key, or another `kind` of name, and which one is nearest."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "")


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
    except ValueError as error:  # TOML's and Unicode's errors, and integers of too many digits
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, each as `name: old -> new`."""
    names = list(dict.fromkeys([*old, *new]))
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]
