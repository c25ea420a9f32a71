"""Class activation maps: the networks that have them, their verification, and wrong maps, which must fail."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

from architectures import SMALLEST
from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.errors import ConfigError, RunError
from busi_tune.export.draft import Draft
from busi_tune.export.exporter import certify
from busi_tune.export.graphs import folded
from busi_tune.export.map_parity import compare_recorded
from busi_tune.export.parity import WAYS, distance
from busi_tune.export.source import Source
from busi_tune.export.verification import check_again
from busi_tune.export_options import ExportOptions
from busi_tune.images import Pixels
from busi_tune.progress import Silent
from busi_tune.results import VerificationFile
from busi_tune.search_options import SearchOptions
from busi_tune.training import exportable
from busi_tune.training.class_maps import MappedModel, check_maps, traced
from busi_tune.training.exportable import ExportableModel
from busi_tune.training.model import untrained
from exported import MODELS, Exported, linked

pytest_plugins = ["exported"]
# All tests but the refusals build real networks.
pytestmark = pytest.mark.slow
OPTIONS = ExportOptions(cam=True, float16=True, max_drop=0.5, network_only="dynamic")
ONE_WAY = dict(list(WAYS.items())[:1])
WITHOUT = {"alexnet", "convnext", "maxvit", "mobilenetv3", "vgg", "vision_transformer"}


def settled(model: ExportableModel, pixels: Pixels) -> ExportableModel:
    """The model with the statistics of `pixels` in its batch normalisations. Otherwise, all images would look alike."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return model.eval()


@pytest.mark.parametrize("family", sorted(set(SMALLEST) - WITHOUT))
def test_the_mean_of_a_map_is_the_logit(family: str, tiny: Config) -> None:
    arch, size = SMALLEST[family]
    size = max(size, 160 if family == "inception" else 64)
    config = tiny.replace(arch=arch, image_size=size)
    check_maps(config)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    plain = settled(ExportableModel(untrained(config, 3), config.mean, config.std, temperature=1.5), pixels)
    model = MappedModel(traced(plain.model), config.mean, config.std, temperature=1.5).eval()
    assert set(exportable.tensors(model)) == set(exportable.tensors(plain))
    found, expected = (exportable.computed(each, pixels, "float64") for each in (model, plain))
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-9, atol=1e-12)
    assert expected.maps.size == 0
    assert found.maps.shape[:2] == (2, 3)
    assert min(found.maps.shape[2:]) > 1
    np.testing.assert_allclose(found.maps.mean(axis=(2, 3)), found.logits, rtol=1e-9, atol=1e-9)
    # The values of a map differ between places.
    assert found.maps.std(axis=(2, 3)).min() > 1e-3
    with torch.inference_mode():
        features, same = (each(torch.from_numpy(pixels).permute(0, 3, 1, 2))[1] for each in (model, plain))
    torch.testing.assert_close(features, same)


@pytest.mark.parametrize("family", sorted(WITHOUT))
def test_networks_without_exact_maps_are_refused(family: str) -> None:
    arch, size = SMALLEST[family]
    with pytest.raises(ConfigError) as refused:
        check_maps(Config(arch=arch, weights="none", image_size=size))
    assert str(refused.value) == (
        f"cam needs a network that ends in global average pooling and one linear layer, and {arch} does not; export it "
        "without --cam, or train another --arch."
    )


def test_onnx_has_the_maps_of_a_network_that_ends_in_a_convolution(tiny: Config) -> None:
    config = tiny.replace(arch="squeezenet1_1", image_size=64)
    model = MappedModel(traced(untrained(config, 3)), config.mean, config.std, temperature=0.7).eval()
    network = folded(exportable.to_onnx(model, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    exact = exportable.computed(model, pixels, "float64")
    session = InferenceSession(network, providers=["CPUExecutionProvider"])
    logits, maps = session.run(["logits", "cam"], {"pixels": pixels.transpose(0, 3, 1, 2).copy()})
    assert maps.dtype == np.float32
    assert distance(maps, exact.maps) < 1e-4 * np.abs(exact.maps).max()
    assert distance(maps.mean(axis=(2, 3)), logits) < 1e-4 * np.abs(exact.maps).max()
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(network).graph.initializer}
    assert all(held[name].tobytes() == array.tobytes() for name, array in exportable.tensors(model).items())


@dataclass(frozen=True)
class Mapped:
    """A run at 64 pixels, whose maps have 2 x 2 cells, its export with maps, and a draft of that export."""

    data: Path
    run: Path
    folder: Path
    certificate: VerificationFile
    draft: Draft

    def model(self) -> onnx.ModelProto:
        """The exported model."""
        return onnx.load(self.folder / "model.onnx")


@pytest.fixture(scope="module")
def mapped(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    place = tmp_path_factory.mktemp("mapped")
    data = place / "data"
    data.mkdir()
    make_phantoms(data, Silent(), {"benign": 10, "malignant": 10, "normal": 10}, seed=1)
    pipeline.baseline(data, place / "run", tiny.replace(image_size=64, epochs=1, batch_size=8), Silent())
    certificate = pipeline.export(place / "run", place / "export", data, Silent(), options=OPTIONS)
    source = Source.of(place / "run", pipeline.run_data(place / "run", data, Silent()), Silent()).with_maps()
    (place / "draft").mkdir()
    draft = Draft.begin(place / "draft", source, OPTIONS)
    return Mapped(data, place / "run", place / "export", certificate, draft)


def test_an_export_has_maps_that_are_pytorchs(mapped: Mapped) -> None:
    draft = mapped.draft
    assert draft.reference.maps is not None
    for name, shown in (("model.onnx", draft.shown), ("model-64.onnx", draft.shown.resized())):
        entry = mapped.certificate["models"][name]
        figures = entry["cam"]
        assert entry["passed"]
        assert figures["shape"] == [3, 2, 2]
        assert set(figures["errors"]) == set(entry["errors"])
        assert figures["max_error"] is not None
        assert figures["tolerance"] is not None
        assert figures["max_error"] <= figures["tolerance"]
        session = InferenceSession(mapped.folder / name, providers=["CPUExecutionProvider"])
        for number, picture in enumerate(shown.pictures[:3]):
            logits, maps = session.run(["logits", "cam"], {"images": picture[None]})
            assert maps.dtype == np.float32
            assert distance(maps[0], draft.reference.maps.maps[number]) <= figures["tolerance"]
            assert distance(maps.mean(axis=(2, 3)), logits) <= figures["tolerance"]
    facts = {entry.key: entry.value for entry in mapped.model().metadata_props}
    assert "the mean over h and w is the logit" in facts["cam"]
    card = (mapped.folder / "README.md").read_text()
    assert "`cam`, float32 (batch, 3, 2, 2)" in " ".join(card.split())


def test_smaller_models_and_the_bare_network_have_no_maps(mapped: Mapped) -> None:
    for name in ("model.float16.onnx", "network.onnx"):
        model = onnx.load(mapped.folder / name)
        assert "cam" not in {value.name for value in model.graph.output}
        assert "cam" not in {entry.key for entry in model.metadata_props}
        assert "cam" not in mapped.certificate["models"][name]


def test_verify_compares_maps_without_pytorch(mapped: Mapped) -> None:
    found = check_again(mapped.folder, mapped.data, Silent())
    assert found["models"]["model.onnx"]["cam"] == mapped.certificate["models"]["model.onnx"]["cam"]
    assert np.array(found["probe_cam"]).shape == (2, 3, 2, 2)


def appended(model: onnx.ModelProto, kind: str, *tensors: onnx.TensorProto, **attributes: Any) -> onnx.ModelProto:
    """The model with another operation after its output `cam`."""
    for node in model.graph.node:
        node.output[:] = ["cam_before" if name == "cam" else name for name in node.output]
    inputs = ["cam_before", *(tensor.name for tensor in tensors)]
    model.graph.node.append(helper.make_node(kind, inputs, ["cam"], **attributes))
    model.graph.initializer.extend(tensors)
    return model


def constant(name: str, value: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=kind), name)


def other_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The maps are in another order of the classes."""
    return appended(model, "Gather", constant("order", [1, 0, 2], np.int64), axis=1)


def transposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Height and width are exchanged. This changes no mean."""
    return appended(model, "Transpose", perm=[0, 1, 3, 2])


def mirrored(model: onnx.ModelProto) -> onnx.ModelProto:
    """Left and right are exchanged. This changes no mean."""
    return appended(model, "Gather", constant("back", [1, 0], np.int64), axis=3)


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """All cells of a map have the mean of the map."""
    model = appended(model, "ReduceMean", constant("axes", [2, 3], np.int64), keepdims=1)
    model.graph.node[-1].output[:] = ["average"]
    model.graph.node.append(helper.make_node("Expand", ["average", "extent"], ["cam"]))
    model.graph.initializer.append(constant("extent", [1, 1, 2, 2], np.int64))
    return model


def uncooled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The maps have another temperature than the logits."""
    return appended(model, "Mul", constant("factor", 1.01))


def without_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    """A constant is missing in the maps, as if the bias had been left out."""
    return appended(model, "Add", constant("term", 0.01))


WRONG = [other_order, transposed, mirrored, flat, uncooled, without_bias]


@pytest.mark.parametrize("change", WRONG)
def test_wrong_maps_fail(change: Callable[[onnx.ModelProto], onnx.ModelProto], mapped: Mapped, tmp_path: Path) -> None:
    draft = dataclasses.replace(mapped.draft, staging=tmp_path)
    wrong = change(mapped.model())
    del wrong.metadata_props[:]
    made = certify(draft, "model.onnx", wrong, draft.shown, ONE_WAY).certificate
    assert not made["passed"]
    assert all(" map" in reason for reason in made["reasons"])
    # The check without PyTorch detects it, too.
    figures, probe = mapped.certificate["models"]["model.onnx"]["cam"], mapped.certificate["probe_cam"]
    assert compare_recorded(tmp_path / "model.onnx", draft.shown, draft.reference.logits, figures, probe)


def test_an_export_without_maps_says_nothing_of_them(exported: Exported, tmp_path: Path) -> None:
    folder = linked(exported.folder, tmp_path / "export")
    for name in ("verification.json", "README.md", "labels.json"):
        text = (folder / name).read_text()
        assert '"cam"' not in text
        assert "`cam`" not in text
        assert "probe_cam" not in text
    for name in MODELS:
        model = onnx.load(folder / name)
        assert [value.name for value in model.graph.output] == ["logits", "probabilities", "pixels", "guard"]
        assert "cam" not in {entry.key for entry in model.metadata_props}
    # The same options find this export. With `cam`, the export is another one.
    assert pipeline.export(exported.run, folder, exported.data, Silent()) == exported.certificate
    with pytest.raises(RunError, match=r"holds an export with other options \(cam: None -> True\)"):
        pipeline.export(exported.run, folder, exported.data, Silent(), options=ExportOptions(cam=True))


def test_a_search_whose_best_network_may_have_no_maps_is_refused_before_it_begins(tiny: Config, tmp_path: Path) -> None:
    places = pipeline.Places(tmp_path / "data", tmp_path / "baseline", tmp_path / "study", tmp_path / "export")
    space = tmp_path / "space.toml"
    space.write_text('[arch]\nchoices = ["resnet18", "mobilenet_v3_small"]\n')
    for arch, options in (
        ("mobilenet_v3_small", SearchOptions(trials=1)),
        ("resnet18", SearchOptions(trials=1, space=space)),
    ):
        with pytest.raises(ConfigError, match="one linear layer, and mobilenet_v3_small does not; export it without"):
            pipeline.run_all(places, tiny.replace(arch=arch), options, Silent(), exported=ExportOptions(cam=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["space.toml"]
