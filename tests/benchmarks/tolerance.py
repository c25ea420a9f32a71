"""Verification of 200 correct and 200 wrong exports of small networks: plain, tiny, huge and degenerate ones.

    python tests/benchmarks/tolerance.py [--arch NAME ...]

Each architecture is trained on phantoms for 0, 1, 2 and 3 epochs. Each of the four states has five heads: as trained;
with logits of 1e-6, and of 1e4; with nearly constant answers; with constant answers. Each of these 20 exports is
verified (those as trained in all ways), and so is one mutant of each. Correct exports must pass, and mutants fail. The
graph is exported once, and its weights are then replaced; for each architecture, one such file is compared with a new
export.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from busi_tune import images
from busi_tune.config import Config
from busi_tune.data.dataset import Part
from busi_tune.data.phantoms import make_phantoms
from busi_tune.evaluation.metrics import Labels
from busi_tune.export import assembly, resize
from busi_tune.export.graphs import folded
from busi_tune.export.guard import fit_guard, guard_graph
from busi_tune.export.parity import FACTOR, WAYS, Shown, Verification, Way, verify
from busi_tune.export.source import reference_of
from busi_tune.progress import Silent
from busi_tune.training.batches import to_device
from busi_tune.training.exportable import ExportableModel, last_layer, tensors, to_onnx
from busi_tune.training.fit import train_epoch
from busi_tune.training.state import TrainingState

ARCHITECTURES = (
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "mobilenet_v2",
    "resnet18",
    "regnet_y_400mf",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
)
SIZE = 32
EPOCHS = 3
HEADS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "as trained": lambda _weight, _bias: None,
    "logits of 1e-6": lambda weight, bias: (weight.mul_(1e-6), bias.mul_(1e-6)),
    "logits of 1e4": lambda weight, bias: (weight.mul_(1e4), bias.mul_(1e4)),
    "nearly constant": lambda weight, _bias: weight.mul_(1e-3),
    "constant": lambda weight, _bias: weight.zero_(),
}


@dataclass(frozen=True)
class Data:
    """Phantoms at the network's size, and a part of them as test pictures."""

    train: Part
    shown: Shown
    labels: Labels


@dataclass
class Count:
    """The verification results of correct exports, or of one kind of mutant."""

    passed: int = 0
    failed: int = 0
    beyond_own: int = 0
    ratios: list[float] = field(default_factory=list)

    def add(self, passed: bool, found: Verification) -> None:
        """Adds one result."""
        self.passed, self.failed = self.passed + passed, self.failed + (not passed)
        self.beyond_own += found.max_error > FACTOR * found.pytorch_float32_error
        self.ratios.append(found.max_error / found.tolerance if found.tolerance else 0.0)

    def __str__(self) -> str:
        return (
            f"{self.passed} passed, {self.failed} failed; error of {min(self.ratios):.2g} to {max(self.ratios):.2g} "
            f"tolerances, {self.beyond_own} beyond {FACTOR:.0f} times PyTorch's own error"
        )


def data_in(folder: Path) -> Data:
    """Phantoms of three classes."""
    make_phantoms(folder, Silent(), {"benign": 16, "malignant": 16, "normal": 16}, seed=1)
    paths = sorted(path for path in images.walk(folder) if not images.is_mask(path))
    names = sorted({path.parent.name for path in paths})
    labels = np.array([names.index(path.parent.name) for path in paths])
    pictures = [images.picture(path) for path in paths]
    pixels = np.stack([images.resize(picture, SIZE) for picture in pictures])
    part = Part(pixels, np.arange(len(paths)), labels, tuple(str(path) for path in paths))
    return Data(part, Shown.of(pictures[::2], SIZE), labels[::2])


def trained(arch: str, data: Data) -> Iterator[tuple[int, ExportableModel]]:
    """An architecture after 0 to `EPOCHS` epochs; all states are the same model object."""
    config = Config(arch=arch, weights="none", image_size=SIZE, batch_size=12, device="cpu", precision="float32")
    state = TrainingState.start(config, 3)
    given = to_device(data.train, "cpu", mean=config.mean, std=config.std)
    for epoch in range(EPOCHS + 1):
        if epoch:
            train_epoch(state, given, torch.ones(3), epoch)
        model = state.model.eval().to(memory_format=torch.contiguous_format)
        yield epoch, ExportableModel(model, config.mean, config.std, temperature=1.3).eval()


def replaced(graph: onnx.ModelProto, values: dict[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """The graph with other weights."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    for tensor in made.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].copy(order="C"), tensor.name))
    return made


def moved(graph: onnx.ModelProto, model: ExportableModel, number: int) -> onnx.ModelProto:
    """Changes one weight of one layer by a thousandth of the layer's standard deviation."""
    values = {name: value for name, value in tensors(model).items() if value.dtype == np.float32 and value.ndim}
    name = [*values][number * 7919 % len(values)]
    value = values[name].astype(np.float32)
    scale = float(value.std() or np.abs(value).max() or 1.0)
    place = np.random.default_rng(number).integers(value.size)
    # At least to the next float: for nearly equal weights, a thousandth of their deviation may be less.
    value.flat[place] = max(
        value.flat[place] + np.float32(1e-3 * scale), np.nextafter(value.flat[place], np.float32(np.inf))
    )
    return replaced(graph, {name: value})


def bgr(graph: onnx.ModelProto, _model: ExportableModel, _number: int) -> onnx.ModelProto:
    """The channels are in the wrong order after the resize."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    readers = [node for node in made.graph.node if "pixels" in node.input and node.output[0] != "pixels"]
    for node in readers:
        node.input[list(node.input).index("pixels")] = "swapped"
    made.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    place = min(list(made.graph.node).index(node) for node in readers)
    made.graph.node.insert(place, helper.make_node("Gather", ["pixels", "order"], ["swapped"], axis=1))
    return made


def without_mean(graph: onnx.ModelProto, model: ExportableModel, _number: int) -> onnx.ModelProto:
    """The mean is missing."""
    return replaced(graph, {"pixel_mean": np.zeros_like(model.pixel_mean.numpy())})


def without_temperature(graph: onnx.ModelProto, _model: ExportableModel, _number: int) -> onnx.ModelProto:
    """The temperature is missing."""
    return replaced(graph, {"temperature": np.array(1, dtype=np.float32)})


def rescaled(graph: onnx.ModelProto, _model: ExportableModel, _number: int) -> onnx.ModelProto:
    """The logits are multiplied by 0.999, although all tensors are correct."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    last = next(node for node in made.graph.node if node.output[0] == "logits")
    last.output[0] = "raw"
    made.graph.initializer.append(numpy_helper.from_array(np.array(0.999, dtype=np.float32), "factor"))
    place = list(made.graph.node).index(last) + 1
    made.graph.node.insert(place, helper.make_node("Mul", ["raw", "factor"], ["logits"]))
    return made


Mutant = Callable[[onnx.ModelProto, ExportableModel, int], onnx.ModelProto]
MUTANTS: tuple[Mutant, ...] = (moved, moved, bgr, without_mean, without_temperature, rescaled)


def mutant_of(number: int, name: str) -> Mutant:
    """The mutant of a case. Constant models get no BGR mutant, because float32 cannot show their channel order."""
    chosen = MUTANTS[number % len(MUTANTS)]
    return moved if chosen is bgr and name.endswith("constant") else chosen


def head_tensors(model: ExportableModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the last layer."""
    state = last_layer(model.model).state_dict()
    return state["weight"], state["bias"]


def assembled(model: ExportableModel, data: Data) -> onnx.ModelProto:
    """The graph of a model, with a guard on random features."""
    width = head_tensors(model)[0].shape[1]
    noise = np.random.default_rng(0).normal(size=(len(data.train.images), width)).astype(np.float32)
    guard = guard_graph(fit_guard(data.train.images, noise, data.train.images, noise))
    return assembly.assemble(resize.any_size(SIZE), folded(to_onnx(model, SIZE)), guard)


@contextmanager
def head_of(model: ExportableModel, head: str) -> Iterator[None]:
    """Gives the model another head until the block ends."""
    weight, bias = head_tensors(model)
    kept = weight.clone(), bias.clone()
    with torch.no_grad():
        HEADS[head](weight, bias)
        yield
        weight.copy_(kept[0])
        bias.copy_(kept[1])


def examine(arch: str, data: Data, place: Path, counts: dict[str, Count]) -> None:
    """Verifies all exports and mutants of one architecture."""
    base: onnx.ModelProto | None = None
    cases = ((epoch, model, head) for epoch, model in trained(arch, data) for head in HEADS)
    for number, (epoch, model, head) in enumerate(cases):
        base = base or assembled(model, data)
        if number == EPOCHS * len(HEADS):
            same = assembled(model, data).SerializeToString() == replaced(base, tensors(model)).SerializeToString()
            print(f"{arch}: {'the same file as' if same else 'ANOTHER FILE THAN'} an export's")
        with head_of(model, head):
            case = number, f"{arch}, {epoch} epochs, {head}"
            one_case(replaced(base, tensors(model)), model, (data, place), counts, case)


def one_case(
    graph: onnx.ModelProto,
    model: ExportableModel,
    given: tuple[Data, Path],
    counts: dict[str, Count],
    case: tuple[int, str],
) -> None:
    """Verifies a correct export, and a mutant of it in one way."""
    (data, place), (number, name) = given, case
    reference, _ = reference_of(model, data.shown, data.labels)

    def check(how: Mapping[str, Way], graph: onnx.ModelProto) -> tuple[bool, Verification]:
        facts = {"classes": ["benign", "malignant", "normal"], "image_size": str(SIZE)}
        place.write_bytes(assembly.finish(graph, facts))
        found = verify(place, data.shown, data.labels, reference, Silent(), how=how).result
        return found.passed and not assembly.foreign_tensors(graph, tensors(model)), found

    first = dict([*WAYS.items()][:1])
    good, found = check(WAYS if name.endswith("as trained") else first, graph)
    counts["correct exports"].add(good, found)
    if not good:
        print(f"failed: {name}: {found.reasons}", flush=True)
    mutant = mutant_of(number, name)
    passed, found = check(first, mutant(graph, model, number))
    counts[mutant.__name__].add(passed, found)
    if passed:
        print(f"passed: {name}, {mutant.__name__}", flush=True)


def main() -> None:
    """Prints the counts of passed and failed exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    counts: dict[str, Count] = defaultdict(Count)
    with tempfile.TemporaryDirectory() as place:
        data = data_in(Path(place) / "data")
        for arch in arguments.arch:
            examine(arch, data, Path(place) / "model.onnx", counts)
            print(f"\n{arch} done, so far:")
            for name, count in counts.items():
                print(f"{name:20} {count}", flush=True)


if __name__ == "__main__":
    main()
