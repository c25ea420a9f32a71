"""Construction of torchvision's classification models, with one output for each class."""

import torch
from torch import nn
from torchvision import models

from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.option import unknown
from busi_tune.progress import Progress
from busi_tune.training.weights import check_weights, load_weights

# Without these arguments, GoogLeNet and Inception also return the output of an auxiliary head in training.
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
# Protocol Buffers are limited to 2 GiB, of which the graph and its metadata need a part.
LARGEST = 2**31 - 2**25
ARCHITECTURES: tuple[str, ...] = tuple(models.list_models(module=models))


def check_model(config: Config, progress: Progress) -> None:
    """Check that training can start with the model of `config`, without data and without memory for its weights.

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
    # Meta tensors, which take no memory, show whether the sizes fit. RegNet needs real tensors to compute layer widths.
    with torch.device("cpu" if config.arch.startswith("regnet") else "meta"):
        model = untrained(config, classes=2)
    if config.weights not in ("imagenet", "none"):
        unwrapped = check_weights(model, config.arch, config.weights)
        if unwrapped:
            progress.notice(unwrapped)


def _parameters(arch: str) -> int:
    """The number of parameters of an architecture with its ImageNet weights; 0 if torchvision does not know it."""
    return int(models.get_model_weights(arch).DEFAULT.meta["num_params"]) if arch in ARCHITECTURES else 0


def checkpoint_bytes(config: Config, classes: int) -> int:
    """The size of a run's checkpoints in bytes: the best weights, and the last weights with two optimiser moments."""
    with torch.device("cpu" if config.arch.startswith("regnet") else "meta"):
        model = untrained(config, classes)
    return 4 * sum(value.numel() * value.element_size() for value in model.parameters())


def untrained(config: Config, classes: int) -> nn.Module:
    """The model with random weights drawn from `config.seed`, on the CPU.

    Raises:
        ConfigError: the architecture is unknown, or does not accept images of `config.image_size`.
    """
    if config.arch not in ARCHITECTURES:
        raise ConfigError(f"arch: {unknown(config.arch, list(ARCHITECTURES), 'architecture')}")
    extra: dict[str, object] = {}
    if config.arch in ("googlenet", "inception_v3"):
        # torchvision trained these two with another normalisation, to which they can convert ImageNet's.
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
    """The model at the start of training: with random or pretrained weights, channels last, on `config.device`.

    Raises:
        ConfigError: see `untrained`.
        WeightsError: the pretrained weights cannot be loaded.
    """
    model = untrained(config, classes)
    if config.weights != "none":
        load_weights(model, config.arch, config.weights)
    return placed(model, config.device)


def placed(model: nn.Module, device: str) -> nn.Module:
    """Move the model to `device` and to channels last, the fastest memory layout for convolutions."""
    model.to(device)
    model.to(memory_format=torch.channels_last)
    return model
