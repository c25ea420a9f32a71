"""The source of an export: a finished run with its data, and the values fitted on its validation split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from busi_tune import files, images
from busi_tune.data.dataset import Dataset, Part
from busi_tune.errors import FileError, RunError
from busi_tune.evaluation.metrics import Answers, Labels, confusion_matrix, softmax, summarise
from busi_tune.export import quantisation
from busi_tune.export.calibration import OperatingPoint, calibration_figures, fit_temperature, operating_point
from busi_tune.export.graphs import folded, with_tensor
from busi_tune.export.guard import Floats, Guard, fit_guard
from busi_tune.export.parity import Logits, MapReference, Reference, Shown, distance, few
from busi_tune.images import Pixels
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import PREDICTIONS, AveragedEntry, BeforeAfter, RiskCoveragePoint
from busi_tune.training import class_maps, exportable
from busi_tune.training.exportable import Exportable, ExportableModel
from busi_tune.training.run_folder import Identity, read_identity

# The number of model copies with moved weights, and of pictures that PyTorch runs in float32.
NUDGES = 4
SINGLE = 16
# The number of training images to which the guard's features are fitted. More would take long and change little.
FEATURED = 256
# The allowed difference of probabilities between two devices: a constant, plus a multiple of PyTorch's float32 error.
LEAST_DIFFERENCE, DEVICES = 1e-3, 10


@dataclass(frozen=True)
class Source:
    """A finished run with its best model at temperature 1, and its dataset."""

    run: Path
    identity: Identity
    model: ExportableModel
    dataset: Dataset
    progress: Progress
    # For an average, the runs of all folds, with this run first; else empty.
    members: tuple["Source", ...] = ()

    @classmethod
    def of(cls, run: Path, dataset: Dataset, progress: Progress) -> "Source":
        """The finished run in a folder."""
        identity = read_identity(run)
        return cls(run, identity, exportable.exportable_model(run, identity), dataset, progress)

    @classmethod
    def of_all(cls, runs: Mapping[Path, Dataset], progress: Progress) -> "Source":
        """One finished run with its data; for several folds, the first run with all folds as its members."""
        members = tuple(cls.of(run, dataset, progress) for run, dataset in runs.items())
        return members[0] if len(members) == 1 else replace(members[0], members=members)

    def with_maps(self) -> "Source":
        """The same source with a model that also has the output `cam`, class activation maps.

        Raises:
            ValueError: the network has no exact maps. `class_maps.check_maps` refuses such networks with a message.
        """
        config = self.identity.config
        model = class_maps.MappedModel(class_maps.traced(self.model.model), config.mean, config.std).eval()
        return replace(self, model=model)

    @property
    def size(self) -> int:
        """Height and width of the network's input."""
        return self.identity.config.image_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.identity.classes

    def part(self, name: str) -> Part:
        """One split's images at the network's size."""
        return self.dataset.part(name, self.size, self.progress)

    def groups(self, name: str) -> Labels:
        """The group of each image of a split, (images,)."""
        return self.dataset.split.rows(name)["group"].to_numpy()

    def pictures(self, name: str) -> list[Pixels]:
        """One split's images in their original sizes, read again from the files, so that decoding is verified, too."""
        return [images.picture(self.dataset.listing.root / path) for path in self.part(name).paths]

    def answers(self, name: str, logits: Logits) -> Answers:
        """The predictions of a split's images from their logits (n, classes)."""
        return Answers(self.labels(name), softmax(logits), self.classes, self.identity.config.positive)

    def check_answers(self, logits: Logits, error: float) -> None:
        """Compare the model's float64 logits of the test split with the predictions that the run recorded.

        `error` is the error of PyTorch's float32 logits on this machine; the run may come from another device.

        Raises:
            RunError: the predictions differ or are of other images.
            FileError: the run's table of predictions cannot be read.
        """
        path, names = self.run / PREDICTIONS, [f"p_{name}" for name in self.classes]
        with files.explained(path, "read"):
            try:
                table = pd.read_csv(path, dtype={"path": str, "class": str}, keep_default_na=False)
                recorded = table[["path", "class", *names]].astype(dict.fromkeys(names, np.float64))
            except (ValueError, KeyError) as error_of_table:
                raise FileError(f"{path} is damaged; delete it, and it is made again.") from error_of_table
        rows, part = self.dataset.split.rows("test"), self.part("test")
        # Tables hold names in composed Unicode form, whatever form the file system uses.
        if [composed(path) for path in recorded["path"]] != [composed(path) for path in part.paths] or list(
            recorded["class"]
        ) != list(rows["class"]):
            raise RunError(f"{path} is of other images than the run's test split; delete it, and it is made again.")
        differences = np.abs(recorded[names].to_numpy() - softmax(logits)).max(axis=1)
        # A probability changes by less than the logits do, so the logits' error is a bound.
        if not (differences <= LEAST_DIFFERENCE + DEVICES * error).all():
            worst = rows["path"].iloc[int(differences.argmax())]
            raise RunError(
                f"The model in {self.run} does not give the predictions in the run's {PREDICTIONS}: probabilities "
                f"differ by up to {differences.max():.2g}, most for {worst}; its configuration, its checkpoint "
                "or that file is not the run's own."
            )

    def labels(self, name: str) -> Labels:
        """The class numbers of a split's images."""
        return self.dataset.labels(name)


@dataclass(frozen=True)
class Fitted:
    """The values fitted on the validation split, and the model at its temperature. No test image was used.

    `network` is the ONNX graph of `model`, which shares its weights with the source's model. `risk_coverage` is the
    curve of the calibrated probabilities.
    """

    temperature: float
    calibration: BeforeAfter
    risk_coverage: list[RiskCoveragePoint]
    point: OperatingPoint | None
    model: Exportable
    network: bytes
    guard: Guard
    averaged: "Averaged | None" = None


@dataclass(frozen=True)
class Averaged:
    """The predictions of an average's models, each for its own fold, before and after its temperature, and the cost.

    `groups` has the group of each image. Each model predicts only its own fold, because no image is new to all models.
    """

    before: Answers
    after: Answers
    groups: Labels
    entry: AveragedEntry


def fit(source: Source, sensitivity: float | None) -> Fitted:
    """Fit temperature, operating point and guard to the outputs of the exported network."""
    network = folded(exportable.to_onnx(source.model, source.size))
    single, features = quantisation.outputs(network, source.part("validation").pixels(), "logits", "features")
    logits = single.astype(np.float64)
    temperature = fit_temperature(logits, source.labels("validation"))
    before, after = (source.answers("validation", values) for values in (logits, logits / temperature))
    point = None if sensitivity is None else operating_point(after, source.groups("validation"), sensitivity)
    model, guard = at_temperature(source, temperature), guard_of(network, source, features)
    network = with_tensor(network, "temperature", model.temperature.numpy())
    return Fitted(
        temperature=temperature,
        calibration=calibration_figures(before, after),
        risk_coverage=summarise(after)["risk_coverage"],
        point=point,
        model=model,
        network=network,
        guard=guard,
    )


def at_temperature(source: Source, temperature: float) -> ExportableModel:
    """The source's model with its logits divided by `temperature`. Both models share the weights."""
    config = source.identity.config
    return type(source.model)(source.model.model, config.mean, config.std, temperature).eval()


def guard_of(network: bytes, source: Source, features: Floats | None = None) -> Guard:
    """The guard of a network, fitted to the network's features of the validation images and some training images.

    `features` (n, d) are those of the validation images, if they are already known.
    """
    known, new = (source.part(name).pixels() for name in ("train", "validation"))
    some = known[np.linspace(0, len(known) - 1, min(len(known), FEATURED)).astype(np.int64)]
    if features is None:
        (features,) = quantisation.outputs(network, new, "features")
    return fit_guard(known, quantisation.outputs(network, some, "features")[0], new, features)


def reference_of(model: Exportable, shown: Shown, labels: Labels) -> tuple[Reference, Logits]:
    """PyTorch's reference for a verification, and its float64 logits of the pictures before the temperature.

    The float32 errors are measured on a few pictures: half have the largest logits, the others are drawn at random.
    """
    exact, exact_probe = (exportable.computed(model, each, "float64") for each in (shown.pixels, shown.probe_pixels))
    rows = few(SINGLE, -np.abs(exact.logits).max(axis=1), np.random.default_rng(0).permutation(len(exact.logits)))
    pixels = shown.pixels[rows]
    single, probe = (exportable.computed(model, each, "float32") for each in (pixels, shown.probe_pixels))
    nudges = [exportable.computed(exportable.nudged(model, seed), pixels, "float32") for seed in range(NUDGES)]
    maps = None
    if exact.maps.size:
        maps = MapReference(
            maps=exact.maps,
            probe=exact_probe.maps,
            float32_error=distance(single.maps, exact.maps[rows]),
            step_error=max(distance(each.maps, exact.maps[rows]) for each in nudges),
            probe_float32_error=distance(probe.maps, exact_probe.maps),
        )
    reference = Reference(
        logits=exact.logits,
        float32_error=distance(single.logits, exact.logits[rows]),
        step_error=max(distance(each.logits, exact.logits[rows]) for each in nudges),
        probe=exact_probe.logits,
        probe_float32_error=distance(probe.logits, exact_probe.logits),
        confusion_matrix=confusion_matrix(labels, exact.logits.argmax(axis=1), exact.logits.shape[1]).tolist(),
        maps=maps,
    )
    return reference, exact.before
