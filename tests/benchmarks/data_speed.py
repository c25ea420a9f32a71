"""How long the data's own steps take: 780 images looked through, decoding included, and the intervals of all metrics.

    python tests/benchmarks/data_speed.py [--data DIR]

Without DIR it draws 780 phantoms of BUSI's class sizes first. They should take less than 10 s on two cores, and the
intervals of 780 test images less than 1 s.
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
    """Time what `data audit` and what a split's search for near-duplicates do, from files and an empty cache."""
    started = time.perf_counter()
    found = audit(read_folder(find_names(root), Silent()), Config().similarity)
    print(f"audit of {found['images']} images: {time.perf_counter() - started:.1f} s")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        started = time.perf_counter()
        pairs = len(twins_of(find_decoded(root, [THUMBNAIL], Silent()), Config().similarity, Silent()))
        print(f"{pairs} pairs of near-duplicates found: {time.perf_counter() - started:.1f} s")


def find_intervals() -> None:
    """Time the intervals of all metrics of a test split as large as BUSI's, and of one as large as BUSI."""
    for count in (90, 600):
        answers, groups = draw(np.random.default_rng(0), count)
        started = time.perf_counter()
        measure(answers, groups)
        print(f"intervals of {len(groups)} images: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Measure and print."""
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
