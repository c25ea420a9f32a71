"""A trained model in the form that is exported: pixels in, logits and features out."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn

from busi_tune.config import Config
from busi_tune.images import Pixels
from busi_tune.training import run_folder
from busi_tune.training.model import untrained
from busi_tune.training.run_folder import Identity

Array = NDArray[np.float64]
OPSET = 20
BATCH = 32


class ServedModel(nn.Module):
    """uint8 RGB images (n, 3, size, size) to logits (n, classes) and what its last layer makes them of (n, features).

    Normalisation is inside, and the logits are divided by the temperature.
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
        self.seen: list[Tensor] = []
        last_layer(model).register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features."""
        logits = self.model((pixels.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_deviation)
        features = self.seen.pop()
        # SqueezeNet's last layer is a convolution, whose answers are averaged over the image.
        return logits / self.temperature, features.mean(dim=(2, 3)) if features.dim() == 4 else features


def last_layer(model: nn.Module) -> nn.Module:
    """The layer that makes a torchvision classifier's logits: its last linear layer or convolution."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]


def best_model(folder: Path, config: Config, classes: int) -> nn.Module:
    """The model that a run has kept, on the CPU."""
    model = untrained(config, classes)
    model.load_state_dict(load(run_folder.checkpoint(folder, "best")))
    return model


def served(folder: Path, identity: Identity) -> ServedModel:
    """The best model of a finished run, on the CPU, in evaluation mode, at temperature 1."""
    config = identity.config
    return ServedModel(best_model(folder, config, len(identity.classes)), config.mean, config.std).eval()


@torch.inference_mode()
def served_answers(model: ServedModel, pixels: Pixels, precision: str) -> tuple[Array, Array]:
    """PyTorch's logits and features of `pixels` (n, size, size, 3), as float64 (n, classes) and (n, features).

    `precision` is "float32", the arithmetic that the export has, or "float64", the reference: so exact that what
    differs from it is the other's error.
    """
    model.to(torch.float64 if precision == "float64" else torch.float32)
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH)
    logits, features = zip(*(model(batch.contiguous()) for batch in batches), strict=True)
    model.float()
    return torch.cat(logits).double().numpy(), torch.cat(features).double().numpy()


def to_onnx(model: ServedModel, size: int) -> bytes:
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


def tensors(model: ServedModel) -> dict[str, NDArray[np.float32]]:
    """The tensors that the exported graph must hold, by name."""
    return {name: value.numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
