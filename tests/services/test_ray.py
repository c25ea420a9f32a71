"""A study on a real Ray cluster of two nodes on this host: the trials stay the same whatever is killed."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.errors import ConfigError, RunError
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions
from busi_tune.workers.ray_actors import cluster as joined
from busi_tune.workers.ray_actors import cluster_error, shares
from recorder import Recorder

TINY = Config(arch="squeezenet1_1", weights="none", image_size=32, batch_size=16, epochs=4, device="cpu")
MEMORY = 200_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def options(address: str | None, trials: int = 4) -> SearchOptions:
    return SearchOptions(trials=trials, trial_epochs=3, ray=address, workers=2 if address else 1)


def told(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """The study as a single process runs it."""
    study = tmp_path_factory.mktemp("local") / "study"
    pipeline.search(phantoms, study, TINY, options(None), Silent())
    return study


class Killer(Recorder):
    """Calls `deed` once, when trial 1 has finished its second epoch."""

    def __init__(self, deed: object) -> None:
        super().__init__()
        self.deed, self.done = deed, False

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        super().step(task, done, total, detail)
        if task == "trial 1" and done == 2 and not self.done:
            self.done = True
            assert callable(self.deed)
            self.deed()


def kill_the_actors() -> None:
    """Kills both training processes. At least one has an epoch left to train, so the kill interrupts a trial."""
    trainers: list[psutil.Process] = []
    # On a busy machine, an actor may start late.
    while len(trainers) < 2:
        time.sleep(0.1)
        running = psutil.process_iter(["cmdline"])
        trainers = [process for process in running if "ray::Trainer" in "".join((process.info["cmdline"] or [])[:1])]
    assert len(trainers) == 2
    for trainer in trainers:
        trainer.kill()


def test_a_study_on_a_cluster_is_the_study_of_one_process(
    cluster: Cluster, phantoms: Path, local: Path, tmp_path: Path
) -> None:
    pipeline.search(phantoms, tmp_path / "study", TINY, options(cluster.address), Silent())
    assert told(tmp_path / "study") == told(local)
    assert (tmp_path / "study/best/predictions.csv").read_bytes() == (local / "best/predictions.csv").read_bytes()


def test_a_nested_search_on_a_cluster_is_that_of_one_process(cluster: Cluster, phantoms: Path, tmp_path: Path) -> None:
    """The folds of the cross-validation and the trials of each fold's study are trained on the cluster."""
    config = TINY.replace(epochs=2)
    here, there = (
        pipeline.search_folds(
            phantoms,
            tmp_path / name,
            config,
            SearchOptions(trials=2, trial_epochs=2, ray=address, workers=2 if address else 1),
            Silent(),
            folds=2,
        )
        for name, address in (("here", None), ("there", cluster.address))
    )
    assert there == here
    for path in ("predictions.csv", "baseline/predictions.csv"):
        assert (tmp_path / "there" / path).read_bytes() == (tmp_path / "here" / path).read_bytes()


def test_actors_that_are_killed_cost_no_committed_epoch(
    cluster: Cluster, phantoms: Path, local: Path, tmp_path: Path
) -> None:
    seen = Killer(kill_the_actors)
    pipeline.search(phantoms, tmp_path / "study", TINY, options(cluster.address), seen)
    assert any("died" in text for text in seen.notices)
    assert told(tmp_path / "study") == told(local)


@pytest.mark.parametrize("spare", [True, False], ids=["another has room", "no other has room"])
def test_a_node_that_dies_is_done_without(
    spare: bool, cluster: Cluster, phantoms: Path, local: Path, tmp_path: Path
) -> None:
    [node] = cluster.worker_nodes
    if spare:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    seen = Killer(lambda: cluster.remove_node(node, allow_graceful=False))
    pipeline.search(phantoms, tmp_path / "study", TINY, options(cluster.address), seen)
    assert seen.done
    assert told(tmp_path / "study") == told(local)
    if not spare:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "share", "gpu"),
    [
        ([1, 1], [0, 0], 2, 1, 0),
        ([5, 5], [0, 0], 3, 2, 0),
        ([1, 64, 64], [0, 0, 0], 2, 64, 0),
        ([0, 8], [0, 2], 3, 2, 1 / 2),
        ([16], [4], 5, 3, 1 / 2),
        ([16, 16], [1, 1], 1, 16, 1),
        ([16, 4], [0, 1], 1, 4, 1),
        ([64, 8], [0, 2], 2, 4, 1),
        ([32, 8, 8], [0, 1, 1], 2, 8, 1),
        ([8, 8, 8], [0, 1, 1], 5, 2, 1 / 3),
        ([64, 16, 16], [0, 4, 4], 8, 4, 1),
        ([2, 16], [1, 1], 6, 1, 1 / 4),
    ],
)
def test_the_cluster_has_room_for_all_actors(
    cpus: list[int], gpus: list[int], count: int, share: int, gpu: float
) -> None:
    assert shares(cpus, gpus, count) == {"num_cpus": share, "num_gpus": gpu}
    rooms = [min(cpu // share, round(there / gpu) if gpu else count) for cpu, there in zip(cpus, gpus, strict=True)]
    assert sum(rooms) >= count


def test_a_cpu_beside_no_gpu_is_no_room() -> None:
    with pytest.raises(
        ConfigError, match=r"workers must be at most 4, the CPUs of the nodes with GPUs of the Ray cluster, not 5\."
    ):
        shares([16, 4], [0, 2], 5)


def test_an_error_on_the_cluster_is_one_sentence(cluster: Cluster) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    told = r"^The Ray cluster failed \(ValueError: no such thing\); every node needs the busi-tune and PyTorch"
    with joined(cluster.address), pytest.raises(RayError) as found:
        ray.get(ray.remote(fail).remote())
    with pytest.raises(RunError, match=told):
        raise cluster_error(found.value)


def test_more_workers_than_a_cluster_has_cpus_are_refused(cluster: Cluster, phantoms: Path, tmp_path: Path) -> None:
    too_many = SearchOptions(trials=1, trial_epochs=3, ray=cluster.address, workers=9)
    with pytest.raises(ConfigError, match=r"workers must be at most \d, the CPUs of the Ray cluster, not 9\."):
        pipeline.search(phantoms, tmp_path / "study", TINY, too_many, Silent())
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_no_cluster_is_one_sentence(address: str, phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=rf"No Ray cluster answers at {address} \(.*\); start one with ray start --head\."
    ):
        pipeline.search(phantoms, tmp_path / "study", TINY, options(address), Silent())
    assert not (tmp_path / "study").exists()
