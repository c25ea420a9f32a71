"""The start of a command's workers: in this process, in processes of this machine, or in actors of a Ray cluster."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from busi_tune.config import Config
from busi_tune.data.dataset import Dataset
from busi_tune.errors import ConfigError
from busi_tune.progress import Progress
from busi_tune.training.hardware import resolve
from busi_tune.workers import sockets
from busi_tune.workers.jobs import Here, Workers
from busi_tune.workers.processes import Processes


def cluster(address: str | None) -> AbstractContextManager[None]:
    """Join the Ray cluster at `address` during the block. Does nothing if `address` is None.

    Raises:
        ConfigError: Ray is not installed.
        RunError: no cluster answers at `address`.
    """
    if address is None:
        return nullcontext()
    if find_spec("ray") is None:
        raise ConfigError("ray is not installed; pip install '/path/to/busi-tune[ray]'.")
    from busi_tune.workers import ray_actors

    return ray_actors.cluster(address)


def resolved(config: Config, count: int, address: str | None) -> Config:
    """Replace `auto` with the device and the precision of the machines that train.

    Raises:
        ConfigError: the machines do not have the GPU in `config`, or the cluster has too few CPUs.
    """
    if address is None:
        return config.replace(**resolve(config.device, config.precision))
    from busi_tune.workers import ray_actors

    return ray_actors.resolve_there(config, count)


@contextmanager
def workers(count: int, address: str | None, dataset: Dataset, progress: Progress, *, owner: Path) -> Iterator[Workers]:
    """Start `count` workers, and end them with the block. If `address` is given, they run on that Ray cluster.

    The caller holds the lock of the folder `owner`. Temporary folders of killed commands on `owner` are deleted.
    """
    sockets.remove_leftovers(owner)
    if count > 1 and address is None:
        sockets.mark_own(owner)
    crew = _started(count, address, dataset, progress)
    try:
        yield crew
    finally:
        crew.close()


def _started(count: int, address: str | None, dataset: Dataset, progress: Progress) -> Workers:
    if address is not None:
        from busi_tune.workers.ray_actors import RayActors

        return RayActors(count, dataset, progress)
    return Processes(count, dataset, progress) if count > 1 else Here(dataset, progress)
