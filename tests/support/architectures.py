"""All steps for one architecture: training, resuming, exporting, verifying and predicting."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torchvision import models

from busi_tune import images, pipeline
from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.export.verification import check_again
from busi_tune.inference.predictions import predict
from busi_tune.progress import Silent
from busi_tune.results import ModelCertificate
from busi_tune.training import runs
from busi_tune.training.model import ARCHITECTURES, check_model, untrained

# One member of each family, at its smallest valid image size.
SMALLEST = {
    "alexnet": ("alexnet", 64),
    "convnext": ("convnext_tiny", 32),
    "densenet": ("densenet121", 32),
    "efficientnet": ("efficientnet_b0", 32),
    "googlenet": ("googlenet", 32),
    "inception": ("inception_v3", 96),
    "maxvit": ("maxvit_t", 224),
    "mnasnet": ("mnasnet0_5", 32),
    "mobilenetv2": ("mobilenet_v2", 32),
    "mobilenetv3": ("mobilenet_v3_small", 32),
    "regnet": ("regnet_y_400mf", 32),
    "resnet": ("resnet18", 32),
    "shufflenetv2": ("shufflenet_v2_x0_5", 32),
    "squeezenet": ("squeezenet1_1", 32),
    "swin_transformer": ("swin_t", 32),
    "vgg": ("vgg11", 32),
    "vision_transformer": ("vit_b_32", 32),
}


def family(arch: str) -> str:
    """The name of torchvision's module that defines an architecture."""
    return str(models.get_model_builder(arch).__module__.rpartition(".")[2])


SIZES = (32, 64, 96, 128, 160, 192, 224)


def smallest_size(arch: str) -> int:
    """The smallest of `SIZES` that an architecture accepts; the model is built without memory where possible."""
    for size in SIZES:
        with contextlib.suppress(ConfigError), torch.device("cpu" if arch.startswith("regnet") else "meta"):
            untrained(Config(arch=arch, weights="none", image_size=size), 2)
            return size
    raise ConfigError(f"{arch} takes images of none of the sizes {SIZES}.")


def families() -> dict[str, list[str]]:
    """The architectures of each family."""
    found: dict[str, list[str]] = {}
    for arch in ARCHITECTURES:
        found.setdefault(family(arch), []).append(arch)
    return found


@dataclass
class Way:
    """Processor seconds by step, and the certificate of the exported model."""

    seconds: dict[str, float] = field(default_factory=dict)
    certificate: ModelCertificate | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measures the processor time of a step."""
        started = time.process_time()
        yield
        self.seconds[name] = time.process_time() - started


def whole_way(data: Path, place: Path, config: Config) -> Way:
    """Trains for one epoch, resumes for the rest, exports, verifies and predicts.

    Raises:
        BusiTuneError: a step refuses.
    """
    way = Way()
    run, export = place / "run", place / "export"
    run.mkdir(parents=True)
    with way.step("train"):
        check_model(config, Silent())
        opened = runs.open_run(run, config, data, Silent())
        assert len(list(runs.train(opened, 1, Silent()))) == 1
    with way.step("resume"):
        pipeline.baseline(data, run, config, Silent())
    with way.step("export"):
        pipeline.export(run, export, data, Silent())
    with way.step("verify"):
        way.certificate = check_again(export, data, Silent())["models"]["model.onnx"]
    with way.step("predict"):
        picture = next(path for path in images.walk(data) if not images.is_mask(path))
        (prediction,) = predict(export, [picture])
    assert not prediction.error
    return way
