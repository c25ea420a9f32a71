"""Stops the database server for some seconds while a search runs, and reports the search's reaction.

    PYTHONPATH=tests/support python tests/benchmarks/outage.py --seconds 30
    PYTHONPATH=tests/support python tests/benchmarks/outage.py --seconds 90

The second outage is longer than a search waits. The same search command is then repeated and finishes the study.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from busi_tune import pipeline
from busi_tune.data.phantoms import make_phantoms
from busi_tune.errors import FileError
from busi_tune.progress import Silent
from outages import TINY, Saboteur, options
from postgres import Server


def main() -> None:
    """Runs an outage of the given length."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    seconds = parser.parse_args().seconds
    server = Server()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_phantoms(folder / "data", Silent(), {"benign": 26, "malignant": 22, "normal": 20}, seed=1)
        seen = Saboteur(server, seconds)
        started = time.monotonic()
        try:
            result = pipeline.search(folder / "data", folder / "study", TINY, options(server), seen)
        except FileError as error:
            sys.stdout.write(f"after {time.monotonic() - started:.0f} s: {error}\n")
            assert seen.back is not None
            seen.back.join()
            result = pipeline.search(folder / "data", folder / "study", TINY, options(server), Silent())
        took = time.monotonic() - started
        states = [row["state"] for row in result["trials"]]
        sys.stdout.write(f"{took:.0f} s with {seconds:g} s of outage; {states}; notices: {seen.notices}\n")
    server.remove()


if __name__ == "__main__":
    main()
