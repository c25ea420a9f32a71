"""The memory that `predict` takes for few files and for many: in a folder, by a pattern, and listed on stdin.

    PYTHONPATH=tests python tests/benchmarks/predict_many.py --files 100000

With the tiny model of the tests, so that what is measured is everything but the model.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from small_export import small_model, write_export


def peak(command: list[str], listed: Path | None) -> tuple[float, float]:
    """Peak memory in MB, and seconds."""
    started = time.perf_counter()
    with (listed or Path(os.devnull)).open() as given:
        process = subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 1e6, time.perf_counter() - started


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        export = write_export(place / "export", {"model.onnx": small_model()})
        image = place / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)).save(image)
        for count in (1000, options.files):
            folder = place / str(count)
            for number in range(count):
                path = folder / f"{number // 1000:03}" / f"{number:06}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # A file system has a most number of names for one file.
                path.symlink_to(image)
            listed = place / "list.txt"
            listed.write_text("".join(f"{path}\n" for path in sorted(folder.rglob("*.png"))))
            ways = {"folder": [str(folder)], "pattern": [f"{folder}/**/*.png"], "stdin": ["-"]}
            for way, arguments in ways.items():
                command = [sys.executable, "-m", "busi_tune", "predict", str(export), *arguments, "--csv"]
                memory, seconds = peak([*command, str(place / "answers.csv"), "--jsonl"], listed)
                print(f"{count:,} files, {way}: {memory:.0f} MB, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
