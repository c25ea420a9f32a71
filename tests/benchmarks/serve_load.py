"""`busi-tune serve` under load: the rate of many clients at once against that of `predict`, and its memory.

PYTHONPATH=.:tests/support python tests/benchmarks/serve_load.py exports/tuned data/busi --requests 10000

Server and clients share the machine, and each request has one picture. Times leave out the start of Python and the
loading of the model. Processor seconds are those of the server alone, or of `predict`; other load on the machine
affects them less.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from busi_tune import images
from busi_tune.inference import open_export, predict_files
from serving import BOUNDARY, form, served

CLIENTS, ROUNDS, SAMPLES = 32, 5, 10
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Rate(NamedTuple):
    """Pictures a second, and processor seconds for a thousand pictures."""

    pictures: float
    processor: float


def rate_of_predict(export: Path, data: Path, pictures: int) -> Rate:
    """The rate of `predict` in a new process."""
    command = [sys.executable, __file__, str(export), str(data), "--predict", "--pictures", str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Rate(*json.loads(done.stdout))


def predicted(export: Path, paths: list[Path]) -> Rate:
    """The rate of `predict` in this process, after its first batches."""
    classifier = open_export(export)
    for _ in predict_files(classifier, paths[:16]):
        pass
    start, before = time.perf_counter(), time.process_time()
    count = sum(not found.error for found in predict_files(classifier, paths))
    return Rate(count / (time.perf_counter() - start), (time.process_time() - before) * 1000 / count)


def load(url: str, process: psutil.Process, bodies: Iterator[bytes]) -> tuple[Rate, Counter[object]]:
    """Sends all bodies from CLIENTS clients; returns the rate, and the number of each status or error."""
    found: Counter[object] = Counter()
    lock = threading.Lock()
    place = urlsplit(url)

    def client() -> None:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=300)
        while True:
            with lock:
                body = next(bodies, None)
            if body is None:
                return
            try:
                connection.request(
                    "POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
                )
                answer = connection.getresponse()
                content = json.loads(answer.read())
                outcome: object = answer.status if "probabilities" in content["predictions"][0] else "no answer"
            except (OSError, http.client.HTTPException, KeyError) as error:
                outcome = repr(error)
                connection.close()
            with lock:
                found[outcome] += 1

    used = process.cpu_times()
    start = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    now = process.cpu_times()
    count = found.total()
    return Rate(count / seconds, (now.user + now.system - used.user - used.system) * 1000 / count), found


def main() -> None:
    """Prints rates, their ratio, statuses and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--predict", action="store_true", help="Measure `predict` in this process alone.")
    given = parser.parse_args()
    paths = [path for path in images.walk(given.data) if not images.is_mask_in(given.data, path)][: given.pictures]
    if given.predict:
        print(json.dumps(predicted(given.export, paths)))
        return
    bodies = [form([(path.name, path.read_bytes())]) for path in paths]
    print(
        f"{len(paths)} pictures, {CLIENTS} clients, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True
    )
    with served(given.export) as server:
        process = psutil.Process(server.process.pid)
        load(server.url, process, islice(cycle(bodies), 64))
        statuses: Counter[object] = Counter()
        ratios, costs = [], []
        for number in range(given.rounds):
            reference = rate_of_predict(given.export, given.data, given.pictures)
            served_rate, found = load(server.url, process, iter(bodies))
            statuses += found
            ratios.append(served_rate.pictures / reference.pictures)
            costs.append(served_rate.processor / reference.processor)
            print(
                f"round {number}: predict {reference.pictures:.1f} pictures/s, {reference.processor:.1f} s CPU/1000; "
                f"serve {served_rate.pictures:.1f} pictures/s, {served_rate.processor:.1f} s CPU/1000; "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
        if ratios:
            print(f"ratio of rates: median {median(ratios):.3f}; of processor time: median {median(costs):.3f}")
        part = given.requests // SAMPLES
        for number in range(SAMPLES if part else 0):
            _, found = load(server.url, process, islice(cycle(bodies), part))
            statuses += found
            print(f"{(number + 1) * part} requests: {process.memory_info().rss / 2**20:.0f} MB", flush=True)
    print(f"statuses: {dict(statuses)}")


if __name__ == "__main__":
    main()
