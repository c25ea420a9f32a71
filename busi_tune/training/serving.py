"""A trained model as other programs get it: pixels in, logits and probabilities out."""

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
from busi_tune.training import folder as store
from busi_tune.training.folder import Identity
from busi_tune.training.model import untrained

OPSET = 20
BATCH = 32


class ServedModel(nn.Module):
    """uint8 RGB images (n, size, size, 3) to logits and probabilities (n, classes), normalisation inside."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.register_buffer("deviation", torch.tensor(std) * 255)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.deviation
        logits = self.model(pixels.permute(0, 3, 1, 2))
        return logits, logits.softmax(dim=1)


def best_model(folder: Path, config: Config, classes: int) -> nn.Module:
    """The model that a run has kept, on the CPU."""
    model = untrained(config, classes)
    model.load_state_dict(load(store.checkpoint(folder, "best")))
    return model


def served(folder: Path, identity: Identity) -> ServedModel:
    """The best model of a finished run, on the CPU, in evaluation mode."""
    config = identity.config
    return ServedModel(best_model(folder, config, len(identity.classes)), config.mean, config.std).eval()


@torch.inference_mode()
def served_logits(model: ServedModel, pixels: Pixels, precision: str) -> NDArray[np.float64]:
    """PyTorch's logits of `pixels` (n, size, size, 3), as float64 (n, classes).

    `precision` is "float32", the arithmetic that the export has, or "float64", the reference: so exact that what
    differs from it is the other's error.
    """
    model.to(torch.float64 if precision == "float64" else torch.float32)
    answers = torch.cat([model(batch)[0] for batch in torch.split(torch.from_numpy(pixels), BATCH)])
    model.float()
    return answers.double().numpy()


def to_onnx(model: ServedModel, size: int) -> bytes:
    """The model as a serialised ONNX graph with a free batch axis and all weights inside."""
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    # The exporter reports its steps on stdout, which belongs to results.
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())
