"""Options as dataclass fields. Each field states its default, help, bounds and choices; one function checks all."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from busi_tune.errors import ConfigError

if TYPE_CHECKING:
    from busi_tune.results import Json

Group = Literal["data", "model", "training", "search", "budget", "machines", "output"]
Triple = tuple[float, float, float]
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    tuple: "three numbers",
}
T = TypeVar("T")


def option(
    default: T,
    text: str,
    *,
    group: Group,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    test: Callable[[T], str] | None = None,
    read: Callable[[str], T] | None = None,
    metavar: str = "",
    unset: str = "",
    environment: str = "",
) -> T:
    """A field of an `Options` class. A `Literal` type gives its choices.

    `text` states the purpose of the value and its unit, without a full stop.
    `low` and `high` are inclusive bounds, `above` and `below` exclusive ones. `test` returns the problem of a value, as
    in "must be even, not 3", or "". `read` parses a text, or raises a ValueError with the broken rule. `unset` states
    the meaning of None. `environment` names an environment variable that sets the option on the command line.
    """
    rule: dict[str, object] = {"text": text, "group": group, "low": low, "high": high, "above": above}
    rule |= {"below": below, "test": test, "read": read, "metavar": metavar, "unset": unset}
    rule["environment"] = environment
    return field(default=default, metadata=rule)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: the arguments of `option`, and the values that follow from the field's name and type.

    `kind` is bool, int, float, str, Path, or tuple for three numbers.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    optional: bool
    default: object
    text: str
    group: Group
    low: float | None
    high: float | None
    above: float | None
    below: float | None
    test: Callable[[object], str] | None
    read: Callable[[str], object] | None
    metavar: str
    unset: str
    environment: str

    @property
    def flag(self) -> str:
        """The option's spelling on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """One sentence on the option."""
        return f"{self.text}."

    @property
    def values(self) -> str:
        """The values that the option takes, in words, as in "between 1 and 80"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is not None and self.high is not None:
            return f"between {_number(self.low)} and {_number(self.high)}"
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None)

    @property
    def shown_default(self) -> str:
        """The default as help shows it."""
        return self.unset or "none" if self.default is None else shown(self.default)

    def parse(self, given: object) -> object:
        """Convert a text of the command line to a number or three numbers; return `given` if that is not possible."""
        try:
            if self.kind is tuple and isinstance(given, str):
                return tuple(float(part) for part in given.split(","))
            return self.kind(given) if self.kind in (int, float) and isinstance(given, str) else given
        except ValueError:
            return given

    def checked(self, value: object) -> object:
        """The value in the option's type.

        Raises:
            ValueError: the value has another type or breaks a rule; the message names the rule and quotes the value.
        """
        if value is None and self.optional:
            return None
        typed = self._typed(value)
        numbers = typed if isinstance(typed, tuple) else (typed,)
        if not all(self._holds(number) for number in numbers):
            raise ValueError(f"{self.name} must be {self.values}, not {value!r}")
        problem = self.test(typed) if self.test else ""
        if problem:
            raise ValueError(f"{self.name} {problem}")
        return typed

    def _typed(self, value: object) -> object:
        if self.read is not None and isinstance(value, str):
            return self.read(value)
        if self.kind is tuple and _is_three_numbers(value):
            return tuple(float(number) for number in value)
        if self.kind is Path and isinstance(value, str | Path):
            return Path(value)
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind or self.kind is tuple:
            raise ValueError(f"{self.name} must be {KINDS[self.kind]}, not {value!r}")
        return value

    def _holds(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float):
            return True
        # A comparison with NaN is always false, so negated comparisons would accept NaN.
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of all options. Values are checked when an object is created.

    Raises:
        ConfigError: one or more values have a wrong type or break a rule; the message names all of them.
    """

    options: ClassVar[dict[str, Option]] = {}

    def __post_init__(self) -> None:
        typed, problems = check(self.options, vars(self))
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        for name, value in typed.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, object], source: str = "") -> Self:
        """An object from plain values. `source` names their origin in error messages.

        Raises:
            ConfigError: keys are unknown, or values have a wrong type or break a rule; the message names all of them.
        """
        typed, problems = check(cls.options, values)
        if problems:
            raise ConfigError(f"{source}: {'; '.join(problems)}." if source else f"{'; '.join(problems)}.")
        return cls(**typed)

    def to_dict(self) -> "dict[str, Json]":
        """Plain values, as JSON and TOML hold them."""
        return {name: _plain(value) for name, value in vars(self).items()}

    def changed(self) -> "dict[str, Json]":
        """The plain values that are not the default."""
        return {name: value for name, value in self.to_dict().items() if value != _plain(self.options[name].default)}

    def replace(self, **changes: object) -> Self:
        """The same options with some values changed."""
        return self.from_dict({**vars(self), **changes})


class Checks(Protocol):
    """An option that checks its values."""

    def checked(self, value: object) -> object:
        """Return the value in the option's type, or raise a ValueError that names the broken rule."""


def check(known: Mapping[str, Checks], values: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """The valid values in their types, and a line for each unknown key and each invalid value."""
    typed: dict[str, object] = {}
    problems = [
        unknown(name, list(known)) + (" (write keys outside of tables)" if isinstance(value, dict) else "")
        for name, value in values.items()
        if name not in known
    ]
    for name, value in values.items():
        if name in known:
            try:
                typed[name] = known[name].checked(value)
            except ValueError as error:
                problems.append(str(error))
    return typed, problems


def unknown(name: str, known: list[str], kind: str = "key") -> str:
    """A text that `name` is not a known key, or another `kind` of name, with the most similar known name."""
    found = meant(name, known)
    return f"unknown {kind} {name!r}" + (f", did you mean {found!r}?" if found else "")


# Names that other programs give to these options.
SYNONYMS = {
    "amp": "precision",
    "architecture": "arch",
    "backbone": "arch",
    "batch": "batch_size",
    "bs": "batch_size",
    "cuda": "device",
    "dataset": "data",
    "decay": "weight_decay",
    "flip": "horizontal_flip",
    "gpu": "device",
    "img_size": "image_size",
    "input": "data",
    "jobs": "workers",
    "k": "folds",
    "lr": "learning_rate",
    "max_epochs": "epochs",
    "model": "arch",
    "n_trials": "trials",
    "output": "out",
    "patience": "early_stopping_patience",
    "pretrained": "weights",
    "resolution": "image_size",
    "root": "data",
    "size": "image_size",
    "wd": "weight_decay",
}


def meant(name: str, known: Sequence[str], synonyms: Mapping[str, str] = SYNONYMS) -> str:
    """The known name that `name` most likely means: a synonym, or the most similar spelling; "" if there is none."""
    plain = name.lower().strip("-").replace("-", "_")
    if synonyms.get(plain) in known:
        return synonyms[plain]
    return next(iter(difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(plain, known, n=1)), "")


def stated(kind: type[T]) -> type[T]:
    """Fill the table `options` of a class, by name and in field order, and list the options in its docstring."""
    assert issubclass(kind, Options)
    hints = get_type_hints(kind)
    kind.options = {one.name: _option(one, hints[one.name]) for one in fields(kind)}
    lines = [
        f"    {one.name}: {one.help} {f'It must be {one.values}. ' if one.values else ''}Default: {one.shown_default}."
        for one in kind.options.values()
    ]
    kind.__doc__ = "\n".join([inspect.cleandoc(kind.__doc__ or ""), "", "Options:", *lines])
    return kind


def _option(one: Field[object], hint: type) -> Option:
    """The option of a dataclass field whose type is `hint`."""
    optional = get_origin(hint) in (Union, UnionType)
    inner: type = next(part for part in get_args(hint) if part is not NoneType) if optional else hint
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    kind = str if choices else get_origin(inner) or inner
    return Option(name=one.name, kind=kind, choices=choices, optional=optional, default=one.default, **one.metadata)


def shown(value: object) -> str:
    """A value as the command line shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(_number, value)) if isinstance(value, tuple) else str(value)


def words(kind: type[Options], values: Mapping[str, object]) -> list[str]:
    """The words of a command line that set `values` of a class of options. Defaults and other keys are left out."""
    found: list[str] = []
    for name, one in kind.options.items():
        given = values.get(name, one.default)
        value = one.checked(tuple(given) if isinstance(given, list) else given)
        if value is None or value == one.default:
            continue
        found += [one.flag if value else f"--no-{one.flag[2:]}"] if one.kind is bool else [one.flag, shown(value)]
    return found


def _is_three_numbers(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(number) in (int, float) for number in value)


def _number(value: float) -> str:
    """A number with all its digits."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _plain(value: object) -> "Json":
    if isinstance(value, tuple):
        return [float(number) for number in value]
    assert value is None or isinstance(value, bool | int | float | str | Path)
    return str(value) if isinstance(value, Path) else value
