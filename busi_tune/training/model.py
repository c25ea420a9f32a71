"""Any torchvision classification model with as many outputs as there are classes."""

import torch
from torch import nn
from torchvision import models

from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.option import unknown
from busi_tune.progress import Progress
from busi_tune.training.weights import check_weights, load_weights

# These two would otherwise also return an auxiliary head's output while training.
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
# Protocol Buffers end at 2 GiB; the graph and its metadata need some of it.
LARGEST = 2**31 - 2**25
ARCHITECTURES: tuple[str, ...] = tuple(models.list_models(module=models))


def check_model(config: Config, progress: Progress) -> None:
    """Check, without data and without allocating the model, that training could start with it.

    Raises:
        ConfigError: see `untrained`; or the model is too large to be exported.
        WeightsError: the file of weights cannot be loaded.
    """
    size = 4 * _parameters(config.arch)
    if size > LARGEST:
        raise ConfigError(
            f"{config.arch} has {size / 1e9:.1f} GB of weights, and an exported model, one ONNX file, holds less than "
            f"{2**31 / 1e9:.1f} GB; choose a smaller --arch."
        )
    # Tensors without memory show whether the sizes fit; RegNet computes its layers' widths with real ones.
    with torch.device("cpu" if config.arch.startswith("regnet") else "meta"):
        model = untrained(config, classes=2)
    if config.weights not in ("imagenet", "none"):
        unwrapped = check_weights(model, config.arch, config.weights)
        if unwrapped:
            progress.notice(unwrapped)


def _parameters(arch: str) -> int:
    """How many numbers the ImageNet weights of an architecture hold; 0 for one that torchvision does not know."""
    return int(models.get_model_weights(arch).DEFAULT.meta["num_params"]) if arch in ARCHITECTURES else 0


def checkpoint_bytes(config: Config, classes: int) -> int:
    """How much a run's checkpoints take: the best weights, and the last ones with the optimiser's two moments."""
    with torch.device("cpu" if config.arch.startswith("regnet") else "meta"):
        model = untrained(config, classes)
    return 4 * sum(value.numel() * value.element_size() for value in model.parameters())


def untrained(config: Config, classes: int) -> nn.Module:
    """The architecture with its random start, drawn from `config.seed`, on the CPU.

    Raises:
        ConfigError: an unknown architecture, or one that does not take images of that size.
    """
    if config.arch not in ARCHITECTURES:
        raise ConfigError(f"arch: {unknown(config.arch, list(ARCHITECTURES), 'architecture')}")
    extra: dict[str, object] = {}
    if config.arch in ("googlenet", "inception_v3"):
        # torchvision trained these two on another normalisation, which they make from ImageNet's themselves.
        extra = {**WITHOUT_AUXILIARY, "transform_input": config.weights == "imagenet"}
    if config.arch.startswith("vit_"):
        extra = {"image_size": config.image_size}
    if config.arch.startswith("maxvit"):
        extra = {"input_size": (config.image_size, config.image_size)}
    torch.manual_seed(config.seed)
    try:
        model: nn.Module = models.get_model(config.arch, weights=None, num_classes=classes, **extra)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, config.image_size, config.image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{config.arch} does not take images of {config.image_size} pixels ({reason}); choose another --image-size."
        ) from error
    return model


def build_model(config: Config, classes: int) -> nn.Module:
    """The model as training starts with it: random or pretrained weights, channels last, on its device.

    Raises:
        ConfigError: see `untrained`.
        WeightsError: the pretrained weights cannot be had.
    """
    model = untrained(config, classes)
    if config.weights != "none":
        load_weights(model, config.arch, config.weights)
    return placed(model, config.device)


def placed(model: nn.Module, device: str) -> nn.Module:
    """The same model on `device`, channels last: the layout that convolutions are fastest in."""
    model.to(device)
    model.to(memory_format=torch.channels_last)
    return model
