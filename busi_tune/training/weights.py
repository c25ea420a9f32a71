"""Pretrained weights: those that torchvision downloads and checks, or a file, bare or in a usual wrapper."""

import contextlib
import re
import socket
import struct
import sys
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from busi_tune.errors import WeightsError, listed

Tensors = dict[str, Tensor]

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
# The class that PyTorch names when it refuses to make one from a file.
FOREIGN = re.compile(r"Unsupported global: GLOBAL (\S+)")
# The wrapper of a network lies at most so many dicts deep in a file.
DEEPEST = 3
EMA = re.compile(r"(?:^|[._])ema(?:[._]|$)")
# The heads that GoogLeNet and Inception have in training alone, and that are not built here.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
WAYS_ON = "use --weights FILE with a file of weights, or --weights none to start from random ones"


@dataclass(frozen=True)
class Network:
    """The tensors of a network in a file, by the network's own names.

    `place` says how to find them in the file, "" where nothing is to be unwrapped. `others` are the names of the
    tensors beside them.
    """

    place: str
    tensors: dict[str, Tensor]
    others: list[str]


def load_weights(model: nn.Module, arch: str, weights: str) -> None:
    """Load `weights` ("imagenet" or a path) into `model`; a head for other classes keeps its random start.

    Raises:
        WeightsError: they cannot be downloaded, read or used, or belong to another architecture.
    """
    if weights == "imagenet":
        state = imagenet_state(get_model_weights(arch), arch)
    else:
        state = network_in(file_content(Path(weights)), model, arch, weights).tensors
    copy_tensors(model, {**model.state_dict(), **_fitting(state, model, arch, weights)})


def check_weights(model: nn.Module, arch: str, weights: str) -> str:
    """Check that a file of weights can be loaded into `model`, which may be on the meta device.

    Returns a sentence on the wrapper that the weights are in, or "".

    Raises:
        WeightsError: they cannot be loaded.
    """
    found = network_in(file_content(Path(weights)), model, arch, weights)
    _fitting(found.tensors, model, arch, weights)
    if not found.place:
        return ""
    unused = f"; tensors beside them are not used ({listed(found.others, most=3)})" if found.others else ""
    return f"The weights in {weights} were taken out of {found.place}{unused}."


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


def file_content(path: Path) -> Mapping[str, object]:
    """The content of a safetensors file, or of a file of `torch.save` (read without running code).

    Raises:
        WeightsError: it cannot be read, or is no dict.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(path))
        # torchvision's training script saves its arguments as well, a Namespace; that is attributes and no code.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(f"The weights in {path} could not be read ({_reason(error)}); {WAYS_ON}.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds {type(content).__name__}, not a state dict of tensors; {WAYS_ON}.")
    return content


def _reason(error: Exception) -> str:
    foreign = FOREIGN.search(str(error))
    if foreign:
        return f"it holds {foreign[1]}, which is not loaded because it may run code: save the state_dict() alone"
    return getattr(error, "strerror", None) or "damaged, or no state dict of tensors"


def network_in(content: Mapping[str, object], model: nn.Module, arch: str, weights: str) -> Network:
    """The tensors of `model` in the content of a file: bare, in dicts, under a prefix of their names, or all of these.

    The place that has most of the model's names counts; a moving average (EMA) gives way to the weights themselves.

    Raises:
        WeightsError: none of the model's tensors is there, or several networks are.
    """
    own = model.state_dict().keys()
    places = [
        (count, keys, prefix, tensors)
        for keys, tensors in _dicts(content)
        for prefix, count in _prefixes(tensors, own).items()
    ]
    most = max((count for count, *_ in places), default=0)
    best = [(keys, prefix, tensors) for count, keys, prefix, tensors in places if count == most]
    best = [place for place in best if not EMA.search(".".join((*place[0], place[1])))] or best
    if not best:
        raise WeightsError(
            f"The weights {weights} do not fit {arch}: none of its {len(own)} tensors is there, {next(iter(own))} "
            f"first; {_other(arch)}."
        )
    if len(best) > 1:
        places_found = " and ".join(_place(keys, prefix) or "bare" for keys, prefix, _ in best)
        raise WeightsError(f"{weights} holds several networks of {arch}: {places_found}; save one of them alone.")
    ((keys, prefix, tensors),) = best
    others = [name for name in tensors if not name.startswith(prefix)]
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Network(_place(keys, prefix), inside, others)


def _dicts(content: Mapping[str, object], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """The tensors of a dict and of those in it, each with the keys that lead there."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    yield keys, {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if len(keys) < DEEPEST:
        for name, value in named.items():
            if isinstance(value, dict):
                yield from _dicts(value, (*keys, name))


def _prefixes(tensors: Tensors, own: Collection[str]) -> Counter[str]:
    """How many of the names in `own` the tensors have behind each prefix."""
    found: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        cuts = (len(".".join(parts[:count])) + 1 if count else 0 for count in range(len(parts)))
        found.update(name[:cut] for cut in cuts if name[cut:] in own)
    return found


def _place(keys: tuple[str, ...], prefix: str) -> str:
    inside = f"the entry {'.'.join(keys)}" if keys else ""
    return " and ".join(part for part in (inside, f"the prefix {prefix}" if prefix else "") if part)


def _fitting(state: Tensors, model: nn.Module, arch: str, weights: str) -> Tensors:
    """The tensors that `model` has as well; only its head, and heads for training alone, may differ.

    Raises:
        WeightsError: others differ, or a tensor cannot be used.
    """
    own, head = model.state_dict(), _head(model)
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    unfit = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if not all(name.startswith(head) for name in unfit):
        raise WeightsError(
            f"The weights {weights} do not fit {arch}: {len(unfit)} of its {len(own)} tensors are missing or have "
            f"another shape, {unfit[0]} first; {_other(arch)}."
        )
    unused = [name for name in state if name not in own and not name.startswith((head, *AUXILIARY.get(arch, ())))]
    if unused:
        raise WeightsError(
            f"The weights {weights} do not fit {arch}: it has no place for {len(unused)} of their {len(state)} "
            f"tensors, {listed(unused, most=3)}; {_other(arch)}."
        )
    return {name: _usable(value, own[name].dtype, name, weights) for name, value in fitting.items()}


@torch.no_grad()
def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy all tensors of a model into it, by their names.

    Not by `load_state_dict`: MNASNet's asks for a version, which a file of tensors does not hold.

    Raises:
        ValueError: their names or shapes are not the model's.
    """
    own = model.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ValueError("it holds other tensors than the model")
    for name, value in own.items():
        value.copy_(tensors[name])


def _other(arch: str) -> str:
    return f"name weights of {arch} made for this --image-size, or use --weights none"


def _head(model: nn.Module) -> str:
    """The prefix of the layer that gives the logits: the last one with parameters."""
    *_, last = (name for name, module in model.named_modules() if list(module.parameters(recurse=False)))
    return f"{last}."


def _usable(value: Tensor, dtype: torch.dtype, name: str, weights: str) -> Tensor:
    """A tensor of a file in the model's type.

    Raises:
        WeightsError: it is not dense, or holds anything but finite real numbers.
    """
    problem = ""
    if value.is_meta:
        problem = "has no content: it was saved from the meta device"
    elif value.is_quantized:
        problem = "is quantised"
    elif value.layout != torch.strided or value.is_nested:
        problem = "is sparse, not dense"
    elif value.is_complex() or dtype.is_floating_point != value.is_floating_point():
        problem = f"holds numbers of type {str(value.dtype).removeprefix('torch.')}"
    elif not value.to(dtype).isfinite().all():
        problem = "holds values that are no finite numbers"
    if problem:
        raise WeightsError(f"The weights {weights} cannot be used: {name} {problem}; {WAYS_ON}.")
    return value.to(dtype)
