"""Class activation maps: how much each place in an image contributed to the logit of each class.

For a network that ends in global average pooling and one linear layer, the map is exact (Zhou et al., "Learning deep
features for discriminative localization", 2016). The linear layer, applied at each position of the last feature map,
gives a logit for each position and class, and the mean over all positions is the network's logit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from busi_tune.config import Config
from busi_tune.errors import ConfigError
from busi_tune.images import Pixels
from busi_tune.training import exportable
from busi_tune.training.exportable import ExportableModel, last_layer
from busi_tune.training.model import untrained
from busi_tune.training.run_folder import read_identity

# Modules, functions and methods that change no numbers in evaluation mode, only their shape.
UNCHANGING = (nn.Flatten, nn.Dropout, nn.Identity)
UNCHANGING_CALLS = (torch.flatten, nn.functional.dropout, "flatten", "squeeze")
Maps = NDArray[np.float32]


class MappedModel(ExportableModel):
    """An exportable model with a third output: the class activation maps (n, classes, h, w).

    Its network comes from `traced`. The mean of a map over h and w is the logit: the whole bias is added at each
    position, and maps are divided by the temperature like logits.
    """

    outputs = (*ExportableModel.outputs, "cam")

    def uncalibrated(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits before the temperature, features, and the maps of these logits."""
        logits, features, area = self.model(self.normalised(pixels))
        layer = last_layer(self.model)
        if isinstance(layer, nn.Linear):
            area = layer(area.movedim(1, -1)).movedim(-1, 1)
        return logits, features.mean(dim=(2, 3)) if features.dim() == 4 else features, area


def traced(network: nn.Module) -> fx.GraphModule:
    """The network for a `MappedModel`: its outputs are logits, the input of the last layer, and the last feature map.

    It shares the weights of `network`.

    Raises:
        ValueError: the network does not end in global average pooling and one linear layer.
    """
    found = fx.symbolic_trace(network)
    features, area = _end(found)
    (output,) = (node for node in found.graph.nodes if node.op == "output")
    output.args = ((output.args[0], features, area),)
    found.recompile()
    return found


def check_maps(config: Config) -> None:
    """Check that the network of `config` has exact class activation maps. This needs no memory for weights.

    Raises:
        ConfigError: it has none.
    """
    with torch.device("cpu" if config.arch.startswith("regnet") else "meta"):
        model = untrained(config, classes=2)
    try:
        _end(fx.symbolic_trace(model))
    except ValueError as error:
        raise ConfigError(
            f"cam needs a network that ends in global average pooling and one linear layer, and {config.arch} does "
            "not; export it without --cam, or train another --arch."
        ) from error


def _end(network: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """The nodes of the input of the last layer, and of the feature map that global average pooling reduces.

    SqueezeNet's last layer is a convolution before the pooling.

    Raises:
        ValueError: the network does not end in global average pooling and one linear layer.
    """
    last = last_layer(network)
    (layer,) = (node for node in network.graph.nodes if _module(network, node) is last)
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    node = _before(network, _input(output))
    if node is layer:
        node = _before(network, _input(node))
    elif isinstance(last, nn.Linear):
        raise ValueError(f"{node} follows the last linear layer")
    if not _is_global_mean(network, node):
        raise ValueError(f"{node} is not global average pooling")
    return _input(layer), _input(node)


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _before(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last node that changes numbers: `node` or one of its predecessors."""
    while isinstance(_module(network, node), UNCHANGING) or (
        node.op in {"call_function", "call_method"} and node.target in UNCHANGING_CALLS
    ):
        node = _input(node)
    return node


def _input(node: fx.Node) -> fx.Node:
    """The first input of a node."""
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _is_global_mean(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the mean over height and width."""
    module = _module(network, node)
    if module is not None:
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in {1, (1, 1)}
    if node.target is nn.functional.adaptive_avg_pool2d:
        return node.args[1] in {1, (1, 1)}
    return node.op == "call_method" and node.target == "mean" and bool(node.args[1] == [2, 3])


def maps_of_run(
    run: Path, seen: Callable[[int], Pixels], targets: Sequence[int]
) -> tuple[Sequence[Maps], Literal["cam", "grad-cam"]]:
    """The map (h, w) of each image for its class in `targets`, by the run's best model, and the method.

    `seen` returns the images (n, size, size, 3) for a size. For networks without exact maps, Grad-CAM is used.

    Raises:
        ConfigError: Grad-CAM is not installed, or the network has no feature map for it.
        FileError: the run's checkpoint has changed.
    """
    identity = read_identity(run)
    model, config = exportable.exportable_model(run, identity), identity.config
    pixels = seen(config.image_size)
    try:
        network = traced(model.model)
    except ValueError:
        return _grad_cam(model, pixels, targets, config.arch), "grad-cam"
    found = exportable.computed(MappedModel(network, config.mean, config.std).eval(), pixels, "float32").maps
    return [maps[target].astype(np.float32) for maps, target in zip(found, targets, strict=True)], "cam"


def _grad_cam(model: ExportableModel, pixels: Pixels, targets: Sequence[int], arch: str) -> Sequence[Maps]:
    """Maps by Grad-CAM (Selvaraju et al., 2017) at the last feature map of a network."""
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError:
        raise ConfigError(
            f"{arch} has no exact maps, and Grad-CAM needs captum, which is not installed; "
            "pip install '/path/to/busi-tune[explain]' installs it."
        ) from None
    inputs = model.normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    layer = _last_area(model.model, inputs)
    if layer is None:
        raise ConfigError(f"{arch} has no feature map of several cells before its last layers.")
    maps = LayerGradCam(model.model, layer).attribute(inputs, target=torch.tensor(targets), relu_attributions=True)
    return list(maps.detach().numpy()[:, 0])


def _last_area(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    """The last module with an output (n, channels, h, w) of several cells.

    None if this module runs in the first half of the network.
    """
    ran: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        ran.append((module, isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1))

    hooks = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    with torch.inference_mode():
        network(inputs[:1])
    for hook in hooks:
        hook.remove()
    places = [place for place, (_, is_area) in enumerate(ran) if is_area]
    # A vision transformer has such an output only before its first block.
    return ran[places[-1]][0] if places and places[-1] >= len(ran) / 2 else None
