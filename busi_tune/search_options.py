"""The options of a study. They do not include the configuration that it starts from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.option import option, stated
from busi_tune.worker_options import WorkerOptions

Metric = Literal["val_loss", "val_accuracy", "val_macro_f1"]
Pruner = Literal["stalled", "median", "hyperband", "none"]
TRIAL_EPOCHS = 20
SPAN = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds(span: str) -> float:
    """Convert a span of time such as 1h30m to seconds.

    Raises:
        ValueError: the text has another form.
    """
    parts = SPAN.fullmatch(span)
    if not parts:
        raise ValueError(f"timeout must be a span of time like 2h, 30m or 90s, not {span!r}")
    hours, minutes, rest = (int(part or 0) for part in parts.groups())
    return float(hours * 3600 + minutes * 60 + rest)


@stated
@dataclass(frozen=True, kw_only=True)
class SearchOptions(WorkerOptions):
    """The options of a study: its search, its budget, its workers, and the steps after its trials.

    Raises:
        ConfigError: one or more values have a wrong type or break a rule; the message names all of them.
    """

    trials: int = option(20, "Number of trials of the study, finished ones included", group="budget", low=1)
    timeout: float | None = option(
        None,
        "Time after which no further trial starts, as in 2h or 1h30m; a plain number is in seconds",
        group="budget",
        above=0,
        read=seconds,
        metavar="SPAN",
    )
    epochs_total: int | None = option(
        None, "Number of epochs of all trials together after which no further trial starts", group="budget", low=1
    )
    trial_epochs: int | None = option(
        None,
        "Maximum number of epochs of each trial",
        group="budget",
        low=1,
        unset="20, or --epochs where that is less",
    )
    metric: Metric = option(
        "val_loss", "Validation metric that ranks trials; each trial counts by its best epoch", group="search"
    )
    space: Path | None = option(
        None,
        "TOML file that names the options to vary, with their ranges or choices",
        group="search",
        unset="learning rate, weight decay, scheduler patience",
    )
    pruner: Pruner = option(
        "stalled",
        "Rule that stops trials early; stalled stops a trial whose lowered learning rate did not help and that is "
        "worse than the best completed trial",
        group="search",
    )
    keep_trials: int = option(1, "Number of best trials whose checkpoints are kept", group="search", low=1)
    confirm: int = option(
        0, "Number of best trials to train fully with several seeds; the best mean wins", group="search", low=0
    )
    confirm_seeds: int = option(
        3, "Number of seeds that each trial of --confirm is trained with", group="search", low=1
    )
    audit_pruned: int = option(
        0,
        "Number of pruned trials to continue up to --trial-epochs, to measure what pruning cost",
        group="search",
        low=0,
    )
    storage: str | None = option(
        None,
        "URL of a PostgreSQL database that several machines share, as in postgresql+psycopg://USER@HOST/DB; "
        "needs the extra postgres; the environment variable BUSI_TUNE_STORAGE sets it, too",
        group="machines",
        metavar="URL",
        unset="a file in the study's folder",
        environment="BUSI_TUNE_STORAGE",
    )

    def epochs_of_a_trial(self, config: Config) -> int:
        """The maximum number of epochs of a trial in a study that starts from `config`."""
        return min(TRIAL_EPOCHS, config.epochs) if self.trial_epochs is None else self.trial_epochs

    def check(self, config: Config) -> None:
        """Check the options against the configuration that the study starts from.

        Raises:
            ConfigError: the options contradict the configuration or each other; the message names all problems.
        """
        problems = []
        if self.epochs_of_a_trial(config) > config.epochs:
            problems.append(
                f"trial_epochs must be between 1 and epochs ({config.epochs}), not {self.trial_epochs}: "
                "give a lower --trial-epochs"
            )
        if wrong := self.device_problem(config):
            problems.append(wrong)
        if self.storage and self.ray:
            problems.append("storage and ray exclude each other: on Ray only one driver can run the study")
        if problems:
            raise ConfigError(f"The search cannot start: {'; '.join(problems)}.")
