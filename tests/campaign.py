"""Kills a search again and again at random moments, driver and workers, and says what was lost.

    python tests/campaign.py --kills 100 --workers 4 --database postgres

Each study runs until it has ended between the kills; then the next one begins, until there were enough kills.
"""

import argparse
import csv
import os
import random
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

import crashes
from busi_tune.data.phantoms import make_phantoms
from busi_tune.progress import Silent
from postgres import Server

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
TRIALS, TRIAL_EPOCHS = 8, 6
Row = dict[str, str]


@dataclass
class Report:
    """What a campaign saw."""

    kills: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    trials: int = 0
    epochs: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Campaign:
    """Where it happens, and on what."""

    folder: Path
    workers: int
    server: Server | None
    random: random.Random
    longest: float
    report: Report = field(default_factory=Report)

    def command(self, out: str) -> list[str]:
        epochs = ["--epochs", "8", "--trial-epochs", str(TRIAL_EPOCHS), "--trials", str(TRIALS)]
        storage = ["--storage", self.server.url] if self.server else []
        own = ["--workers", str(self.workers), "--out", f"studies/{out}", *storage]
        return ["search", "--data", "data", *SMALL, *epochs, *own]

    def run(self, kills: int) -> Report:
        """Kill so many times."""
        make_phantoms(self.folder / "data", Silent(), {"benign": 26, "malignant": 22, "normal": 20}, seed=1)
        reference = None
        if self.workers == 1:
            assert crashes.run(self.command("reference"), self.folder)[0] == 0
            reference = told(self.folder / "studies/reference")
        while self.report.kills.total() < kills:
            out = f"study-{self.report.studies}"
            self._one_study(out, kills)
            self._check(out, reference)
            shutil.rmtree(self.folder / "studies" / out)
            self.report.studies += 1
        return self.report

    def _one_study(self, out: str, kills: int) -> None:
        study = self.folder / "studies" / out
        code = -9
        while code != 0:
            driver = crashes.begin(self.command(out), self.folder)
            while driver.is_alive() and self.report.kills.total() < kills:
                driver.join(self.random.uniform(0.1, self.longest))
                self._kill(driver, study)
            driver.join(300)
            code = driver.exitcode if driver.exitcode is not None else 1
            if code not in (0, -9):
                self.report.problems.append(
                    f"{out}: exit code {code}; {(self.folder / 'output.txt').read_text()[-500:]}"
                )
                return

    def _kill(self, driver: BaseProcess, study: Path) -> None:
        """Kill the driver or one of its workers, and check later that no committed epoch was trained again."""
        assert driver.pid is not None
        try:
            process = psutil.Process(driver.pid)
            victim = self.random.choice([process, *process.children(recursive=True)])
            before = epochs(study)
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return
        kind = "driver" if victim.pid == driver.pid else "worker or fork server"
        self.report.kills[kind] += 1
        if kind == "driver":
            driver.join()
        for name, rows in before.items():
            if epochs(study).get(name, [])[: len(rows)] != rows:
                self.report.problems.append(f"{study.name}/{name}: an epoch that was committed is gone")

    def _check(self, out: str, reference: list[Row] | None) -> None:
        folder = self.folder / "studies" / out
        trials = stored(folder, self.server)
        self.report.trials += len(trials)
        self.report.epochs += sum(trial.user_attrs.get("epochs_run", 0) for trial in trials)
        if [trial.number for trial in trials] != list(range(TRIALS)):
            self.report.problems.append(f"{out}: trials {[trial.number for trial in trials]}")
        unended = [trial.number for trial in trials if not trial.state.is_finished()]
        if unended:
            self.report.problems.append(f"{out}: trials {unended} have not ended")
        if reference is not None and told(folder) != reference:
            self.report.problems.append(f"{out}: differs from a study that was never killed")


def epochs(study: Path) -> dict[str, list[Row]]:
    """The committed epochs of each trial, with the seconds that each took: an epoch trained again has others."""
    found = {}
    for path in study.glob("trials/*/history.csv"):
        with path.open(newline="") as file:
            found[path.parent.name] = list(csv.DictReader(file))
    return found


def told(study: Path) -> list[Row]:
    """What a study says of its trials, without timings."""
    with (study / "trials.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def stored(folder: Path, server: Server | None) -> list[optuna.trial.FrozenTrial]:
    """The trials, as Optuna alone reads them."""
    url = server.url if server else f"sqlite:///{folder / 'study.db'}"
    names = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=names[-1], storage=url).trials


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = Server() if options.database == "postgres" else None
    folder = Path(tempfile.mkdtemp(prefix="busi-tune-kills-"))
    begun = time.monotonic()
    try:
        longest = 3.0 if options.workers == 1 else 8.0
        report = Campaign(folder, options.workers, server, random.Random(options.seed), longest).run(options.kills)
    finally:
        if server:
            server.remove()
    shutil.rmtree(folder)
    sys.stdout.write(f"{options} in {time.monotonic() - begun:.0f} s: {report}\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
