"""Time of the data steps: an audit of 780 images with decoding, and the intervals of all metrics.

    python tests/benchmarks/data_speed.py [--data DIR]

Without DIR it first draws 780 phantoms with BUSI's class sizes. The targets on two cores are 10 s for the images, and
1 s for the intervals of 780 test images.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from busi_tune.config import Config
from busi_tune.data.audit import audit
from busi_tune.data.dataset import twins_of
from busi_tune.data.listing import find_names
from busi_tune.data.phantoms import make_phantoms
from busi_tune.data.pixel_cache import find_decoded
from busi_tune.data.reading import read_folder
from busi_tune.data.twins import THUMBNAIL
from busi_tune.evaluation.intervals import measure
from busi_tune.progress import Silent
from interval_coverage import draw

COUNTS = {"benign": 437, "malignant": 210, "normal": 133}


def look_through(root: Path) -> None:
    """Measures `data audit`, and a split's search for near-duplicates from files with an empty cache."""
    started = time.perf_counter()
    found = audit(read_folder(find_names(root), Silent()), Config().similarity)
    print(f"audit of {found['images']} images: {time.perf_counter() - started:.1f} s")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        started = time.perf_counter()
        pairs = len(twins_of(find_decoded(root, [THUMBNAIL], Silent()), Config().similarity, Silent()))
        print(f"{pairs} pairs of near-duplicates found: {time.perf_counter() - started:.1f} s")


def find_intervals() -> None:
    """Measures the intervals of all metrics, for the size of BUSI's test split and for the size of BUSI."""
    for count in (90, 600):
        answers, groups = draw(np.random.default_rng(0), count)
        started = time.perf_counter()
        measure(answers, groups)
        print(f"intervals of {len(groups)} images: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    root = parser.parse_args().data
    find_intervals()
    if root is not None:
        look_through(root)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_phantoms(Path(folder), Silent(), COUNTS)
        look_through(Path(folder))


if __name__ == "__main__":
    main()
