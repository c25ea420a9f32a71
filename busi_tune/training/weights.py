"""Pretrained weights: those that torchvision downloads and checks, or a file."""

import contextlib
import socket
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from busi_tune.errors import WeightsError

DOWNLOAD_TIMEOUT = 30.0
# The errors of reading a file that is damaged, or that holds no weights.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    UnpicklingError,
    SafetensorError,
)
WAYS_ON = "use --weights FILE with a file of weights, or --weights none to start from random ones"


def load_weights(model: nn.Module, arch: str, weights: str) -> None:
    """Load `weights` ("imagenet" or a path) into `model`; a head for other classes keeps its random start.

    Raises:
        WeightsError: they cannot be downloaded or read, or belong to another architecture.
    """
    pretrained = weights == "imagenet"
    state = imagenet_state(get_model_weights(arch), arch) if pretrained else file_state(Path(weights))
    _adopt(model, state, arch, weights)


def imagenet_state(choices: type[WeightsEnum], arch: str) -> dict[str, Tensor]:
    """The `IMAGENET1K_V2` weights of `arch`, or its default ones where there is no V2.

    Raises:
        WeightsError: no network, an interrupted download, or a file whose hash is not the published one.
    """
    wanted: WeightsEnum = getattr(choices, "IMAGENET1K_V2", choices.DEFAULT)
    try:
        with _patience(DOWNLOAD_TIMEOUT), contextlib.redirect_stdout(sys.stderr):
            return dict(wanted.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (HTTPException, *UNREADABLE) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise WeightsError(
            f"torchvision's {wanted} weights of {arch} could not be loaded from {wanted.url} ({reason}); {WAYS_ON}."
        ) from error


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a silent network after `seconds`; torchvision's downloader has no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_readable(path: Path) -> None:
    """Check that a file of weights can be opened; its content is checked when it is loaded.

    Raises:
        WeightsError: it cannot.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"The weights in {path} could not be read ({error.strerror}); {WAYS_ON}.") from error


def file_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `torch.save` file of a state dict (read without unpickling code).

    Raises:
        WeightsError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or "damaged, or no state dict of tensors"
        raise WeightsError(f"The weights in {path} could not be read ({reason}); {WAYS_ON}.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds {type(state).__name__}, not a state dict of tensors; {WAYS_ON}.")
    return state


def _adopt(model: nn.Module, state: dict[str, Tensor], arch: str, weights: str) -> None:
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    unfit = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    # Only the last layer may differ: its weight and bias, when the file knows other classes.
    if not set(unfit) <= set(_head(model)):
        raise WeightsError(
            f"The weights {weights} do not fit {arch}: {len(unfit)} of its {len(own)} tensors are missing or have "
            f"another shape, {unfit[0]} first; name weights of {arch}, made for this --image-size."
        )
    copy_tensors(model, {**own, **fitting})


@torch.no_grad()
def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy all tensors of a model into it, by their names.

    Not by `load_state_dict`: MNASNet's asks for a version, which a file of tensors does not hold.
    """
    own = model.state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in tensors.items()}
    for name, value in own.items():
        value.copy_(tensors[name])


def _head(model: nn.Module) -> list[str]:
    """The tensors of the layer that gives the logits: the last one with parameters."""
    *_, last = (name for name, module in model.named_modules() if list(module.parameters(recurse=False)))
    return [f"{last}.{name}" for name, _ in model.get_submodule(last).named_parameters()]
