"""An exported model in an ONNX Runtime session."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from busi_tune import images
from busi_tune.errors import ConfigError, FileError
from busi_tune.images import Pixels
from busi_tune.inference.metadata import read_metadata
from busi_tune.inference.structure import check_structure

Floats = NDArray[np.float32]

Optimisation = Literal["none", "basic", "all"]

OPTIMISATION: dict[Optimisation, ort.GraphOptimizationLevel] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# ONNX Runtime has no public names for these exceptions. Its documentation ("Common errors") imports them from here.
REFUSALS = (
    onnxruntime_pybind11_state.EPFail,
    onnxruntime_pybind11_state.Fail,
    onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime_pybind11_state.NotImplemented,
    onnxruntime_pybind11_state.RuntimeException,
    MemoryError,
    OverflowError,
    # Raised for metadata that are nested too deeply, and for errors that have no class in ONNX Runtime.
    RuntimeError,
)
SUFFIX = "ExecutionProvider"
# The output with class activation maps, which an export has on request.
MAPS = "cam"


@dataclass(frozen=True)
class Outputs:
    """The outputs for n images: logits and probabilities (n, classes), and the scores of the guard (n, scores).

    `maps` has the class activation maps (n, classes, h, w) if they were requested.
    """

    logits: Floats
    probabilities: Floats
    guard: Floats
    maps: Floats | None = None


class Classifier:
    """An exported model in an ONNX Runtime session, with its `metadata`.

    `fixed_size` is the height and width of its input, or None if it accepts any size. `has_maps` is true if the model
    has class activation maps. `optimisation` is "none", "basic"
    or "all". With "all", ONNX Runtime folds and rearranges the weights. This takes twice their memory in addition, and
    saves time from about the eighth image on.

    Raises:
        FileError: the file is missing, damaged, not an export of busi-tune, or has content that is never loaded.
        ConfigError: this ONNX Runtime does not have the provider.
    """

    def __init__(
        self, path: Path, *, threads: int = 0, optimisation: Optimisation = "all", provider: str = "cpu"
    ) -> None:
        check_structure(path)
        self.path = path
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.graph_optimization_level = OPTIMISATION[optimisation]
        # Both keep memory for each shape of the input, and images have many shapes.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # Otherwise the file's name could select another format, which was not checked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        chosen = provider_name(provider)
        try:
            # With the fallback, a failed session would continue on another provider and print that to stdout.
            self.session = ort.InferenceSession(_named(path), options, providers=[chosen], enable_fallback=0)
            self.fixed_size = self._checked_size()
            self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, self.fixed_size)
        except (*REFUSALS, ValueError) as error:
            raise self._refused(error) from error
        if chosen not in self.session.get_providers():
            raise ConfigError(f"--provider {provider} could not be started on this machine; use --provider cpu.")
        if self.metadata.preprocessing not in {None, images.VERSION}:
            raise FileError(
                f"{path} was made for preprocessing {self.metadata.preprocessing}, and this busi-tune does "
                f"{images.VERSION}; export it again or install the matching version."
            )
        self.has_maps = MAPS in {entry.name for entry in self.session.get_outputs()}
        # If the metadata name a guard that the graph does not have, `run` fails.
        self.outputs = ["logits", "probabilities", *(["guard"] if self.metadata.guards else [])]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.metadata.classes

    @property
    def image_size(self) -> int:
        """The height and width of the network's input, in pixels."""
        return self.metadata.image_size

    def run(self, pixels: Pixels, *, maps: bool = False) -> Outputs:
        """The outputs for images (n, height, width, 3), uint8 RGB; with `maps` also the class activation maps.

        Raises:
            FileError: the model fails on the images, an output is not n rows of finite numbers, or it has no maps.
        """
        names = [*self.outputs, MAPS] if maps else self.outputs
        try:
            found = self.session.run(names, {"images": pixels})
        except (*REFUSALS, ValueError) as error:
            raise self._refused(error) from error
        widths = {"logits": len(self.classes), "probabilities": len(self.classes), "guard": len(self.metadata.guards)}
        for name, array in zip(names, found, strict=True):
            if name != MAPS and (not isinstance(array, np.ndarray) or array.shape != (len(pixels), widths[name])):
                raise self._refused(ValueError(f"its output {name} must have {widths[name]} numbers for each image"))
            if name == MAPS and not self._are_maps(array, len(pixels)):
                raise self._refused(ValueError(f"its output {name} must have a map for each class"))
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise self._refused(ValueError(f"its {name} are not finite numbers"))
        outputs = dict(zip(names, found, strict=True))
        guard = outputs.get("guard", np.zeros((len(pixels), 0), np.float32))
        return Outputs(outputs["logits"], outputs["probabilities"], guard, outputs.get(MAPS))

    def _are_maps(self, array: object, count: int) -> bool:
        """Whether these are `count` maps for each class, none of which has more cells than the network has pixels."""
        if not isinstance(array, np.ndarray) or array.ndim != 4 or array.shape[:2] != (count, len(self.classes)):
            return False
        return all(1 <= side <= self.image_size for side in array.shape[2:])

    def _checked_size(self) -> int | None:
        """The fixed height and width of the input, or None if the input accepts any size."""
        inputs = [(entry.name, entry.type, entry.shape) for entry in self.session.get_inputs()]
        outputs = {entry.name for entry in self.session.get_outputs()}
        fits = len(inputs) == 1 and inputs[0][:2] == ("images", "tensor(uint8)") and len(inputs[0][2]) == 4
        if not fits or not {"logits", "probabilities"} <= outputs:
            raise ValueError("it does not take `images` of uint8 and give `logits` and `probabilities`")
        height, width = (side if isinstance(side, int) else None for side in inputs[0][2][1:3])
        if height != width:
            raise ValueError("its input is not square")
        return height

    def _refused(self, error: Exception) -> FileError:
        reason = (str(error).splitlines() or [type(error).__name__])[0].encode("unicode_escape").decode()
        return FileError(f"{self.path} is not a model that busi-tune can use ({reason[:300]}); export it again.")


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of a provider such as "cpu" or "cuda".

    Raises:
        ConfigError: this ONNX Runtime does not have the provider.
    """
    known: dict[str, str] = {name.removesuffix(SUFFIX).lower(): name for name in ort.get_available_providers()}
    # Azure's provider calls a web service and has none of our operators.
    known.pop("azure", None)
    if provider.lower() not in known:
        raise ConfigError(f"--provider must be one that this ONNX Runtime has ({', '.join(known)}), not {provider!r}.")
    return known[provider.lower()]


def _named(path: Path) -> str | bytes:
    """The name of a model file, or its content if the name is not UTF-8.

    ONNX Runtime accepts names in UTF-8 in any locale. Reading the content takes additional memory of the file's size.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return path.read_bytes()
