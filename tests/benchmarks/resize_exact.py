"""Equality of the graph's resize with Pillow's, pixel by pixel, and its cost compared with the network.

python tests/benchmarks/resize_exact.py --data DIR --sizes 2000
python tests/benchmarks/resize_exact.py --cost EXPORT
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from busi_tune import images
from busi_tune.export import resize
from busi_tune.images import Pixels

# isort: split
# After busi_tune, which disables ONNX Runtime's telemetry.
import onnxruntime

SIZE = 224


def session(model: bytes | str, threads: int = 2) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exactness(data: Path, sizes: int) -> None:
    """Counts pixels that differ, on all images of a folder and on noise of random sizes up to 4,000 x 3,000."""
    running = session(resize.any_size(SIZE).SerializeToString())

    def differing(picture: Pixels) -> int:
        (found,) = running.run(["pixels"], {"images": picture[None]})
        return int((found[0].transpose(1, 2, 0) != images.resize(picture, SIZE)).sum())

    paths = [path for path in images.walk(data) if not images.is_mask(path)]
    print(f"{len(paths)} images of {data}: {sum(differing(images.picture(path)) for path in paths)} values differ")
    generator = np.random.default_rng(0)
    wrong = total = 0
    for number in range(sizes):
        # The logarithms of the sizes are uniform, so small sizes are as frequent as large ones.
        width, height = (int(np.exp(generator.uniform(0, np.log(most + 1)))) for most in (4000, 3000))
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wrong += differing(noise if number % 2 else np.where(noise > 127, 255, 0).astype(np.uint8))
        total += SIZE * SIZE * 3
    print(f"{sizes} random sizes from 1 x 1 to 4,000 x 3,000: {wrong} of {total:,} values differ")


def cost(folder: Path, threads: int, rounds: int = 20) -> None:
    """Prints the time of resizing 500 x 500 pixels, as a share of the time of the model for resized images.

    The threads of a session spin for a while after a run and would slow the other session. So each session runs a few
    times, after a pause.
    """
    ready = next(folder.glob("model-*.onnx"))
    size = int(ready.stem.partition("-")[2])
    sessions = session(resize.any_size(size).SerializeToString(), threads), session(str(ready), threads)
    generator = np.random.default_rng(0)
    inputs = [generator.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for side in (500, size)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for place, (running, picture) in enumerate(zip(sessions, inputs, strict=True)):
            time.sleep(0.1)
            for number in range(6):
                started = time.perf_counter()
                running.run(None, {"images": picture})
                if number:
                    seconds[place].append(time.perf_counter() - started)
    small, large = (statistics.median(values) * 1000 for values in seconds)
    share = f"{small / large:.1%} of the network's {large:.2f} ms at {size}"
    print(f"{threads} threads: the resize of 500 x 500 takes {small:.2f} ms, {share}")


def main() -> None:
    """Runs the measurements that the arguments select."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", type=int, default=2000)
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.data:
        exactness(options.data, options.sizes)
    if options.cost:
        cost(options.cost, options.threads)


if __name__ == "__main__":
    main()
