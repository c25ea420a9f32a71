"""A trained model in the form that is exported: pixels in, logits and features out."""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

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
# It has an operator for all that torchvision's classifiers compute, and the oldest runtimes know it.
OPSET = 18
BATCH = 32


class ExportableModel(nn.Module):
    """uint8 RGB images (n, 3, size, size) to logits (n, classes) and the last layer's inputs, the features (n, k).

    Normalisation is inside, and the logits are divided by the temperature. Models of several temperatures may share
    a network.
    """

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

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, divided by the temperature, and features."""
        logits, features = self.uncalibrated(pixels)
        return logits / self.temperature, features

    def uncalibrated(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits before the temperature, and features."""
        seen: list[Tensor] = []
        with last_layer(self.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            logits = self.model((pixels.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_deviation)
        (features,) = seen
        # SqueezeNet's last layer is a convolution, whose answers are averaged over the image.
        return logits, features.mean(dim=(2, 3)) if features.dim() == 4 else features


class AveragedModel(nn.Module):
    """Several models as one, whose probabilities are the mean of theirs; its logits are the logarithms of that mean.

    The features are those of the first model.
    """

    temperature: Tensor

    def __init__(self, members: Sequence[ExportableModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the mean probabilities, and features."""
        logits, features = self.uncalibrated(pixels)
        return logits / self.temperature, features

    def uncalibrated(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same: the members have temperatures of their own."""
        found = [member(pixels) for member in self.members]
        logarithms = torch.stack([torch.log_softmax(logits, dim=1) for logits, _ in found])
        return torch.logsumexp(logarithms, dim=0) - math.log(len(found)), found[0][1]


Exportable = ExportableModel | AveragedModel


def last_layer(model: nn.Module) -> nn.Module:
    """The layer that makes a torchvision classifier's logits: its last linear layer or convolution."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]


def best_model(folder: Path, config: Config, classes: int) -> nn.Module:
    """The model that a run has kept, on the CPU.

    Raises:
        FileError: its checkpoint is not what was written, or not of its configuration.
    """
    model = untrained(config, classes)
    with checkpoint_explained(f"best checkpoint in {folder}"):
        copy_tensors(model, load(run_folder.checkpoint(folder, "best")))
    return model


@contextlib.contextmanager
def checkpoint_explained(name: str) -> Iterator[None]:
    """Turn the errors of loading a checkpoint that does not fit its run into a FileError that names it."""
    try:
        yield
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"The {name} does not fit the run's configuration and state ({reason.rstrip(':.')}); "
            "restore the run's files or start anew."
        ) from error


def exportable_model(folder: Path, identity: Identity) -> ExportableModel:
    """The best model of a finished run, on the CPU, in evaluation mode, at temperature 1."""
    config = identity.config
    return ExportableModel(best_model(folder, config, len(identity.classes)), config.mean, config.std).eval()


@torch.inference_mode()
def logits_of(model: Exportable, pixels: Pixels, precision: Precision) -> tuple[Array, Array]:
    """PyTorch's logits of `pixels` (n, size, size, 3) before and after the temperature, both float64 (n, classes).

    They are computed in `precision`: "float32" is the export's arithmetic, and "float64" is so exact that any
    difference from it is the other's error.
    """
    # A copy: converted in place and back, the parameters would be inference tensors, which cannot be exported.
    model = copy.deepcopy(model).double() if precision == "float64" else model
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH)
    before = torch.cat([model.uncalibrated(batch.contiguous())[0] for batch in batches])
    return before.double().numpy(), (before / model.temperature).double().numpy()


@torch.inference_mode()
def logits_and_features(model: ExportableModel, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits (n, classes) and features (n, k) of `pixels` (n, size, size, 3), in float32 on the CPU.

    A GPU may compute convolutions in fewer bits, and the export answers on the CPU.
    """
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH)
    logits, features = (
        torch.cat(parts) for parts in zip(*[model(batch.contiguous()) for batch in batches], strict=True)
    )
    return logits.numpy(), features.numpy()


@torch.no_grad()
def nudged(model: Exportable, seed: int) -> Exportable:
    """A copy whose every weight is moved by about a unit in its last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    for value in moved.state_dict().values():
        if value.is_floating_point():
            signs = torch.empty_like(value).bernoulli_(generator=generator).mul_(2).sub_(1)
            value.mul_(1 + torch.finfo(value.dtype).eps * signs)
    return moved


def to_onnx(model: Exportable, size: int) -> bytes:
    """The model as a serialised ONNX graph with a free batch axis, its tensors inside by their names, bit for bit."""
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    # The exporter reports its steps on stdout, which belongs to results.
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits", "features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            # Optimised, batch normalisation would be folded into other weights than those that were trained.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def tensors(model: Exportable) -> dict[str, NDArray[np.generic]]:
    """The tensors that the exported graph must hold, by name: all but the counters of training."""
    return {
        name: value.numpy() for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
