"""The search space of a study: options of the configuration with their ranges or choices."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from busi_tune.config import Config, read_toml
from busi_tune.errors import ConfigError
from busi_tune.option import unknown
from busi_tune.training.model import ARCHITECTURES

Space = dict[str, BaseDistribution]

# Options of the images, the classes, the device and the epochs: values are comparable only if all trials share them.
FIXED = frozenset({"strategy", "fractions", "similarity", "conflicts", "split_seed", "epochs", "device", "mean", "std"})
FIXED |= {"classes", "positive", "seed"}
RANGE_KEYS = frozenset({"low", "high", "log", "step"})


def default_space(config: Config) -> Space:
    """Learning rate and weight decay on a log scale, and the scheduler's patience below the stopping patience.

    The ranges are widened to hold `config` itself, which is the study's first trial.

    Raises:
        ConfigError: `config` has no weight decay, or a scheduler's patience that is not below the stopping patience.
    """
    rate, decay, patience = config.learning_rate, config.weight_decay, config.scheduler_patience
    highest = config.early_stopping_patience - 1
    if decay <= 0:
        raise ConfigError(f"weight_decay must be above 0 for a search on a log scale, not {decay:g}; name a --space.")
    if patience > highest:
        raise ConfigError(
            f"scheduler_patience must be below early_stopping_patience ({highest + 1}) for a search, not {patience}."
        )
    return {
        "learning_rate": FloatDistribution(min(1e-5, rate), max(1e-2, rate), log=True),
        "weight_decay": FloatDistribution(min(1e-5, decay), max(1e-1, decay), log=True),
        "scheduler_patience": IntDistribution(min(2, patience), highest),
    }


def read_space(path: Path, config: Config) -> Space:
    """A space from a TOML file: a table for each field, with `low`, `high` (and `log`, `step`) or `choices`.

    It must hold `config` itself, which is the study's first trial.

    Raises:
        ConfigError: the file has problems; the message lists all of them.
    """
    tables = read_toml(path)
    problems: list[str] = [] if tables else ["it names no field"]
    space: Space = {}
    for name, table in tables.items():
        try:
            space[name] = _distribution(name, table)
        except ValueError as error:
            problems.append(str(error))
    if "scheduler_patience" in space or "early_stopping_patience" in space:
        problems += _patience_problems(space, config)
    problems += _outside(space, config)
    if problems:
        raise ConfigError(f"The search space in {path} cannot be used: {'; '.join(problems)}.")
    return space


def _outside(space: Space, config: Config) -> list[str]:
    outside = [
        f"{name} {getattr(config, name)!r}"
        for name, distribution in space.items()
        if not _holds(distribution, getattr(config, name))
    ]
    if not outside:
        return []
    return [f"it does not hold the baseline's {', '.join(outside)}, and the baseline is the first trial"]


def _holds(distribution: BaseDistribution, value: float | str | bool) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    inside = distribution.low <= value <= distribution.high
    steps = (Decimal(str(value)) - Decimal(str(distribution.low))) / Decimal(str(distribution.step or 1))
    return inside and (distribution.step is None or steps == int(steps))


def _distribution(name: str, table: object) -> BaseDistribution:
    if name not in Config.options:
        raise ValueError(unknown(name, [option for option in Config.options if option not in FIXED]))
    if name in FIXED:
        raise ValueError(f"{name} must be the same for all trials")
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} must be a table with low and high, or choices, not {table!r}")
    if set(table) == {"choices"}:
        return _choices(name, table["choices"])
    if not {"low", "high"} <= set(table) <= RANGE_KEYS:
        given = ", ".join(table) or "an empty table"
        raise ValueError(f"{name} must have low and high (and log, step), or choices, not {given}")
    return _range(name, **table)


def _choices(name: str, choices: object) -> BaseDistribution:
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"choices of {name} must be a list of values, not {choices!r}")
    for value in choices:
        _check_value(name, value)
    if len({repr(value) for value in choices}) < len(choices):
        raise ValueError(f"choices of {name} must differ from each other, not {choices!r}")
    return CategoricalDistribution(choices)


def _range(name: str, low: object, high: object, log: object = False, step: object = None) -> BaseDistribution:
    kind = Config.options[name].kind
    if kind not in (int, float):
        raise ValueError(f"{name} is not a number and needs choices, not low and high")
    first, last = (_number(name, end) for end in (low, high))
    problems = []
    if first > last:
        problems.append(f"low of {name} must not be above high, and {low} is above {high}")
    if log and first <= 0:
        problems.append(f"low of {name} must be above 0 on a log scale, not {low}")
    if type(log) is not bool:
        problems.append(f"log of {name} must be true or false, not {log!r}")
    if step is not None:
        problems += _step_problems(name, (first, last), log=bool(log), step=step)
    if problems:
        raise ValueError("; ".join(problems))
    assert isinstance(step, int | float | None)
    if kind is int:
        return IntDistribution(int(first), int(last), log=bool(log), step=int(step or 1))
    return FloatDistribution(float(first), float(last), log=bool(log), step=step)


def _step_problems(name: str, ends: tuple[float, float], *, log: bool, step: object) -> list[str]:
    kind = Config.options[name].kind
    if not isinstance(step, int | float) or type(step) not in (int, kind) or step <= 0 or log:
        return [f"step of {name} must be above 0, of the field's type, and without log, not {step!r}"]
    # Decimal, because 0.3 is not a multiple of 0.1 in binary.
    low, high = (Decimal(str(end)) for end in ends)
    if (high - low) % Decimal(str(step)):
        return [f"step of {name} must lead from {low} to {high}, and {step} does not"]
    return []


def _number(name: str, value: object) -> float:
    _check_value(name, value)
    assert isinstance(value, int | float)
    return value


def _check_value(name: str, value: object) -> None:
    Config.options[name].checked(value)
    if name == "arch" and value not in ARCHITECTURES:
        raise ValueError(unknown(str(value), list(ARCHITECTURES), "architecture"))


def _patience_problems(space: Space, config: Config) -> list[str]:
    longest = _values(space.get("scheduler_patience"), config.scheduler_patience)[1]
    shortest = _values(space.get("early_stopping_patience"), config.early_stopping_patience)[0]
    if longest < shortest:
        return []
    return [f"scheduler_patience goes up to {longest}, which must be below the stopping patience of {shortest}"]


def _values(distribution: BaseDistribution | None, fixed: int) -> tuple[int, int]:
    if isinstance(distribution, IntDistribution):
        return distribution.low, distribution.high
    if isinstance(distribution, CategoricalDistribution):
        numbers = [value for value in distribution.choices if isinstance(value, int)]
        return min(numbers), max(numbers)
    return fixed, fixed
