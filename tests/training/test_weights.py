"""Files of weights: the whole state of the architecture, plain or wrapped; runs identify a file by its content."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.errors import BusiTuneError, RunError, WeightsError
from busi_tune.search_options import SearchOptions
from busi_tune.training.model import build_model, check_model
from busi_tune.training.runs import saved_state
from recorder import Recorder


def outline(arch: str, **options: Any) -> dict[str, Tensor]:
    """The state dict of torchvision's model with tensors of one stored value, to save memory."""
    with torch.device("cpu" if arch.startswith("regnet") else "meta"):
        state = get_model(arch, weights=None, **options).state_dict()
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def refused(config: Config) -> str:
    """The one-sentence error of the check of weights before training."""
    with pytest.raises(WeightsError) as caught:
        check_model(config, Recorder())
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert config.weights in text
    return text


@pytest.mark.parametrize(
    ("given", "arch", "first"),
    [
        ("resnet34", "resnet18", "layer1.2.conv1.weight"),
        ("resnet101", "resnet50", "layer3.6.conv1.weight"),
        ("wide_resnet101_2", "wide_resnet50_2", "layer3.6.conv1.weight"),
        ("convnext_small", "convnext_tiny", "features.5.9.layer_scale"),
        ("swin_s", "swin_t", "features.5.6.norm1.weight"),
        ("swin_v2_s", "swin_v2_t", "features.5.6.norm1.weight"),
        ("regnet_y_1_6gf", "regnet_y_800mf", ""),
        ("densenet169", "densenet121", ""),
        ("efficientnet_v2_m", "efficientnet_v2_s", ""),
        ("vgg16_bn", "vgg13_bn", ""),
    ],
)
def test_weights_of_a_larger_architecture_are_refused(given: str, arch: str, first: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(outline(given), path)
    text = refused(Config(arch=arch, weights=str(path), image_size=64))
    assert f"do not fit {arch}: " in text
    assert first in text
    if first:
        assert f"tensors, {first}, " in text


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_heads_for_training_alone_may_be_left(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(outline(arch, init_weights=False), path)
    assert any(name.startswith(("aux", "Aux")) for name in outline(arch, init_weights=False))
    said = Recorder()
    check_model(Config(arch=arch, weights=str(path), image_size=96), said)
    assert said.notices == []


@pytest.fixture(scope="module")
def network() -> dict[str, Tensor]:
    """The state dict of torchvision's ResNet18 with 1000 classes."""
    torch.manual_seed(3)
    return dict(get_model("resnet18", weights=None).state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state with a prefix on each name."""
    return {prefix + name: value for name, value in state.items()}


WRAPPERS: dict[str, tuple[str, Callable[[dict[str, Tensor]], object]]] = {
    "module.": ("the prefix module.", lambda s: prefixed(s, "module.")),
    "torch.compile": ("the prefix _orig_mod.", lambda s: prefixed(s, "_orig_mod.")),
    "state_dict": ("the entry state_dict", lambda s: {"state_dict": s, "epoch": 3}),
    "model": ("the entry model", lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}),
    "model_state_dict": ("the entry model_state_dict", lambda s: {"model_state_dict": s, "loss": 0.5}),
    "both": ("the entry state_dict and the prefix module.", lambda s: {"state_dict": prefixed(s, "module.")}),
    "deep": ("the entry checkpoint.model", lambda s: {"checkpoint": {"model": s}}),
    "Lightning": (
        "the entry state_dict and the prefix model.; tensors beside them are not used (criterion.weight)",
        lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(3)}, "callbacks": {}},
    ),
    "Lightning's backbone": (
        "the entry state_dict and the prefix net.backbone.",
        lambda s: {"state_dict": prefixed(s, "net.backbone.")},
    ),
    "arguments": ("the entry model", lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, data="/data")}),
    "moving average": (
        "the entry state_dict",
        lambda s: {"state_dict": s, "state_dict_ema": {name: value + 1 for name, value in s.items()}},
    ),
    "moving average inside": (
        "the prefix model.; tensors beside them",
        lambda s: {**prefixed(s, "ema.module."), **prefixed(s, "model.")},
    ),
}


@pytest.mark.parametrize("form", WRAPPERS)
def test_the_usual_wrappers_are_read_and_named(
    form: str, network: dict[str, Tensor], tmp_path: Path, tiny: Config
) -> None:
    place, wrap = WRAPPERS[form]
    path = tmp_path / "w.pth"
    torch.save(wrap(network), path)
    config = tiny.replace(weights=str(path))
    said = Recorder()
    check_model(config, said)
    assert len(said.notices) == 1
    assert said.notices[0].startswith(f"The weights in {path} were taken out of {place}")
    given = build_model(config, 3).state_dict()
    for name, value in given.items():
        assert name.startswith("fc.") or torch.equal(value, network[name]), name


def test_a_wrapped_network_without_its_head_or_with_another(
    network: dict[str, Tensor], tmp_path: Path, tiny: Config
) -> None:
    path = tmp_path / "w.safetensors"
    body = {name: value for name, value in network.items() if not name.startswith("fc.")}
    for more in ({}, {"fc.0.weight": torch.ones(3, 512), "fc.2.weight": torch.ones(3, 3)}):
        save_file(prefixed({**body, **more}, "encoder."), path)
        given = build_model(tiny.replace(weights=str(path)), 3).state_dict()
        assert all(torch.equal(given[name], value) for name, value in body.items())


def test_two_networks_in_a_file_are_refused(network: dict[str, Tensor], tmp_path: Path, tiny: Config) -> None:
    path = tmp_path / "w.pth"
    torch.save({**prefixed(network, "student."), **prefixed(network, "teacher.")}, path)
    text = refused(tiny.replace(weights=str(path)))
    assert "several networks of resnet18: the prefix student. and the prefix teacher." in text


def test_a_smaller_or_larger_network_in_a_wrapper_is_refused(tmp_path: Path, tiny: Config) -> None:
    path = tmp_path / "w.pth"
    for given, arch in (("resnet34", "resnet18"), ("resnet18", "resnet34")):
        torch.save({"state_dict": prefixed(outline(given), "module.")}, path)
        assert f"do not fit {arch}" in refused(tiny.replace(arch=arch, weights=str(path)))


def quantised(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def spoilt(value: Tensor, one: float) -> Tensor:
    value = value.clone()
    value.view(-1)[7] = one
    return value


SPOILERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda v: spoilt(v, float("nan")), "holds values that are not finite"),
    "infinity": (lambda v: spoilt(v, float("-inf")), "holds values that are not finite"),
    "too large for float32": (lambda v: spoilt(v.double(), 1e300), "holds values that are not finite"),
    "complex": (lambda v: v.to(torch.complex64), "holds numbers of type complex64"),
    "whole numbers": (lambda v: v.to(torch.int8), "holds numbers of type int8"),
    "truth values": (lambda v: v > 0, "holds numbers of type bool"),
    "sparse": (lambda v: v.to_sparse(), "is sparse, not dense"),
    "quantised": (quantised, "is quantised"),
    "without content": (lambda v: v.to("meta"), "has no content: it was saved from the meta device"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("form", SPOILERS)
def test_a_tensor_that_is_no_plain_tensor_of_finite_numbers_is_refused(
    form: str, network: dict[str, Tensor], tmp_path: Path, tiny: Config
) -> None:
    spoil, reason = SPOILERS[form]
    path = tmp_path / "w.pth"
    torch.save({**network, "layer1.0.conv1.weight": spoil(network["layer1.0.conv1.weight"])}, path)
    text = refused(tiny.replace(weights=str(path)))
    assert "layer1.0.conv1.weight" in text
    assert reason in text
    with pytest.raises(WeightsError):
        build_model(tiny.replace(weights=str(path)), 3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_taken(
    kind: torch.dtype, network: dict[str, Tensor], tmp_path: Path, tiny: Config
) -> None:
    path = tmp_path / "w.pth"
    torch.save({name: value.to(kind) if value.is_floating_point() else value for name, value in network.items()}, path)
    given = build_model(tiny.replace(weights=str(path)), 3).state_dict()["conv1.weight"]
    assert given.dtype == torch.float32
    assert torch.equal(given, network["conv1.weight"].to(kind).float())


def test_a_pickled_object_is_named(tmp_path: Path, tiny: Config) -> None:
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2), path)
    text = refused(tiny.replace(weights=str(path)))
    assert "it holds torch.nn.modules.linear.Linear, which is not loaded because it may run code" in text
    assert "save only the state_dict()" in text


@pytest.fixture(scope="module")
def small() -> Config:
    return Config(arch="squeezenet1_1", image_size=32, batch_size=16, epochs=1, device="cpu", precision="float32")


def squeezenet(path: Path, seed: int) -> Path:
    """Writes a file of SqueezeNet weights."""
    torch.manual_seed(seed)
    state = get_model("squeezenet1_1", weights=None).state_dict()
    save_file(dict(state), path)
    return path


def told(error: BusiTuneError, *parts: str) -> None:
    assert all(part in str(error) for part in (*parts, "weights", "SHA-256", "--overwrite")), str(error)


def test_a_run_knows_its_weights_by_their_content(phantoms: Path, tmp_path: Path, small: Config) -> None:
    path, run = squeezenet(tmp_path / "w.safetensors", 1), tmp_path / "run"
    config = small.replace(weights=str(path))
    first = pipeline.baseline(phantoms, run, config, Recorder())
    moved = Path(shutil.copy(path, tmp_path / "moved.safetensors"))
    assert pipeline.baseline(phantoms, run, small.replace(weights=str(moved)), Recorder()) == first
    squeezenet(path, 2)
    with pytest.raises(RunError) as caught:
        pipeline.baseline(phantoms, run, config, Recorder())
    told(caught.value, "holds a run of another configuration (weights: 'file of SHA-256 ")
    with pytest.raises(RunError, match=r"weights: 'file of SHA-256 .* -> 'none'"):
        pipeline.baseline(phantoms, run, small.replace(weights="none"), Recorder())
    (last,) = (run / "checkpoints").glob("last-*.safetensors")
    said = Recorder()
    check_model(small.replace(weights=str(last)), said)
    assert "the prefix model.; tensors beside them are not used (optimizer." in said.notices[0]
    # Without the file, its hash cannot be compared with the run's.
    path.unlink()
    with pytest.raises(WeightsError, match="could not be read"):
        pipeline.baseline(phantoms, run, config, Recorder())
    assert pipeline.baseline(phantoms, run, small.replace(weights=str(moved)), Recorder()) == first


def test_an_unfinished_run_goes_on_with_the_same_weights_only(phantoms: Path, tmp_path: Path, small: Config) -> None:
    path, run = squeezenet(tmp_path / "w.safetensors", 1), tmp_path / "run"
    config = small.replace(weights=str(path), epochs=3)

    class Killed(Recorder):
        def step(self, task: str, done: int, total: int, detail: str = "") -> None:
            super().step(task, done, total, detail)
            if task == "training":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.baseline(phantoms, run, config, Killed())
    assert saved_state(run) is not None
    squeezenet(path, 2)
    with pytest.raises(RunError) as caught:
        pipeline.baseline(phantoms, run, config, Recorder())
    told(caught.value)


@pytest.mark.slow
def test_a_study_knows_its_weights_by_their_content(phantoms: Path, tmp_path: Path, small: Config) -> None:
    path, moved = squeezenet(tmp_path / "w.safetensors", 1), tmp_path / "moved.safetensors"
    shutil.copy(path, moved)
    study, options = tmp_path / "study", SearchOptions(trials=2, trial_epochs=1)
    baseline = tmp_path / "first"
    pipeline.baseline(phantoms, baseline, small.replace(weights=str(path)), Recorder())
    by_path, by_copy = (small.replace(weights=str(file)) for file in (path, moved))
    first = pipeline.search(phantoms, study, by_path, options, Recorder(), baseline_run=baseline)
    # The study, its trials and its baseline accept the same file at another path.
    again = pipeline.search(phantoms, study, by_copy, options.replace(trials=3), Recorder())
    assert again["trials"][:2] == first["trials"]
    other = pipeline.search(phantoms, tmp_path / "other", by_copy, options, Recorder(), baseline_run=baseline)
    assert other["trials"][0]["value"] == first["trials"][0]["value"]
    known = json.loads((study / "study.json").read_text())
    assert list(known["weights"]) == [str(path)]

    squeezenet(path, 2)
    with pytest.raises(RunError) as caught:
        pipeline.search(phantoms, study, by_path, options, Recorder())
    told(caught.value, "holds another study (weights: 'file of SHA-256 ")
    with pytest.raises(RunError, match=r"cannot be the study's first trial: its configuration differs \(weights: "):
        pipeline.search(phantoms, tmp_path / "third", by_path, options, Recorder(), baseline_run=baseline)

    # Earlier versions wrote no hash into study.json: the study compares paths, and each trial its own hash.
    del known["weights"], known["sha256"]
    (study / "study.json").write_text(json.dumps(known))
    with pytest.raises(RunError, match="weights: "):
        pipeline.search(phantoms, study, by_copy, options.replace(trials=3), Recorder())
    shutil.copy(moved, path)
    more = pipeline.search(phantoms, study, by_path, options.replace(trials=3), Recorder())
    assert more["trials"] == again["trials"]


def test_weights_replaced_while_a_study_runs_stop_it(phantoms: Path, tmp_path: Path, small: Config) -> None:
    path = squeezenet(tmp_path / "w.safetensors", 1)

    class Replacing(Recorder):
        def close(self, task: str) -> None:
            if task == "trial 0":
                squeezenet(tmp_path / "new", 2)
                (tmp_path / "new").replace(path)

    with pytest.raises(RunError) as caught:
        pipeline.search(
            phantoms,
            tmp_path / "study",
            small.replace(weights=str(path)),
            SearchOptions(trials=2, trial_epochs=1),
            Replacing(),
        )
    told(caught.value, str(path), "have changed since the study")
