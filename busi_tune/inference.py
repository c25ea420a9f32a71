"""Images in, probabilities out, with ONNX Runtime alone; nothing here knows how the model was made."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from busi_tune import files, images
from busi_tune.errors import BusiTuneError, FileError, ImageError
from busi_tune.images import Pixels

MODEL = "model.onnx"
VERIFICATION = "verification.json"
OPTIMISATION = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
REFUSALS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


@dataclass(frozen=True)
class Prediction:
    """One file's answer: probabilities in the order of the classes, or the reason why there is none."""

    path: str
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Classifier:
    """An exported model in an ONNX Runtime session, with the class names and image size from its metadata.

    Raises:
        FileError: the file is missing, damaged, or not an export of busi-tune.
    """

    def __init__(self, path: Path, *, threads: int = 0, optimisation: str = "all") -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.graph_optimization_level = OPTIMISATION[optimisation]
        with files.explained(path, "read"):
            data = path.read_bytes()
        try:
            self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            facts = self.session.get_modelmeta().custom_metadata_map
            self.classes: tuple[str, ...] = tuple(json.loads(facts["classes"]))
            self.image_size = int(facts["image_size"])
            version = int(facts["preprocessing_version"])
        except (*REFUSALS, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FileError(f"{path} is not a model that busi-tune exported ({reason}); export it again.") from error
        if version != images.VERSION:
            raise FileError(
                f"{path} was made for preprocessing {version}, and this busi-tune does {images.VERSION}; "
                "export it again or install the matching version."
            )

    def logits_and_probabilities(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both for images (n, size, size, 3) uint8 RGB: two arrays of shape (n, classes)."""
        logits, probabilities = self.session.run(["logits", "probabilities"], {"images": pixels})
        return logits, probabilities


def open_export(folder: Path, threads: int = 0) -> Classifier:
    """The classifier of an export folder whose certificate says that it is verified and unchanged.

    Raises:
        BusiTuneError: there is no export, it did not pass, or its model is not the one that passed.
    """
    if not (folder / MODEL).exists():
        raise FileError(f"{folder} holds no {MODEL}; name a folder that `busi-tune export` made.")
    certificate = files.read_json(folder / VERIFICATION)
    if certificate.get("passed") is not True:
        raise BusiTuneError(f"The export in {folder} did not pass its verification; export it again.")
    if certificate.get("model_sha256") != files.sha256(folder / MODEL):
        raise BusiTuneError(
            f"{folder / MODEL} is not the file that was verified (its SHA-256 differs); export it again."
        )
    return Classifier(folder / MODEL, threads=threads)


def predict_files(classifier: Classifier, paths: Iterable[Path], batch_size: int = 32) -> Iterator[Prediction]:
    """An answer for each file, in order; a file that cannot be read gets its error, and the rest goes on."""

    def load(path: Path) -> Pixels | str:
        try:
            return images.read(path, classifier.image_size)
        except ImageError as error:
            return str(error)

    remaining = iter(paths)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(remaining, batch_size)):
            loaded = list(pool.map(load, batch))
            readable = [pixels for pixels in loaded if not isinstance(pixels, str)]
            answers: Iterator[Any] = iter(())
            if readable:
                answers = iter(classifier.logits_and_probabilities(np.stack(readable))[1].tolist())
            for path, pixels in zip(batch, loaded, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(str(path), error=pixels)
                else:
                    row = next(answers)
                    yield Prediction(str(path), classifier.classes[int(np.argmax(row))], tuple(row))


def image_paths(arguments: Iterable[Path]) -> list[Path]:
    """Files as they are, and for a folder all images in it and below, sorted; masks of BUSI are left out.

    Raises:
        FileError: an argument does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument.exists():
            raise FileError(f"{argument} does not exist; name image files or folders of them.")
        inside = images.walk(argument) if argument.is_dir() else [argument]
        chosen = [path for path in inside if argument.is_file() or not images.is_mask(path)]
        if not chosen:
            raise FileError(f"{argument} holds no image ({', '.join(sorted(images.SUFFIXES))}); name another folder.")
        found += chosen
    return found
