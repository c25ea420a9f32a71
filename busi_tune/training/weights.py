"""Pretrained weights: downloaded and checked by torchvision, or read from a file with or without a common wrapper."""

import contextlib
import re
import socket
import struct
import sys
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from busi_tune.config import Config
from busi_tune.errors import WeightsError, listed
from busi_tune.progress import Progress

Tensors = dict[str, Tensor]

DOWNLOAD_TIMEOUT = 30.0
# The errors of reading a file that is damaged or does not hold weights.
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
# Finds the name of the class in PyTorch's error when it refuses to load an object of that class.
FOREIGN = re.compile(r"Unsupported global: GLOBAL (\S+)")
# The most levels of nested dicts in which a network is searched for.
DEEPEST = 3
EMA = re.compile(r"(?:^|[._])ema(?:[._]|$)")
# GoogLeNet and Inception have these heads only in training. They are not built here.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
WAYS_ON = "use --weights FILE with a file of weights, or --weights none to start from random ones"


@dataclass(frozen=True)
class Network:
    """The tensors of a network in a file, by their names in the network.

    `place` describes the wrapper that holds the tensors in the file; it is "" without a wrapper. `others` are the names
    of the other tensors in the same dict.
    """

    place: str
    tensors: dict[str, Tensor]
    others: list[str]


def load_weights(model: nn.Module, arch: str, weights: str) -> None:
    """Load `weights` ("imagenet" or a path) into `model`. A head of another shape keeps its random weights.

    Raises:
        WeightsError: the weights cannot be downloaded, read or used, or belong to another architecture.
    """
    if weights == "imagenet":
        state = imagenet_state(get_model_weights(arch), arch)
    else:
        state = network_in(file_content(Path(weights)), model, arch, weights).tensors
    copy_tensors(model, {**model.state_dict(), **_fitting(state, model, arch, weights)})


def check_weights(model: nn.Module, arch: str, weights: str) -> str:
    """Check that a file of weights can be loaded into `model`, which may be on the meta device.

    Returns a sentence about the wrapper that holds the weights, or "".

    Raises:
        WeightsError: the weights cannot be loaded.
    """
    found = network_in(file_content(Path(weights)), model, arch, weights)
    _fitting(found.tensors, model, arch, weights)
    if not found.place:
        return ""
    unused = f"; tensors beside them are not used ({listed(found.others, most=3)})" if found.others else ""
    return f"The weights in {weights} were taken out of {found.place}{unused}."


def imagenet_state(choices: type[WeightsEnum], arch: str) -> dict[str, Tensor]:
    """The `IMAGENET1K_V2` weights of `arch`, or its default weights if it has no V2.

    Raises:
        WeightsError: the network is not available, the download is interrupted, or the hash of the file is wrong.
    """
    wanted = _wanted(choices)
    try:
        with _patience(DOWNLOAD_TIMEOUT), contextlib.redirect_stdout(sys.stderr):
            return dict(wanted.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (HTTPException, *UNREADABLE) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise WeightsError(
            f"torchvision's {wanted} weights of {arch} could not be loaded from {wanted.url} ({reason}); {WAYS_ON}."
        ) from error


def _wanted(choices: type[WeightsEnum]) -> WeightsEnum:
    found: WeightsEnum = getattr(choices, "IMAGENET1K_V2", choices.DEFAULT)
    return found


def check_download(configs: Iterable[Config], progress: Progress) -> None:
    """Check the ImageNet weights in the cache of torchvision; report those that it lacks, and download nothing.

    Raises:
        WeightsError: a file in the cache cannot be loaded.
    """
    for arch in dict.fromkeys(config.arch for config in configs if config.weights == "imagenet"):
        choices = get_model_weights(arch)
        url = _wanted(choices).url
        place = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        if place.exists():
            imagenet_state(choices, arch)
        else:
            progress.notice(f"The ImageNet weights of {arch} will be downloaded from {url} to {place}.")


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Set a network timeout of `seconds` during the block, because torchvision's downloader has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def file_content(path: Path) -> Mapping[str, object]:
    """The content of a safetensors file, or of a file of `torch.save` (read without running code).

    Raises:
        WeightsError: the file cannot be read, or does not hold a dict.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(path))
        # torchvision's training script also saves its arguments as a Namespace, which holds attributes and no code.
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
        return f"it holds {foreign[1]}, which is not loaded because it may run code: save only the state_dict()"
    return getattr(error, "strerror", None) or "damaged, or no state dict of tensors"


def network_in(content: Mapping[str, object], model: nn.Module, arch: str, weights: str) -> Network:
    """Find the tensors of `model` in the content of a file: at the top, in nested dicts, or under a name prefix.

    The place with the most names of the model is used. The weights are preferred to their moving average (EMA).

    Raises:
        WeightsError: the file holds no tensor of the model, or several networks.
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
    """The tensors of a dict and of each nested dict, with the keys that lead to the dict."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    yield keys, {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if len(keys) < DEEPEST:
        for name, value in named.items():
            if isinstance(value, dict):
                yield from _dicts(value, (*keys, name))


def _prefixes(tensors: Tensors, own: Collection[str]) -> Counter[str]:
    """For each prefix, the number of tensors whose names consist of the prefix and a name in `own`."""
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
    """The tensors of `state` that fit `model`. Only the head and the auxiliary heads of training may differ.

    Raises:
        WeightsError: other tensors differ, or a tensor cannot be used.
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
    """Copy `tensors` into a model, by name.

    `load_state_dict` is not used, because that of MNASNet needs a version, which a file of tensors does not hold.

    Raises:
        ValueError: the names or shapes differ from those of the model.
    """
    own = model.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ValueError("it holds other tensors than the model")
    for name, value in own.items():
        value.copy_(tensors[name])


def _other(arch: str) -> str:
    return f"name weights of {arch} made for this --image-size, or use --weights none"


def _head(model: nn.Module) -> str:
    """The name prefix of the layer that computes the logits: the last layer with parameters."""
    *_, last = (name for name, module in model.named_modules() if list(module.parameters(recurse=False)))
    return f"{last}."


def _usable(value: Tensor, dtype: torch.dtype, name: str, weights: str) -> Tensor:
    """A tensor of a file, converted to the type of the model.

    Raises:
        WeightsError: the tensor is not dense, is quantised, or holds values that are not finite real numbers.
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
        problem = "holds values that are not finite"
    if problem:
        raise WeightsError(f"The weights {weights} cannot be used: {name} {problem}; {WAYS_ON}.")
    return value.to(dtype)
