"""What an export is made of: a finished run with its data, and what is fitted on the validation split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busi_tune import images
from busi_tune.data.dataset import Dataset, Part
from busi_tune.evaluation.metrics import Answers, Labels, softmax
from busi_tune.export import assembly, quantisation
from busi_tune.export.calibration import OperatingPoint, calibration_figures, fit_temperature, operating_point
from busi_tune.export.guard import Guard, fit_guard
from busi_tune.export.parity import Logits
from busi_tune.images import Pixels
from busi_tune.progress import Progress
from busi_tune.training import exportable
from busi_tune.training.run_folder import Identity, read_identity


@dataclass(frozen=True)
class Source:
    """A finished run with its best model, and the data that it was made on."""

    run: Path
    identity: Identity
    model: exportable.ServedModel
    dataset: Dataset
    progress: Progress

    @classmethod
    def of(cls, run: Path, dataset: Dataset, progress: Progress) -> "Source":
        """The finished run in a folder."""
        identity = read_identity(run)
        return cls(run, identity, exportable.served(run, identity), dataset, progress)

    @property
    def size(self) -> int:
        """Height and width of what the network sees."""
        return self.identity.config.image_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.identity.classes

    def part(self, name: str) -> Part:
        """One split's images at the network's size."""
        return self.dataset.part(name, self.size, self.progress)

    def groups(self, name: str) -> Any:
        """The group of each image of a split, (images,)."""
        return self.dataset.split.rows(name)["group"].to_numpy()

    def pictures(self, name: str) -> list[Pixels]:
        """One split's images as they are, from the files once more: decoding is part of what is verified."""
        return [images.picture(self.dataset.listing.root / path) for path in self.part(name).paths]

    def answers(self, name: str, logits: Logits) -> Answers:
        """Logits (n, classes) of a split's images as answers."""
        return Answers(self.labels(name), softmax(logits), self.classes)

    def labels(self, name: str) -> Labels:
        """The class numbers of a split's images."""
        return self.dataset.labels(name)


@dataclass(frozen=True)
class Fitted:
    """What was fitted on the validation split, and the network with its temperature; none has seen a test image."""

    temperature: float
    calibration: dict[str, Any]
    point: OperatingPoint | None
    network: bytes
    guard: Guard


def fit(source: Source, sensitivity: float | None) -> Fitted:
    """Fit temperature, operating point and guard; the model has the temperature from now on."""
    assert source.model.temperature == 1, "the temperature has been set"
    logits, _ = exportable.served_answers(source.model, source.part("validation").pixels(), "float32")
    labels = source.labels("validation")
    temperature = fit_temperature(logits, labels)
    point = None
    if sensitivity is not None:
        answers = source.answers("validation", logits / temperature)
        point = operating_point(answers, source.groups("validation"), sensitivity)
    source.model.temperature.fill_(temperature)
    network = assembly.folded(exportable.to_onnx(source.model, source.size))
    figures = calibration_figures(logits, temperature, labels, source.classes)
    return Fitted(temperature, figures, point, network, guard_of(network, source))


def guard_of(network: bytes, source: Source) -> Guard:
    """The guard of a network, from what ONNX Runtime makes of the training and the validation images."""
    known, new = (source.part(name).pixels() for name in ("train", "validation"))
    features = [quantisation.outputs(network, pixels, "features") for pixels in (known, new)]
    return fit_guard(known, features[0], new, features[1])
