"""Mutated files: every one gives a result or a one-sentence refusal, and none a crash."""

import multiprocessing
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, NoReturn

import numpy as np
import pytest

from busi_tune import images
from busi_tune.errors import ImageError
from commands import judge, outcome
from hostile import mutated, mutated_model, seeds
from small_export import small_model, write_export

FILES = 2000
MOST_SECONDS = 2
MOST_BYTES = 500_000_000


class TooLong(BaseException):
    """Not an Exception, so that no handler mistakes it for an unreadable image."""


def too_long(*_: object) -> NoReturn:
    raise TooLong(f"more than {MOST_SECONDS} s")


def as_an_audit_reads(path: Path, size: int) -> images.Pixels:
    return images.resized(images.inspect(path.read_bytes())[1], size)


def read_all(folder: str, results: "Queue[tuple[int, int, list[str]]]") -> None:
    """Runs in a child process: counts images read and refused, and lists all other outcomes."""
    read, refused, odd = 0, 0, []
    signal.signal(signal.SIGPROF, too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    originals, generator, path = seeds(), np.random.default_rng(1), Path(folder, "image.png")
    for number in range(FILES):
        path.write_bytes(mutated(originals[number % len(originals)], generator))
        answers: list[bytes | str] = []
        for way in (images.read, as_an_audit_reads):
            # Processor time, so that the test passes on a busy machine.
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                answers.append(way(path, 64).tobytes())
            except ImageError as error:
                answers.append(str(error))
            except (Exception, TooLong) as error:  # noqa: BLE001 - whatever else comes out is what the test looks for
                odd.append(f"{number}: {error!r}")
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(set(answers)) > 1:
            odd.append(f"{number}: an audit reads it otherwise")
        first = next(iter(answers), None)
        read += isinstance(first, bytes) and len(first) == 64 * 64 * 3
        refused += isinstance(first, str) and bool(first.strip())
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    if grown > MOST_BYTES:
        odd.append(f"{grown} bytes more at the peak")
    results.put((read, refused, odd))


def in_a_process(work: Callable[..., None], *arguments: object) -> Any:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    return results.get(timeout=10)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    read, refused, odd = in_a_process(read_all, str(tmp_path))
    assert odd == []
    assert read + refused == FILES
    assert min(read, refused) > FILES / 10


def test_the_unchanged_files_are_read(tmp_path: Path) -> None:
    for number, data in enumerate(seeds()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        assert images.read(path, 16).shape == (16, 16, 3)


@dataclass
class Place:
    """A folder with a certified export in which commands run, and a folder for their output."""

    folder: Path
    export: Path
    report: Path

    def predict(self, *arguments: str) -> str:
        """The outcome of a command, which must write nothing but its output."""
        before = contents(self.folder)
        found = judge(outcome(["predict", *arguments, "--jsonl"], self.folder, self.report, patience=500))
        assert contents(self.folder) == before
        return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "here").mkdir()
    export = write_export(tmp_path / "here" / "export", {"model.onnx": small_model()})
    (tmp_path / "here" / "image.png").write_bytes(seeds()[0])
    return Place(tmp_path / "here", export, tmp_path / "report")


@pytest.mark.slow
def test_mutated_models_are_used_or_refused(place: Place) -> None:
    original, generator = (place.export / "model.onnx").read_bytes(), np.random.default_rng(1)
    found: Counter[str] = Counter()
    for number in range(25):
        (place.folder / "elsewhere.onnx").write_bytes(mutated_model(original, generator))
        found[place.predict("elsewhere.onnx", "image.png", "--allow-unverified")] += 1
        if number < 5:
            place.export.joinpath("model.onnx").write_bytes(mutated_model(original, generator))
            assert place.predict("export", "image.png") == "refusal"
    assert set(found) == {"answer", "refusal"}


@pytest.mark.slow
def test_mutated_images_are_answered_or_refused(place: Place) -> None:
    originals, generator = seeds(), np.random.default_rng(0)
    found: Counter[str] = Counter()
    for number in range(30):
        (place.folder / "image.png").write_bytes(mutated(originals[number % len(originals)], generator))
        found[place.predict("export", "image.png")] += 1
    assert set(found) == {"answer", "row with an error"}
