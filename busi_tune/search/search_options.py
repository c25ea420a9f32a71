"""What a study is asked for, beside the configuration that it starts from."""

from dataclasses import dataclass
from pathlib import Path

from busi_tune.config import Config
from busi_tune.errors import ConfigError

PRUNERS = ("median", "hyperband", "none")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """A study's budget, its trainers, and what follows its trials.

    `timeout` is in seconds; `storage` the URL of a database that several drivers share; `ray` the address of a
    cluster; `confirm` how many finalists are trained with `seeds` seeds; `audit` how many pruned trials are trained on.
    """

    trials: int = 20
    trial_epochs: int = 20
    metric: str = "val_loss"
    space: Path | None = None
    keep_trials: int = 5
    pruner: str = "median"
    timeout: float | None = None
    epochs_total: int | None = None
    workers: int = 1
    storage: str | None = None
    ray: str | None = None
    confirm: int = 0
    seeds: int = 3
    audit: int = 0

    def check(self, config: Config) -> None:
        """Raise ConfigError where the numbers make no sense: all of them."""
        problems = []
        if not 1 <= self.trial_epochs <= config.epochs:
            problems.append(
                f"trial_epochs must be between 1 and epochs ({config.epochs}), not {self.trial_epochs}: "
                "give a lower --trial-epochs"
            )
        least = {"trials": 1, "keep_trials": 1, "workers": 1, "epochs_total": 1, "confirm": 0, "seeds": 1, "audit": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.append(f"{name} must be at least {low}, not {value}")
        if self.timeout is not None and not self.timeout > 0:
            problems.append(f"timeout must be above 0 seconds, not {self.timeout:g}")
        if self.pruner not in PRUNERS:
            problems.append(f"pruner must be one of {', '.join(PRUNERS)}, not {self.pruner!r}")
        if config.device.startswith("cuda:") and (self.workers > 1 or self.ray):
            problems.append(f"device must be cuda where workers are spread over the GPUs, not {config.device}")
        if self.storage and self.ray:
            problems.append("storage and ray exclude each other: on Ray one driver owns the study")
        if problems:
            raise ConfigError(f"The search breaks a rule: {'; '.join(problems)}.")
