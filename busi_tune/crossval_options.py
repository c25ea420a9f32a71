"""The options of a cross-validation. They do not include the configuration that it evaluates."""

from dataclasses import dataclass

from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.option import option, stated
from busi_tune.worker_options import WorkerOptions


@stated
@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(WorkerOptions):
    """The options of a cross-validation: the number of folds, the number of repeats, and the workers.

    Raises:
        ConfigError: one or more values have a wrong type or break a rule; the message names all of them.
    """

    folds: int = option(5, "Number of folds; each fold is the test set once", group="data", low=2)
    repeats: int = option(
        1, "Number of times that the folds are drawn, with --split-seed and the seeds after it", group="data", low=1
    )

    def check(self, config: Config) -> None:
        """Check the options against the configuration.

        Raises:
            ConfigError: the options contradict the configuration.
        """
        if config.strategy != "grouped":
            raise ConfigError(
                f"strategy must be grouped for a cross-validation (folds hold whole groups), not {config.strategy}."
            )
        if wrong := self.device_problem(config):
            raise ConfigError(f"{wrong}.")
