"""Many mutated models and images as inputs of `predict`: counts of outcomes, slowest case and largest memory.

Seconds are of processor time.

    PYTHONPATH=tests/support python tests/benchmarks/hostile_input.py --models 1000 --images 1000 [EXPORT...]

Without an EXPORT, the tiny model of the tests is mutated. Several EXPORTs take turns.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import commands
import hostile
from small_export import small_model, write_export

MOST_SECONDS = 5
AT_ONCE = 20


def report(what: str, outcomes: Iterator[commands.Outcome]) -> bool:
    """Prints the outcomes of the commands; returns whether all are good."""
    verdicts: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    for number, found in enumerate(outcomes):
        verdict = commands.judge(found)
        if found.seconds > MOST_SECONDS:
            verdict = f"{verdict}, after {found.seconds:.1f} s"
        if verdict not in {"answer", "row with an error", "refusal"}:
            print(f"{what} {number}: {verdict}", flush=True)
        verdicts[verdict if len(verdict) < 40 else "FAILED"] += 1
        slowest, largest = max(slowest, found.seconds), max(largest, found.memory)
    print(f"{what}: {dict(verdicts)}; the slowest {slowest:.2f} s, the largest {largest / 1e6:.0f} MB", flush=True)
    return set(verdicts) <= {"answer", "row with an error", "refusal"}


def run(arguments: list[str], folder: Path) -> commands.Outcome:
    """Runs one command, which must not change the folder."""
    before = snapshot(folder)
    found = commands.outcome(["predict", *arguments, "--jsonl"], folder, folder.parent / "report", patience=600)
    if snapshot(folder) != before:
        sys.exit(f"{arguments} changed the folder: {snapshot(folder) ^ before}")
    return found


def snapshot(folder: Path) -> set[tuple[str, int, int]]:
    """Name, size and modification time of each file."""
    return {(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def models(
    count: int, seed: int, folder: Path, originals: list[bytes], write: Callable[[bytes], list[str]]
) -> Iterator[commands.Outcome]:
    """The outcomes of mutated models."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        yield run(write(hostile.mutated_model(originals[number % len(originals)], generator)), folder)


def pictures(count: int, seed: int, folder: Path) -> Iterator[commands.Outcome]:
    """The outcomes of mutated images; one command reads a folder of them, and each row is an outcome."""
    generator, originals = np.random.default_rng(seed), hostile.seeds()
    (folder / "mutants").mkdir()
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(count, start + AT_ONCE))
        for number in numbers:
            data = hostile.mutated(originals[number % len(originals)], generator)
            (folder / "mutants" / f"{number % AT_ONCE}.png").write_bytes(data)
        found = run(["sound", "mutants"], folder)
        rows = found.out.splitlines()
        if len(rows) != len(numbers) or found.code not in {0, 1}:
            yield found
            continue
        for row in rows:
            yield dataclasses.replace(found, code=int('"error": ' in row), out=row)


def main() -> None:
    """Runs all, and exits with 1 if any outcome is bad."""
    parser = argparse.ArgumentParser()
    parser.add_argument("exports", nargs="*", type=Path)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "here")
        write_export(folder / "sound", {"model.onnx": small_model()})
        shutil.copytree(folder / "sound", folder / "spoilt")
        (folder / "image.png").write_bytes(hostile.seeds()[0])
        originals = [path.joinpath("model.onnx").read_bytes() for path in options.exports or [folder / "sound"]]

        def from_elsewhere(data: bytes) -> list[str]:
            (folder / "elsewhere.onnx").write_bytes(data)
            return ["elsewhere.onnx", "image.png", "--allow-unverified"]

        def certified(data: bytes) -> list[str]:
            (folder / "spoilt" / "model.onnx").write_bytes(data)
            return ["spoilt", "image.png"]

        # For images, the slowest time is that of a whole folder of twenty.
        well = [
            report("images", pictures(options.images, options.seed, folder)),
            report("models beside a certificate", models(options.models, options.seed, folder, originals, certified)),
            report("models from elsewhere", models(options.models, options.seed, folder, originals, from_elsewhere)),
        ]
    sys.exit(not all(well))


if __name__ == "__main__":
    main()
