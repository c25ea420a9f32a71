"""Training speed of a small network next to a busy process, by number of threads and by their way of waiting.

    python tests/benchmarks/busy_machine.py --data FOLDER [--rounds 5] [--seconds 5] [--busy 1]

Trains a ResNet18 at 64 pixels. Each setting runs in a process of its own, and all settings take turns in each round:
first on the machine as it is, then with `--busy` processes that compute without pause. A ratio compares a setting with
the default in the same round, so a changing load affects both. Prints the median ratios, and the share of its threads'
time in which the process had a processor (1: always, for computing or for spinning).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    "one thread fewer": {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1))},
}


def measure(data: Path, seconds: float) -> dict[str, float]:
    """Trains for some seconds: images a second, and the share of time in which each thread had a processor."""
    import torch

    from busi_tune.config import Config
    from busi_tune.data.dataset import open_dataset
    from busi_tune.progress import Silent
    from busi_tune.training.batches import class_weights, to_device, training_batches
    from busi_tune.training.fit import train_step
    from busi_tune.training.hardware import keep_memory
    from busi_tune.training.state import TrainingState

    keep_memory()
    config = Config(arch="resnet18", weights="none", image_size=64, device="cpu", precision="float32")
    dataset = open_dataset(data, config, Silent())
    part = dataset.part("train", config.image_size, Silent())
    images = to_device(part, "cpu", mean=config.mean, std=config.std)
    state = TrainingState.start(config, len(dataset.classes))
    weights = class_weights(images.host_labels, len(dataset.classes), "cpu", balanced=True)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for seed in range(1000):
            yield from training_batches(images, seed, batch_size=config.batch_size, balanced=True, flip=0.5)

    state.model.train()
    count, begun, used = 0, 0.0, 0.0
    for number, (pictures, labels) in enumerate(batches()):
        if number == 3:
            begun, used, count = time.perf_counter(), time.process_time(), 0
        if number > 3 and time.perf_counter() - begun > seconds:
            break
        train_step(state, pictures, labels, weights)
        count += len(labels)
    wall = time.perf_counter() - begun
    return {"rate": count / wall, "share": (time.process_time() - used) / wall / torch.get_num_threads()}


@contextmanager
def busy() -> Iterator[None]:
    """A process that computes without pause until the block ends."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(options: argparse.Namespace, settings: dict[str, str]) -> dict[str, float]:
    """The result of `measure` in a process with these environment variables."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--data", str(options.data), "--seconds", str(options.seconds), "--once"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=plain | settings)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.data, options.seconds)))
        return
    for count in (0, options.busy):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            with ExitStack() as stack:
                for _ in range(count):
                    stack.enter_context(busy())
                for way in sorted(WAYS, key=lambda way: (list(WAYS).index(way) + number) % len(WAYS)):
                    found[way].append(measured(options, WAYS[way]))
        print(f"{count} busy processes, load {os.getloadavg()[0]:.1f}: images/s, ratio to the default, share")
        for way, each in found.items():
            ratios = [a["rate"] / b["rate"] for a, b in zip(each, found["default"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rate, share = (statistics.median(entry[key] for entry in each) for key in ("rate", "share"))
            print(f"  {way:26} {rate:7.1f}  {spread}  {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
