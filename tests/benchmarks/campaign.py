"""Kills the driver and workers of a search at random moments, again and again, and reports what is lost.

    PYTHONPATH=tests/support python tests/benchmarks/campaign.py --kills 100 --workers 4 --database postgres
    PYTHONPATH=tests/support python tests/benchmarks/campaign.py --kills 100 --workers 2 --drivers 2 --database postgres
    PYTHONPATH=tests/support python tests/benchmarks/campaign.py --kills 100 --workers 1 --pruner hyperband
    PYTHONPATH=tests/support python tests/benchmarks/campaign.py --kills 10 --workers 2 --ray

On Ray, nodes are killed, too, and replaced by new ones.
Each study runs to its end between the kills. New studies start until there were enough kills.
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import psutil
from ray.cluster_utils import Cluster

import crashes
from busi_tune.data.phantoms import make_phantoms
from busi_tune.progress import Silent
from postgres import Server

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
TRIAL_EPOCHS = 6
SPACE = "learning_rate = {low = 1e-5, high = 0.1, log = true}\nweight_decay = {low = 1e-5, high = 0.1, log = true}\n"
REFERENCE = "reference"
MEMORY = 200_000_000
Row = dict[str, str]


@dataclass
class Report:
    """The counts and problems of a campaign."""

    kills: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    trials: int = 0
    epochs: int = 0
    epochs_again: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Campaign:
    """A campaign: its folder, database, workers and results so far."""

    folder: Path
    workers: int
    server: Server | None
    random: random.Random
    longest: float
    cluster: Cluster | None = None
    drivers: int = 1
    pruner: str = "stalled"
    report: Report = field(default_factory=Report)

    @property
    def alone(self) -> bool:
        """Whether one worker trains, so that all draws and prunings can be predicted."""
        return self.workers * self.drivers == 1

    @property
    def trials(self) -> int:
        """Trials of a study. With several workers all are random draws, which do not depend on the order of results."""
        return 14 if self.alone else 8

    def command(self, out: str) -> list[str]:
        epochs = ["--epochs", "8", "--trial-epochs", str(TRIAL_EPOCHS), "--trials", str(self.trials)]
        storage = ["--storage", self.server.url] if self.server else []
        ray = ["--ray", self.cluster.address] if self.cluster and out != REFERENCE else []
        # Makes trials prune early. With several workers, pruning would depend on which trial ends first.
        early = ["--scheduler-patience", "0", "--space", "space.toml"] if self.alone else []
        own = ["--workers", str(self.workers if out != REFERENCE else 1), "--out", f"studies/{out}", *storage, *ray]
        return ["search", "--data", "data", *SMALL, *epochs, "--pruner", self.pruner, *early, *own]

    def run(self, kills: int) -> Report:
        """Runs studies until there were `kills` kills, or until one has a problem."""
        make_phantoms(self.folder / "data", Silent(), {"benign": 26, "malignant": 22, "normal": 20}, seed=1)
        (self.folder / "space.toml").write_text(SPACE)
        assert crashes.run(self.command(REFERENCE), self.folder)[0] == 0
        while self.report.kills.total() < kills:
            out = f"study-{self.report.studies}"
            before = self.report.kills.total()
            self._one_study(out, kills)
            self._check(out, self.report.kills.total() - before)
            # The folder of a study with a problem is kept.
            if self.report.problems:
                break
            shutil.rmtree(self.folder / "studies" / out)
            self.report.studies += 1
        return self.report

    def _one_study(self, out: str, kills: int) -> None:
        study = self.folder / "studies" / out
        (self.folder / "output.txt").unlink()
        drivers = [crashes.begin(self.command(out), self.folder) for _ in range(self.drivers)]
        while drivers:
            driver = self.random.choice(drivers)
            if self.report.kills.total() < kills:
                self._wait(driver, study)
                self._kill(driver, study)
                if driver.is_alive():
                    continue
            driver.join(300)
            drivers.remove(driver)
            code = driver.exitcode
            if code == -9:
                drivers.append(crashes.begin(self.command(out), self.folder))
            elif code != 0:
                said = (self.folder / "output.txt").read_text()[-500:]
                self.report.problems.append(f"{out}: exit code {code}; {said}")
                driver.kill()

    def _wait(self, driver: BaseProcess, study: Path) -> None:
        """Waits for a random moment: mostly after another epoch, sometimes during the driver's start."""
        if self.random.random() < 0.8:
            known = trained(study)
            while driver.is_alive() and trained(study) == known:
                driver.join(0.1)
        driver.join(self.random.uniform(0.0, self.longest))

    def _kill(self, driver: BaseProcess, study: Path) -> None:
        """Kills something. Checks that no committed epoch is lost, and at most one reported epoch of each trial."""
        before = epochs(study)
        kind = self._strike(driver)
        if kind is None:
            return
        self.report.kills[kind] += 1
        if kind == "driver":
            driver.join()
        reported = {f"{trial.number:04d}": trial.last_step or 0 for trial in self._running(study)} if before else {}
        after = epochs(study)
        for name, rows in before.items():
            if after.get(name, [])[: len(rows)] != rows:
                self.report.problems.append(f"{study.name}/{name}: an epoch that was committed is gone")
        for name, epoch in reported.items():
            if epoch > len(after.get(name, [])) + 1:
                self.report.problems.append(f"{study.name}/{name}: epoch {epoch} was reported, {len(after[name])} kept")

    def _running(self, study: Path) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in stored(study, self.server) if not trial.state.is_finished()]

    def _strike(self, driver: BaseProcess) -> str | None:
        """Kills the driver, one of its workers or, on Ray, an actor or a node, and returns which."""
        assert driver.pid is not None
        if self.cluster and self.random.random() < 0.4:
            self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)
            self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            return "node"
        try:
            process = psutil.Process(driver.pid)
            others = process.children(recursive=True)
            if self.cluster:
                running = psutil.process_iter(["cmdline"])
                others = [one for one in running if "ray::Trainer" in "".join((one.info["cmdline"] or [])[:1])]
            victim = self.random.choice([process, *others])
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return None
        return "driver" if victim.pid == driver.pid else "actor" if self.cluster else "worker or fork server"

    def _check(self, out: str, kills: int) -> None:
        folder, reference = self.folder / "studies" / out, self.folder / "studies" / REFERENCE
        trials = stored(folder, self.server)
        self.report.trials += len(trials)
        self.report.epochs += sum(trial.user_attrs.get("epochs_run", 0) for trial in trials)
        if [trial.number for trial in trials] != list(range(self.trials)):
            self.report.problems.append(f"{out}: trials {[trial.number for trial in trials]}")
        unended = [trial.number for trial in trials if not trial.state.is_finished()]
        if unended:
            self.report.problems.append(f"{out}: trials {unended} have not ended")
        again = trained_again((self.folder / "output.txt").read_text())
        self.report.epochs_again += again
        if again > kills:
            self.report.problems.append(f"{out}: {again} epochs were trained again after {kills} kills")
        same = told(folder) == told(reference) if self.alone else alike(folder, reference)
        if not same:
            self.report.problems.append(f"{out}: differs from a study that was never killed")


def epochs(study: Path) -> dict[str, list[Row]]:
    """The committed epochs of each trial with their seconds, which differ when an epoch is trained again."""
    found = {}
    for path in study.glob("trials/*/history.csv"):
        with path.open(newline="") as file:
            found[path.parent.name] = list(csv.DictReader(file))
    return found


def trained(study: Path) -> int:
    """The number of committed epochs of all trials."""
    return sum(len(rows) for rows in epochs(study).values())


def trained_again(output: str) -> int:
    """The number of epochs that were trained again, from the line printed after each training of an epoch."""
    said = Counter(re.findall(rf"^(trial \d+ \d+)/{TRIAL_EPOCHS}: ", output, re.MULTILINE))
    return said.total() - len(said)


def told(study: Path) -> list[Row]:
    """The rows of a study's trials.csv, without timings."""
    with (study / "trials.csv").open(newline="") as file:
        return [untimed(row) for row in csv.DictReader(file)]


def untimed(row: Row) -> Row:
    """A row without its timings."""
    return {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}


def alike(study: Path, reference: Path) -> bool:
    """Whether all trials have equal parameters, epochs and outcomes, except for the epoch at which some were pruned.

    With several workers, that epoch depends on the trials completed before.
    """
    outcome = ("state", "value", "epochs_run", "best_epoch", "stop_reason")
    for ours, theirs in zip(told(study), told(reference), strict=True):
        early = "PRUNED" in (ours["state"], theirs["state"])
        if any(ours[key] != theirs[key] for key in ours if not (early and key in outcome)):
            return False
    known = epochs(reference)
    return all(
        untimed(a) == untimed(b)
        for name, rows in epochs(study).items()
        for a, b in zip(rows, known[name], strict=False)
    )


def stored(folder: Path, server: Server | None) -> list[optuna.trial.FrozenTrial]:
    """The trials, as read by Optuna directly."""
    url = server.url if server else f"sqlite:///{folder / 'study.db'}"
    name = json.loads((folder / "study.json").read_text()).get("study", "busi-tune")
    return optuna.load_study(study_name=name, storage=url).trials


def three_nodes() -> Cluster:
    """A Ray cluster on this host with one node more than two workers need."""
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    return cluster


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--drivers", type=int, default=1, help="drivers of one study at a time; needs postgres")
    parser.add_argument("--pruner", choices=["stalled", "median", "hyperband", "none"], default="stalled")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster of three nodes on this host")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cluster = three_nodes() if options.ray else None
    server = Server() if options.database == "postgres" else None
    folder = Path(tempfile.mkdtemp(prefix="busi-tune-kills-"))
    begun = time.monotonic()
    try:
        longest = 15.0 if options.ray else 2.0
        seeded = random.Random(options.seed)
        drivers, pruner = options.drivers, options.pruner
        report = Campaign(folder, options.workers, server, seeded, longest, cluster, drivers, pruner).run(options.kills)
    finally:
        if cluster:
            cluster.shutdown()
        if server:
            server.remove()
    if not report.problems:
        shutil.rmtree(folder)
    sys.stdout.write(f"{options} in {time.monotonic() - begun:.0f} s in {folder}: {report}\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
