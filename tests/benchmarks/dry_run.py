"""Predicted against real time and memory: `--dry-run` of a command, and then the command itself.

A baseline of 5 epochs, a study of 4 trials of 3 epochs, and a cross-validation of 3 folds of 2 epochs, of a ResNet18 at
64 pixels. Each command begins with an empty cache of decoded images. Prints a table of seconds and of memory, predicted
and real. Other load changes the seconds on the clock between the two, but hardly those on the processors.

OMP_NUM_THREADS=1 python tests/benchmarks/dry_run.py --data DIR --out /tmp/dry-run
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODEL = ["--arch", "resnet18", "--weights", "none", "--image-size", "64", "--device", "cpu"]
CASES = {
    "baseline": ["baseline", "--epochs", "5"],
    "search": ["search", "--epochs", "5", "--trials", "4", "--trial-epochs", "3"],
    "crossval": ["crossval", "--epochs", "2", "--folds", "3"],
}


def timed(command: list[str], cache: Path) -> tuple[str, float, float, float]:
    """Runs a command; returns its output, its seconds on the clock and on the processors, and its peak memory in GB."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "busi_tune", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = usage.ru_utime + usage.ru_stime
    return output, time.perf_counter() - began, seconds, usage.ru_maxrss * unit / 1e9


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    heads = [
        "command",
        "dry run, s",
        "predicted, s",
        "clock, s",
        "ratio",
        "predicted, processor s",
        "processor s",
        "ratio",
    ]
    heads += ["memory, GB", "ratio of predicted"]
    lines = [heads, ["---"] * len(heads)]
    for name in asked.cases.split(",") * asked.repeats:
        place = asked.out / f"{name}-{len(lines)}"
        command = [*CASES[name], *MODEL, "--data", str(asked.data), "--out", str(place), "--json"]
        text, spent, _, _ = timed([*command, "--dry-run"], place.with_name(f"{place.name}-cache"))
        plan = json.loads(text)
        assert not place.exists()
        _, clock, processor, memory = timed(command, place.with_name(f"{place.name}-cache"))
        predicted, peak = plan["seconds_with_pruning"], plan["memory_bytes"] / 1e9
        busy = plan["processor_seconds"]
        numbers = [spent, predicted, clock, predicted / clock, busy, processor, busy / processor, memory, peak / memory]
        lines.append([name, *(f"{number:.2f}" for number in numbers)])
        sys.stdout.write(f"{name}: {json.dumps(plan)}\n")
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
