"""Exports of every family of torchvision's classifiers; small families are also trained, verified and used."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from architectures import SMALLEST, families, whole_way
from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.errors import ConfigError
from busi_tune.export import assembly, quantisation
from busi_tune.export.graphs import folded
from busi_tune.export.parity import FACTOR, distance
from busi_tune.progress import Silent
from busi_tune.training import exportable
from busi_tune.training.exportable import ExportableModel, nudged
from busi_tune.training.model import check_model, untrained
from busi_tune.training.run_folder import read_identity

pytestmark = pytest.mark.slow

# Families too slow for every test run; all_architectures.py trains, exports and verifies them.
LARGE = ("alexnet", "convnext", "densenet", "inception", "maxvit", "swin_transformer", "vgg", "vision_transformer")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few phantoms."""
    folder = tmp_path_factory.mktemp("few") / "data"
    folder.mkdir()
    make_phantoms(folder, Silent(), {"benign": 10, "malignant": 10, "normal": 10}, seed=1)
    return folder


def test_every_family_has_a_representative() -> None:
    found = families()
    assert sorted(SMALLEST) == sorted(found), (
        "name the smallest member of a new family in tests/support/architectures.py"
    )
    assert all(arch in found[name] for name, (arch, _) in SMALLEST.items())


def moved(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph with one number of a tensor changed by a thousandth of the tensor's standard deviation."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    (tensor,) = (entry for entry in made.graph.initializer if entry.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += np.float32(1e-3 * values.std())
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return made


def check_tensors(graph: onnx.ModelProto, expected: Mapping[str, NDArray[np.generic]]) -> None:
    """Checks that the tensors are the expected ones, and that a change in the largest one is noticed.

    Exporters often transpose the largest tensor.
    """
    assert assembly.foreign_tensors(graph, expected) == []
    largest = max(expected, key=lambda name: expected[name].size)
    assert assembly.foreign_tensors(moved(graph, largest), expected) == [largest]


@pytest.mark.parametrize("family", LARGE)
def test_a_large_family_is_exported_with_its_own_weights(family: str, tiny: Config) -> None:
    arch, size = SMALLEST[family]
    config = tiny.replace(arch=arch, image_size=size)
    model = ExportableModel(untrained(config, 3), config.mean, config.std).eval()
    network = folded(exportable.to_onnx(model, size))
    check_tensors(onnx.load_from_string(network), exportable.tensors(model))
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    exact = exportable.computed(model, pixels, "float64").logits
    errors = [
        distance(exportable.computed(each, pixels, "float32").logits, exact) for each in (model, nudged(model, 0))
    ]
    assert distance(quantisation.logits(network, pixels), exact) <= FACTOR * max(errors)


@pytest.mark.parametrize("family", sorted(set(SMALLEST) - set(LARGE)))
def test_a_small_family_goes_the_whole_way(family: str, few: Path, tmp_path: Path, tiny: Config) -> None:
    arch, size = SMALLEST[family]
    whole_way(few, tmp_path, tiny.replace(arch=arch, image_size=size, epochs=2, batch_size=8))
    graph = onnx.load(tmp_path / "export" / "model.onnx")
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    model = exportable.exportable_model(tmp_path / "run", read_identity(tmp_path / "run"))
    model.temperature.fill_(float(facts["temperature"]))
    check_tensors(graph, exportable.tensors(model))


def test_a_tensor_beside_the_graph_is_foreign(few: Path, tmp_path: Path, tiny: Config) -> None:
    config = tiny.replace(arch="squeezenet1_1", epochs=2, batch_size=8)
    whole_way(few, tmp_path, config)
    graph = onnx.load(tmp_path / "export" / "model.onnx")
    model = exportable.exportable_model(tmp_path / "run", read_identity(tmp_path / "run"))
    name = "model.classifier.1.weight"
    expected = {name: exportable.tensors(model)[name]}
    assert assembly.foreign_tensors(graph, expected) == []
    # The right tensor stays in the file, but the network computes with another one.
    graph.graph.initializer.append(
        numpy_helper.from_array(expected[name].astype(np.float32) * np.float32(1.001), "other")
    )
    for node in graph.graph.node:
        for place, given in enumerate(node.input):
            node.input[place] = "other" if given == name else given
    assert assembly.foreign_tensors(graph, expected) == [name]


@pytest.mark.parametrize("arch", ["vit_h_14", "regnet_y_128gf"])
def test_a_model_that_no_file_holds_is_refused_before_training(arch: str) -> None:
    with pytest.raises(ConfigError, match=rf"{arch} has 2\.[56] GB of weights, .* choose a smaller --arch\.$"):
        check_model(Config(arch=arch, weights="none", image_size=224), Silent())
