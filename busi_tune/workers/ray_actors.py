"""Workers in actors of a Ray cluster. Ray places and restarts the actors, which return each epoch's checkpoints."""

import logging
import math
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from busi_tune import locks
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, Part
from busi_tune.errors import BusiTuneError, ConfigError, RunError
from busi_tune.progress import Progress
from busi_tune.results import Json
from busi_tune.training import hardware, run_folder, runs
from busi_tune.training.epochs import Epoch
from busi_tune.workers.jobs import Died, Ended, Event, Job, Trained

# The answer of an actor: its environment, the results of an epoch, or None if no epoch is left.
Answer = runs.Saved | dict[str, Json] | None


class Needs(TypedDict):
    """The share of a node that each actor needs."""

    num_cpus: int
    num_gpus: float


class Trainer:
    """An actor of the cluster. It trains one job at a time, one epoch in each call, and writes no files."""

    def __init__(self, threads: int) -> None:
        hardware.confine(threads, None)
        self.epochs: Iterator[runs.Saved] = iter(())

    def begin(
        self, job: Job, classes: int, kept: runs.Checkpoint | None, parts: tuple[Part, Part], weights: str
    ) -> dict[str, Json]:
        """Begin a job, or resume it from its last checkpoint, `kept`. Returns the environment of this node.

        `weights` is the SHA-256 of the driver's file of initial weights. A new job needs the same file on this node.

        Raises:
            BusiTuneError: the model cannot be built on this node.
        """
        config = job.config
        if kept is None and run_folder.weights_sha256(config.weights) != weights:
            raise RunError(
                f"{config.weights} on {socket.gethostname()} is another file than the driver's; copy it there."
            )
        self.epochs = runs.epochs(runs.state_from(config, classes, kept), *parts, job.until)
        return hardware.environment()

    # Ray repeats only this call after a restart, so its answer shows that the actor has been restarted.
    @ray.method(max_task_retries=-1)
    def there(self) -> None:
        """Answer once Ray has placed this actor on a node."""

    def epoch(self) -> runs.Saved | None:
        """Train one epoch. Returns its record and checkpoints, or None if no epoch is left.

        Raises:
            BusiTuneError: training failed.
        """
        return next(self.epochs, None)


@dataclass
class _Actor:
    handle: "ActorHandle[Trainer]"
    job: Job | None = None
    said: "ray.ObjectRef[Answer] | None" = None
    run: runs.Run | None = None
    records: tuple[Epoch, ...] = ()
    saving: Future[None] | None = None

    @property
    def free(self) -> bool:
        """Whether the actor can take a job: it has none, and it is not being restarted."""
        return self.job is None and self.said is None

    def settle(self) -> None:
        """Wait until the last epoch is saved."""
        if self.saving is not None:
            saving, self.saving = self.saving, None
            saving.result()


class RayActors:
    """Several actors. The driver writes all files, so no shared file system is needed.

    Threads of the driver save each epoch while the next one is trained. The job of a dead actor waits for the first
    free actor, because the cluster may have no room left for the dead one.
    """

    def __init__(self, count: int, dataset: Dataset, progress: Progress) -> None:
        self.dataset, self.progress = dataset, progress
        self.parts: dict[tuple[int, str], ray.ObjectRef[tuple[Part, ...]]] = {}
        needs = _needs(count)
        actor = ray.remote(**needs, max_restarts=-1)(Trainer)
        self.actors = [_Actor(cast("ActorHandle[Trainer]", actor.remote(needs["num_cpus"]))) for _ in range(count)]
        self.queue: deque[Job] = deque()
        self.savers = ThreadPoolExecutor(count)

    @property
    def idle(self) -> int:
        """The number of actors that can take a job."""
        return sum(actor.free for actor in self.actors)

    def start(self, job: Job) -> None:
        """Send a job to a free actor, with its last checkpoint. If no actor is free, the job waits."""
        actor = next((actor for actor in self.actors if actor.free), None)
        if actor is None:
            self.queue.append(job)
        else:
            self._give(actor, job)

    def _give(self, actor: _Actor, job: Job) -> None:
        with locks.only_writer(job.folder):
            kept = runs.saved_state(job.folder)
        parts, weights = self._parts(job), run_folder.weights_sha256(job.config.weights)
        actor.job, actor.run = job, None
        actor.said = actor.handle.begin.remote(job, len(self.dataset.classes), kept, parts, weights)

    def _parts(self, job: Job) -> "ray.ObjectRef[tuple[Part, ...]]":
        """The images of training and validation in Ray's object store, stored once for each size and split."""
        size, dataset = job.config.image_size, job.data(self.dataset)
        key = size, "" if job.split is None else job.split.fingerprint()
        if key not in self.parts:
            own = [dataset.part(name, size, self.progress) for name in ("train", "validation")]
            self.parts[key] = ray.put(
                tuple(Part(np.array(part.pixels()), np.arange(len(part.rows)), part.labels, part.paths) for part in own)
            )
        return self.parts[key]

    def has_event(self) -> bool:
        """Whether a busy actor has answered."""
        said = [actor.said for actor in self.actors if actor.job is not None and actor.said is not None]
        return bool(said) and bool(ray.wait(said, timeout=0)[0])

    def next(self) -> Event:
        """Wait for the next event of a busy actor."""
        while True:
            event, actor = None, self._first()
            said, actor.said = actor.said, None
            if actor.job is not None and said is not None:
                event = self._event(actor, actor.job, said)
            if actor.free and self.queue:
                self._give(actor, self.queue.popleft())
            if event is not None:
                return event

    def _first(self) -> _Actor:
        """Wait for the first actor that has answered or has been restarted."""
        asked = [actor for actor in self.actors if actor.said is not None]
        [ready], _ = ray.wait([actor.said for actor in asked], num_returns=1)
        return next(actor for actor in asked if actor.said == ready)

    def _event(self, actor: _Actor, job: Job, said: "ray.ObjectRef[Answer]") -> Event:
        actor.settle()
        try:
            return self._heard(actor, job, ray.get(said))
        except RayTaskError as error:
            actor.job = None
            return Ended(job, "", cluster_error(error))
        except RayError as error:
            # The actor, its node or its answer is lost.
            actor.job, actor.said = None, actor.handle.there.remote()
            return Died(job, str(error).splitlines()[0])

    def _heard(self, actor: _Actor, job: Job, said: "Answer") -> Event:
        if isinstance(said, dict):
            actor.run = runs.begin(job.folder, job.config, job.data(self.dataset), self.progress, said)
            runs.identify(actor.run, said)
            actor.records = tuple(run_folder.history(job.folder))
            return Trained(job, actor.records, new=False)
        if said is None:
            actor.job = None
            return Ended(job, run_folder.stop_reason(job.folder))
        actor.saving = self.savers.submit(run_folder.commit, job.folder, said.values, last=said.last, best=said.best)
        actor.records = (*actor.records[: said.record.epoch - 1], said.record)
        return Trained(job, actor.records)

    def answer(self, job: Job, go_on: bool) -> None:
        """Answer a `Trained` event: the actor trains the next epoch, or the job ends."""
        actor = next(actor for actor in self.actors if actor.job == job)
        more = go_on and not run_folder.has_ended(job.folder)
        actor.said = actor.handle.epoch.remote() if more else ray.put(None)

    def close(self) -> None:
        """End all actors. Epochs that the driver has received are saved."""
        for actor in self.actors:
            ray.kill(actor.handle)
        self.savers.shutdown()


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join the cluster at `address` during the block. "auto" is the cluster that runs on this machine.

    Raises:
        RunError: no cluster answers.
    """
    try:
        if address != "auto":
            # Ray itself would retry for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="busi-tune")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"No Ray cluster answers at {address} ({reason}); start one with ray start --head.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _needs(count: int) -> Needs:
    """The resources for each of `count` actors, chosen so that the cluster has room for all of them at once.

    Raises:
        ConfigError: the cluster has too few CPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return shares([int(node.get("CPU", 0)) for node in nodes], [int(node.get("GPU", 0)) for node in nodes], count)


def shares(cpus: Sequence[int], gpus: Sequence[int], count: int) -> Needs:
    """The most CPUs that each of `count` actors can have, and its share of a GPU.

    `cpus` and `gpus` hold the numbers of each node. Each actor gets a whole GPU or an equal part of one. If any node
    has GPUs, only nodes with GPUs are used.

    Raises:
        ConfigError: the usable nodes have fewer CPUs than there are actors.
    """
    # The CPUs and GPUs of each usable node.
    nodes = [(cpu, gpu) for cpu, gpu in zip(cpus, gpus, strict=True) if gpu or not sum(gpus)]
    most = sum(cpu for cpu, _ in nodes)
    if most < count:
        where = "nodes with GPUs of the Ray cluster" if sum(gpus) else "Ray cluster"
        raise ConfigError(f"workers must be at most {most}, the CPUs of the {where}, not {count}.")

    def fits(share: int, parts: int) -> bool:
        return sum(min(cpu // share, gpu * parts if gpu else count) for cpu, gpu in nodes) >= count

    parts = next(n for n in range(math.ceil(count / max(1, sum(gpus))), count + 1) if fits(1, n))
    share = next(share for share in range(max(cpus), 0, -1) if fits(share, parts))
    return {"num_cpus": share, "num_gpus": 1 / parts if sum(gpus) else 0}


def resolve_there(config: Config, count: int) -> Config:
    """Replace `auto` with the device and the precision of the machines in the cluster.

    Raises:
        ConfigError: the machines do not have the GPU in `config`.
        RunError: the cluster cannot run busi-tune.
    """
    needs = _needs(count)
    try:
        found = ray.get(ray.remote(**needs)(hardware.resolve).remote(config.device, config.precision))
    except RayError as error:
        raise cluster_error(error) from error
    return config.replace(**found)


def cluster_error(error: RayError) -> BusiTuneError:
    """Convert an error of the cluster to an error of our own."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BusiTuneError):
        return cause
    reason = str(error).strip().splitlines()[-1]
    return RunError(f"The Ray cluster failed ({reason}); every node needs the busi-tune and PyTorch that this one has.")
