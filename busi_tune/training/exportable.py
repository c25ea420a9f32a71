"""A trained model in its exported form, which maps pixels to logits and features."""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from busi_tune.config import Config
from busi_tune.errors import FileError
from busi_tune.images import Pixels
from busi_tune.training import run_folder
from busi_tune.training.model import untrained
from busi_tune.training.run_folder import Identity
from busi_tune.training.weights import copy_tensors

Array = NDArray[np.float64]
Precision = Literal["float64", "float32"]
# This version has all operators that torchvision's classifiers need, and older runtimes support it.
OPSET = 18
BATCH = 32
# The activations of so few images stay in a processor's cache: 1.3 (float64) to 1.7 times (float32) as fast as 32.
CACHED = 2


class Computed(NamedTuple):
    """PyTorch's outputs for n images, float64.

    `before` and `logits` are the logits (n, classes) before and after the temperature. `maps` are class activation maps
    (n, classes, h, w); for a model without maps, h and w are 0.
    """

    before: Array
    logits: Array
    maps: Array


class ExportableModel(nn.Module):
    """Maps uint8 RGB images (n, 3, size, size) to logits (n, classes) and features (n, k).

    The features are the inputs of the last layer. The model includes the normalisation and divides the logits by the
    temperature. Models with different temperatures may share a network.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits", "features")
    pixel_mean: Tensor
    pixel_deviation: Tensor
    temperature: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(3, 1, 1) * 255)
        self.register_buffer("pixel_deviation", torch.tensor(std).reshape(3, 1, 1) * 255)
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits and features, and maps if the model has them. Logits and maps are divided by the temperature."""
        logits, features, *maps = self.uncalibrated(pixels)
        return logits / self.temperature, features, *(each / self.temperature for each in maps)

    def normalised(self, pixels: Tensor) -> Tensor:
        """The input of the network."""
        return (pixels.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_deviation

    def uncalibrated(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits before the temperature, and features."""
        seen: list[Tensor] = []
        with last_layer(self.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            logits = self.model(self.normalised(pixels))
        (features,) = seen
        # SqueezeNet's last layer is a convolution. Its outputs are averaged over the image, so its inputs are, too.
        return logits, features.mean(dim=(2, 3)) if features.dim() == 4 else features


class AveragedModel(nn.Module):
    """The average of several models.

    Its probabilities are the means of the members' probabilities, and its logits are the logarithms of these means. Its
    features are those of the first member.
    """

    outputs: ClassVar[tuple[str, ...]] = ExportableModel.outputs
    temperature: Tensor

    def __init__(self, members: Sequence[ExportableModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the mean probabilities, divided by the temperature, and features."""
        logits, features = self.uncalibrated(pixels)
        return logits / self.temperature, features

    def uncalibrated(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logarithms of the mean probabilities, and features. Each member still applies its temperature."""
        found = [member(pixels) for member in self.members]
        logarithms = torch.stack([torch.log_softmax(logits, dim=1) for logits, _ in found])
        return torch.logsumexp(logarithms, dim=0) - math.log(len(found)), found[0][1]


Exportable = ExportableModel | AveragedModel


def last_layer(model: nn.Module) -> nn.Module:
    """The layer that computes the logits of a torchvision classifier: its last linear layer or convolution."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]


def best_model(folder: Path, config: Config, classes: int) -> nn.Module:
    """The model of a run's best epoch, on the CPU.

    Raises:
        FileError: the best checkpoint has changed, or does not fit the run's configuration.
    """
    model = untrained(config, classes)
    with checkpoint_explained(f"best checkpoint in {folder}"):
        copy_tensors(model, load(run_folder.checkpoint(folder, "best")))
    return model


@contextlib.contextmanager
def checkpoint_explained(name: str) -> Iterator[None]:
    """Turn the errors of loading a checkpoint that does not fit its run into a FileError that contains `name`."""
    try:
        yield
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"The {name} does not fit the run's configuration and state ({reason.rstrip(':.')}); "
            "restore the run's files or start over."
        ) from error


def exportable_model(folder: Path, identity: Identity) -> ExportableModel:
    """The best model of a finished run, on the CPU, in evaluation mode, at temperature 1."""
    config = identity.config
    return ExportableModel(best_model(folder, config, len(identity.classes)), config.mean, config.std).eval()


@torch.inference_mode()
def computed(model: Exportable, pixels: Pixels, precision: Precision) -> Computed:
    """PyTorch's outputs for `pixels` (n, size, size, 3).

    They are computed in `precision`. "float32" is the precision of the export. "float64" is the reference, because its
    rounding errors are negligible in comparison.
    """
    # `double` converts a model in place and would leave inference tensors, which cannot be exported.
    model = copy.deepcopy(model).double() if precision == "float64" else model
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), CACHED)
    found = [model.uncalibrated(batch.contiguous()) for batch in batches]
    before, _, *more = (torch.cat(parts) for parts in zip(*found, strict=True))
    maps = more[0] if more else before.new_empty((*before.shape, 0, 0))
    logits, cooled = ((each / model.temperature).double().numpy() for each in (before, maps))
    return Computed(before.double().numpy(), logits, cooled)


@torch.inference_mode()
def logits_and_features(model: ExportableModel, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits (n, classes) and features (n, k) of `pixels` (n, size, size, 3), in float32 on the CPU.

    The export runs on the CPU, too. A GPU may compute convolutions with fewer bits.
    """
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH)
    logits, features = (
        torch.cat(parts) for parts in zip(*[model(batch.contiguous()) for batch in batches], strict=True)
    )
    return logits.numpy(), features.numpy()


@torch.no_grad()
def nudged(model: Exportable, seed: int) -> Exportable:
    """A copy of the model with each weight moved up or down, at random, by about one unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    for value in moved.state_dict().values():
        if value.is_floating_point():
            signs = torch.empty_like(value).bernoulli_(generator=generator).mul_(2).sub_(1)
            value.mul_(1 + torch.finfo(value.dtype).eps * signs)
    return moved


def to_onnx(model: Exportable, size: int) -> bytes:
    """The model as serialised ONNX with a free batch axis. It holds the model's tensors by name, bit for bit."""
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    # The exporter prints to stdout, which is reserved for results.
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=list(model.outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            # Optimisation would fold batch normalisation into the trained weights and so change them.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def tensors(model: Exportable) -> dict[str, NDArray[np.generic]]:
    """The tensors that the exported graph must hold, by name: all except the batch counters of training."""
    return {
        name: value.numpy() for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
