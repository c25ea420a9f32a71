"""Time of each part of an export.

    python tests/benchmarks/export_time.py --run RUN [--data DIR]

The parts are those of `busi-tune export RUN`, in the same order. All files go to a temporary folder. Wall time depends
on the load of the machine; processor time, summed over the threads, hardly does.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busi_tune import pipeline
from busi_tune.export import assembly, resize
from busi_tune.export.draft import Draft
from busi_tune.export.exporter import certify
from busi_tune.export.graphs import folded
from busi_tune.export.guard import guard_graph
from busi_tune.export.parity import WAYS, Shown
from busi_tune.export.source import Source, fit, reference_of
from busi_tune.export.variants import guard_result
from busi_tune.export_options import ExportOptions
from busi_tune.progress import Silent
from busi_tune.training import exportable

FIRST = dict([*WAYS.items()][:1])


@contextmanager
def part(name: str) -> Iterator[None]:
    """Measures a part and prints its row."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    print(f"| {name} | {time.perf_counter() - wall:.1f} | {time.process_time() - processor:.1f} |", flush=True)


def export(run: Path, data: Path | None, place: Path) -> None:
    """Runs the parts of an export."""
    with part("reading the images and the run"):
        source = Source.of(run, pipeline.run_data(run, data, Silent()), Silent())
        test = source.pictures("test")
    with part("PyTorch's exporter (a part of the next row, once more)"):
        folded(exportable.to_onnx(source.model, source.size))
    with part("exporter, temperature and guard, on validation and training images"):
        fitted = fit(source, None)
    shown = Shown.of(test, source.size)
    with part(f"PyTorch in float64 on {len(test)} test images, in float32 on a few"):
        reference, uncalibrated = reference_of(fitted.model, shown, source.labels("test"))
    draft = Draft(place, source, ExportOptions(), fitted, shown, reference, uncalibrated)
    guard = guard_graph(fitted.guard)
    with part(f"ONNX Runtime, images of the network's size, {len(test)} in one way"):
        small = assembly.assemble(resize.ready(source.size), fitted.network, guard)
        certify(draft, "ready.onnx", small, shown.resized(), FIRST)
    with part(f"ONNX Runtime, {len(test)} images in one way, a few in {len(WAYS) - 1} others"):
        whole = assembly.assemble(resize.any_size(source.size), fitted.network, guard)
        made = certify(draft, "model.onnx", whole, shown, WAYS)
    with part("the guard on altered images"):
        guard_result(place / "ready.onnx", fitted.guard, source, made.guard)
    print(f"passed: {made.certificate['passed']}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    print("| part | seconds | processor seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place, part("all"):
        export(arguments.run, arguments.data, Path(place))


if __name__ == "__main__":
    main()
