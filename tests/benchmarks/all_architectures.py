"""Trains, resumes, exports, verifies and uses every classifier of torchvision.

    python tests/benchmarks/all_architectures.py [--data DIR] [--arch NAME ...] [--seconds 3600]

Each architecture runs in a process of its own, at its smallest valid image size, for two epochs from random weights.
The smallest member of each family comes first, then all others by size. Prints one row for each: the processor
seconds of each step, or the error.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from architectures import SMALLEST, families, smallest_size, whole_way
from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.errors import BusiTuneError
from busi_tune.progress import Silent

COUNTS = {"benign": 12, "malignant": 12, "normal": 12}
STEPS = ("train", "resume", "export", "verify", "predict")


def one(arch: str, data: Path) -> str:
    """The table row of one architecture."""
    size = smallest_size(arch)
    config = Config(
        arch=arch, weights="none", image_size=size, epochs=2, batch_size=8, device="cpu", precision="float32"
    )
    with tempfile.TemporaryDirectory() as place:
        try:
            way = whole_way(data, Path(place), config)
        except BusiTuneError as error:
            return f"| {arch} | {size} | {error} |"
    assert way.certificate is not None
    figures = [f"{way.certificate[name]:.1e}" for name in ("max_error", "tolerance")]
    return f"| {arch} | {size} | " + " | ".join([*(f"{way.seconds[step]:.0f}" for step in STEPS), *figures]) + " |"


def order() -> list[str]:
    """The smallest member of each family first, then all others by size."""
    first = [arch for arch, _ in SMALLEST.values()]
    others = [arch for members in families().values() for arch in members if arch not in first]
    return first + sorted(others, key=parameters)


def parameters(arch: str) -> int:
    """The number of parameters of an architecture with its ImageNet head."""
    from torchvision.models import get_model_weights

    return int(get_model_weights(arch).DEFAULT.meta["num_params"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arch", nargs="+")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.data)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| architecture | size | " + " | ".join(STEPS) + " | error | tolerance |")
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as place:
        data = arguments.data or Path(place)
        if arguments.data is None:
            make_phantoms(data, Silent(), COUNTS, seed=1)
        for arch in arguments.arch or order():
            command = [sys.executable, __file__, "--one", arch, "--data", str(data)]
            started = time.monotonic()
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=arguments.seconds)
                row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.splitlines()[-1]
            except subprocess.TimeoutExpired:
                row = f"| {arch} | not done after {time.monotonic() - started:.0f} s |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
