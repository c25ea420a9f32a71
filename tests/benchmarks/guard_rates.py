"""The input guard of a run: its detection rates, its false alarms and its cost.

    python tests/benchmarks/guard_rates.py --data DIR --run RUN [--halves 50]

The guard is fitted like that of an export: to the training images, with limits from the validation images. Its inputs
are then the test images, unchanged and altered, and photographs. In a second part, validation and test images are
pooled and split by groups into random halves, `--halves` times: one half gives the limits, the other is the input.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from busi_tune import pipeline
from busi_tune.data.dataset import Dataset
from busi_tune.export.detection import strange_images
from busi_tune.export.guard import BATCH, Floats, Guard, fit_guard, guard_graph
from busi_tune.images import Pixels
from busi_tune.progress import Silent
from busi_tune.training import exportable
from busi_tune.training.run_folder import read_identity

# isort: split
# After busi_tune, which disables ONNX Runtime's telemetry.
from onnxruntime import InferenceSession, SessionOptions


def features(network: InferenceSession, pixels: Pixels) -> Floats:
    """The network's features (n, features) of images (n, size, size, 3)."""
    batches = np.split(pixels, range(BATCH, len(pixels), BATCH))
    return np.concatenate([network.run(["features"], {"pixels": planes(batch)})[0] for batch in batches])


def planes(pixels: Pixels) -> Pixels:
    """Transposes (n, size, size, 3) to (n, 3, size, size)."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def warned(guard: Guard, pixels: Pixels, of_network: Floats) -> NDArray[np.bool_]:
    """Whether each score of each image exceeds its limit: (images, scores)."""
    session = InferenceSession(guard_graph(guard).SerializeToString())
    return guard.warned(session.run(["guard"], {"pixels": planes(pixels), "features": of_network})[0])


def with_guard(network: bytes, guard: Guard) -> bytes:
    """The network and the guard in one graph."""
    model, part = onnx.load_from_string(network), guard_graph(guard)
    model.graph.node.extend(part.graph.node)
    model.graph.initializer.extend(part.graph.initializer)
    model.graph.output.extend(part.graph.output)
    return bytes(model.SerializeToString())


def milliseconds(models: tuple[bytes, ...], pixels: Pixels, repetitions: int) -> list[float]:
    """The median processor time of a batch on one thread, in milliseconds; the models take turns."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [InferenceSession(model, options) for model in models]
    given = {"pixels": planes(pixels)}
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(repetitions):
        for session, times in zip(sessions, seconds, strict=True):
            start = time.process_time()
            session.run(None, given)
            times.append(time.process_time() - start)
    return [1000 * float(np.median(times[2:])) for times in seconds]


def print_rates(guard: Guard, network: InferenceSession, test: Pixels) -> None:
    """Prints, for each kind of image, the share with any warning and with each warning."""
    print(f"\n{'':24}{'images':>8}{'any':>12}" + "".join(f"{score.name:>12}" for score in guard.scores))
    for kind, pixels in strange_images(test):
        each = warned(guard, pixels, features(network, pixels))
        shares = [each.any(axis=1).mean(), *each.mean(axis=0)]
        print(f"{kind:24}{len(pixels):8}" + "".join(f"{share:12.3f}" for share in shares))


def print_halves(data: Dataset, size: int, network: InferenceSession, repetitions: int) -> None:
    """Prints false alarms and detection rates over random halves of the validation and test images."""
    train, *rest = (data.part(name, size, Silent()) for name in ("train", "validation", "test"))
    pixels = np.concatenate([part.pixels() for part in rest])
    groups = np.concatenate([data.split.rows(name)["group"].to_numpy() for name in ("validation", "test")])
    known, of_known, of_network = train.pixels(), features(network, train.pixels()), features(network, pixels)
    altered = {name: values for name, values in strange_images(pixels) if len(values) in (len(pixels), 2 * len(pixels))}
    of_altered = {name: features(network, values) for name, values in altered.items()}
    shares: dict[str, list[float]] = {name: [] for name in altered}
    for repetition in range(repetitions):
        names = np.random.default_rng(repetition).permutation(np.unique(groups))
        held_out = np.isin(groups, names[::2])
        guard = fit_guard(known, of_known, pixels[held_out], of_network[held_out])
        for name, values in altered.items():
            asked = np.tile(~held_out, len(values) // len(pixels))
            shares[name].append(float(warned(guard, values[asked], of_altered[name][asked]).any(axis=1).mean()))
    print(f"\n{repetitions} random halves{'':10}{'mean':>8}{'5 %':>8}{'95 %':>8}{'lowest':>8}{'highest':>8}")
    for name, measured in shares.items():
        row = (np.mean(measured), *np.quantile(measured, (0.05, 0.95)), min(measured), max(measured))
        print(f"{name:26}" + "".join(f"{value:8.3f}" for value in row))


def main() -> None:
    """Fits the guard, applies it and prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--halves", type=int, default=50)
    options = parser.parse_args()
    identity = read_identity(options.run)
    size = identity.config.image_size
    data = pipeline.run_data(options.run, options.data, Silent())
    graph = exportable.to_onnx(exportable.exportable_model(options.run, identity), size)
    network = InferenceSession(graph)
    train, held_out, test = (data.part(name, size, Silent()).pixels() for name in ("train", "validation", "test"))
    of_train, of_held_out = features(network, train), features(network, held_out)
    start = time.perf_counter()
    guard = fit_guard(train, of_train, held_out, of_held_out)
    took = time.perf_counter() - start
    print(f"{identity.config.arch} at {size}: {len(train)} training and {len(held_out)} validation images")
    print(f"fitted in {took:.2f} s; {len(guard_graph(guard).SerializeToString()) / 1000:.0f} kB")
    for score in guard.scores:
        print(f"{score.name:12} limit {score.limit:8.3f}   expected false alarms {score.false_alarms:.4f}")
    for batch, repetitions in ((1, 60), (32, 6)):
        alone, both = milliseconds((graph, with_guard(graph, guard)), test[:batch], repetitions)
        print(
            f"batch {batch:2}: network {alone:.2f} ms, with the guard {both:.2f} ms ({both / alone - 1:+.1%})",
            flush=True,
        )
    print_rates(guard, network, test)
    if options.halves:
        print_halves(data, size, network, options.halves)


if __name__ == "__main__":
    main()
