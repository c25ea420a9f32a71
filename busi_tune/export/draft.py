"""The draft of an export: its files stay in a staging folder until they are published together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from busi_tune import files, images
from busi_tune.export import assembly
from busi_tune.export.average import fit_average
from busi_tune.export.calibration import OperatingPoint
from busi_tune.export.guard import Floats, Guard
from busi_tune.export.parity import Logits, Reference, Shown
from busi_tune.export.source import Fitted, Source, fit, reference_of
from busi_tune.export_options import ExportOptions
from busi_tune.inference import VERIFICATION
from busi_tune.inference.classifier import MAPS
from busi_tune.inference.signature import signature_of
from busi_tune.results import LABELS, PREDICTIONS, ModelCertificate

CARD = "README.md"
# The documents of an export, in the order in which they are published.
DOCUMENTS = (PREDICTIONS, LABELS, CARD, VERIFICATION)


@dataclass(frozen=True)
class Draft:
    """The draft of an export: its source, the fitted values, and the test pictures with PyTorch's logits.

    `staging` holds the files under their final names. `uncalibrated` has the float64 logits before the temperature.
    """

    staging: Path
    source: Source
    options: ExportOptions
    fitted: Fitted
    shown: Shown
    reference: Reference
    uncalibrated: Logits

    @classmethod
    def begin(cls, staging: Path, source: Source, options: ExportOptions) -> "Draft":
        """Fit the values on the validation split, and run PyTorch on the test split."""
        fitted = fit_average(source) if source.members else fit(source, options.sensitivity)
        shown = Shown.of(source.pictures("test"), source.size)
        reference, uncalibrated = reference_of(fitted.model, shown, source.labels("test"))
        if not source.members:
            source.check_answers(uncalibrated, reference.float32_error)
        return cls(staging, source, options, fitted, shown, reference, uncalibrated)

    def write(self, name: str, graph: onnx.ModelProto, facts: Mapping[str, object]) -> Path:
        """Write the model file `name` into the staging folder, with `facts` in its metadata; return its path."""
        path = self.staging / name
        files.write_bytes(path, assembly.finish(graph, facts))
        return path

    def facts(self, graph: onnx.ModelProto, guard: Guard, point: OperatingPoint | None) -> dict[str, object]:
        """The metadata of a model with this graph, guard and operating point."""
        source, config = self.source, self.source.identity.config
        facts: dict[str, object] = {
            "classes": list(source.classes),
            "image_size": str(source.size),
            "input": assembly.input_text(graph),
            "preprocessing": images.DESCRIPTION,
            "preprocessing_version": str(images.VERSION),
            "mean": list(config.mean),
            "std": list(config.std),
            "arch": " + ".join(sorted({member.identity.config.arch for member in source.members or (source,)})),
            "split": source.identity.split,
            "temperature": repr(self.fitted.temperature),
            "guard": guard.entries(),
        }
        if any(value.name == MAPS for value in graph.graph.output):
            facts[MAPS] = assembly.MAP_TEXT
        if self.fitted.averaged:
            facts["averaged"] = self.fitted.averaged.entry
        return facts | ({"operating_point": point.entry()} if point else {})


@dataclass(frozen=True)
class Made:
    """A verified model file: its graph, metadata and certificate, and its `guard` scores (n, k) of the test images."""

    graph: onnx.ModelProto
    facts: Mapping[str, object]
    certificate: ModelCertificate
    guard: Floats


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder`, deleted at the end. After a kill, `locks.only_writer` deletes it."""
    place = files.temporary_for(folder / "export")
    files.remove_folder(place)
    try:
        yield files.make_folder(place)
    finally:
        files.remove_folder(place)


def publish(staging: Path, folder: Path, *, passed: bool) -> None:
    """Move the files of an export from its staging folder into `folder`; models come last, and only if it `passed`.

    Earlier models in `folder` are replaced or deleted. After a kill at any moment, the certificate in `folder` covers
    no model that failed.
    """
    models = sorted(path.name for path in staging.glob("*.onnx")) if passed else []
    with files.explained(folder, "published"):
        for name in (signature_of(Path(VERIFICATION)).name, *DOCUMENTS):
            if (staging / name).exists():
                (staging / name).replace(folder / name)
            else:
                # The document of the previous export is deleted along with its models.
                (folder / name).unlink(missing_ok=True)
        files.sync_folder(folder)
        for old in folder.glob("*.onnx"):
            if old.name not in models:
                old.unlink()
        for name in models:
            (staging / name).replace(folder / name)
        files.sync_folder(folder)
