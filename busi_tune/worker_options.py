"""The options of workers. Studies and cross-validations share them."""

from dataclasses import dataclass

from busi_tune.config import Config
from busi_tune.option import Options, option


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(Options):
    """The options of workers that train several runs at the same time."""

    workers: int = option(1, "Number of processes that train at the same time", group="machines", low=1)
    ray: str | None = option(
        None,
        "Address of a Ray cluster to train on, or auto for the cluster of this machine; needs the extra ray",
        group="machines",
        metavar="ADDRESS",
    )

    def device_problem(self, config: Config) -> str:
        """The problem with the device of `config` for these workers, or ""."""
        if config.device.startswith("cuda:") and (self.workers > 1 or self.ray):
            return f"device must be cuda where workers are spread over the GPUs, not {config.device}"
        return ""
