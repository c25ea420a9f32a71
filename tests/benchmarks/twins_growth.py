"""Time and memory of the search for near-duplicates among many images.

    python tests/benchmarks/twins_growth.py [--images 100000]

The thumbnails are random fields plus a common profile, so that any two of them are about as similar as two images of
BUSI. The quantiles of the similarity are printed; BUSI's are 0.51, 0.72 and 0.82. One thumbnail in a hundred is a
twin of another.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn

from busi_tune.data.twins import BLOCK, find_twins, signatures

SIDE = 64
# The ratio of the common profile to the random part, and the slope of the spectrum: fitted to BUSI's quantiles.
COMMON, SLOPE = 1.5, 2.0


def draw(path: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Thumbnails (count, 64, 64, 3) in a memory map, the last hundredth twins; and the originals of the twins."""
    generator = np.random.default_rng(0)
    images = np.memmap(path, dtype=np.uint8, mode="w+", shape=(count, SIDE, SIDE, 3))
    frequency = np.add.outer(np.arange(SIDE), np.arange(SIDE)) + 1.0
    amplitude = frequency**-SLOPE
    amplitude[0, 0] = 0
    common = COMMON * generator.standard_normal((SIDE, SIDE)) * amplitude
    twins = count // 100
    for start in range(0, count - twins, BLOCK):
        size = min(BLOCK, count - twins - start)
        field = idctn(common + generator.standard_normal((size, SIDE, SIDE)) * amplitude, axes=(1, 2))
        field *= 45 / field.std(axis=(1, 2), keepdims=True)
        images[start : start + size] = np.clip(field + 128, 0, 255).astype(np.uint8)[..., None]
    of = generator.choice(count - twins, size=twins, replace=False)
    for place, source in enumerate(of, start=count - twins):
        noisy = images[source].astype(np.int64) * 9 // 10 + generator.integers(0, 20, (SIDE, SIDE, 1))
        images[place] = noisy[:, ::-1] if place % 2 else noisy
    return images, of


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        images, of = draw(Path(folder, "thumbnails"), count)
        some = signatures(images[:1000]).reshape(1000, -1)
        likeness = (some @ some.T)[np.triu_indices(1000, 1)]
        print("similarity of two images, quantiles 0.5, 0.9, 0.99:", np.quantile(likeness, [0.5, 0.9, 0.99]).round(2))
        started = time.perf_counter()
        twins = find_twins(images, [str(number) for number in range(count)], 0.93)
        seconds = time.perf_counter() - started
    found = set(zip(twins["first"], twins["second"], strict=True))
    planted = {(int(source), place) for place, source in enumerate(of, start=count - len(of))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count} images: {seconds:.0f} s, peak memory {peak:.2f} GB")
    print(f"{len(planted & found)} of {len(planted)} planted twins found, {len(found - planted)} other pairs")


if __name__ == "__main__":
    main()
