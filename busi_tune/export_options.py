"""The options of an export."""

from dataclasses import dataclass
from typing import Literal

from busi_tune.option import Options, option, stated

NetworkOnly = Literal["none", "dynamic", "static"]


@stated
@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """The options of an export: the models in addition to the float32 model, and the operating point.

    Raises:
        ConfigError: one or more values have a wrong type or break a rule; the message names all of them.
    """

    int8: bool = option(
        False, "Also write model.int8.onnx, if it passes its accuracy check on the validation split", group="output"
    )
    float16: bool = option(
        False, "Also write model.float16.onnx, if it passes its accuracy check on the validation split", group="output"
    )
    network_only: NetworkOnly = option(
        "none",
        "Also write network.onnx, the bare network: normalised float32 pixels to logits, for a batch "
        "of any size (dynamic) or of one image (static)",
        group="output",
    )
    cam: bool = option(
        False,
        "Also give the models an output `cam`, class activation maps that show where the network looked; needs a "
        "network that ends in global average pooling and one linear layer",
        group="output",
    )
    max_drop: float = option(
        0.01,
        "Largest loss of accuracy, and of sensitivity for the disease, that an int8 or float16 model may have on the "
        "validation split; 0.01 is one percentage point",
        group="output",
        low=0,
        below=1,
    )
    sensitivity: float | None = option(
        None,
        "Intended sensitivity for the disease, as in 0.95; the validation split sets a threshold for it",
        group="output",
        above=0,
        below=1,
        unset="no threshold",
    )
