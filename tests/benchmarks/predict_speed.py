"""Time and memory of `predict` for one image, and its rate on a folder compared with a bare session.

    python tests/benchmarks/predict_speed.py EXPORT FOLDER [--images 200]

The bare session is ONNX Runtime with default settings on the same images, decoded before. The two take turns. A batch
is divided among the threads of `predict_files`, as the command `predict` does.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

from busi_tune import images
from busi_tune.inference import open_export, predict_files
from busi_tune.inference.inputs import image_paths

# isort: split
# After busi_tune, which disables ONNX Runtime's telemetry.
import onnxruntime as ort

FRESH = """
import sys
from pathlib import Path
from busi_tune.inference import open_export, predict_files
export, level, batch, *names = sys.argv[1:]
list(predict_files(open_export(Path(export), optimisation=level), map(Path, names), int(batch)))
"""


def measured(command: list[str], repeats: int) -> str:
    """Wall time and peak memory of a command: medians of several runs."""
    seconds, memory = [], []
    unit = 1 if sys.platform == "darwin" else 1024
    for _ in range(repeats):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{command} failed")
        seconds.append(time.perf_counter() - started)
        memory.append(usage.ru_maxrss * unit / 1e6)
    return f"{statistics.median(seconds):.2f} s (slowest {max(seconds):.2f}), {statistics.median(memory):.0f} MB"


def cold(export: Path, paths: list[Path], repeats: int) -> None:
    """Measures new processes with few images."""
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), "--jsonl"]
    print("predict, one image:", measured([*command, str(paths[0])], repeats), flush=True)
    for count in (1, 4, 8, 16, 32):
        for level, batch in (("none", 1), ("all", 1), ("all", 8)):
            names = [str(path) for path in paths[:count]]
            fresh = [sys.executable, "-c", FRESH, str(export), level, str(batch), *names]
            print(f"{count} images, {level}, batch {batch}:", measured(fresh, repeats), flush=True)


def bare_rate(session: ort.InferenceSession, batches: list[np.ndarray]) -> float:
    """The rate of a bare session, in images a second."""
    started = time.perf_counter()
    for batch in batches:
        session.run(["logits", "probabilities"], {"images": batch})
    return sum(map(len, batches)) / (time.perf_counter() - started)


def folder_rates(export: Path, paths: list[Path], batch_size: int, repeats: int) -> None:
    """The rates of `predict_files` and of a bare session, in images a second; the two take turns."""
    classifier = open_export(export, 1)
    session = ort.InferenceSession(str(classifier.path), providers=["CPUExecutionProvider"])
    pixels = [np.asarray(images.decode(path)) for path in paths]
    if len({array.shape for array in pixels}) > 1:
        sys.exit("The images differ in size; name a folder of images of one size.")
    batches = [np.stack(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    bare, ours = [], []
    for _ in range(repeats):
        bare.append(bare_rate(session, batches))
        started = time.perf_counter()
        each = max(1, batch_size // (os.cpu_count() or 1))
        count = sum(not found.error for found in predict_files(classifier, paths, each))
        ours.append(count / (time.perf_counter() - started))
    ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
    middle = [statistics.median(rates) for rates in (bare, ours)]
    print(
        f"batch {batch_size}: bare session {middle[0]:.1f}, predict {middle[1]:.1f} images/s, ratio {ratio:.2f}",
        flush=True,
    )


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=["cold", "folder", "both"], default="both")
    options = parser.parse_args()
    paths = list(islice(image_paths([options.folder]), options.images))
    if options.part != "folder":
        cold(options.export, paths, options.repeats)
    if options.part != "cold":
        for batch_size in (1, 4, 8, 32):
            folder_rates(options.export, paths, batch_size, options.repeats)


if __name__ == "__main__":
    main()
