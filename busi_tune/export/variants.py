"""The int8 and the float16 model of an export: past their gate, and certified by a yardstick of their own."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from busi_tune import files
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import summarise
from busi_tune.export import assembly, gate, quantisation, resize
from busi_tune.export.assembly import Made
from busi_tune.export.calibration import at_threshold, operating_point
from busi_tune.export.detection import detection_rates
from busi_tune.export.export_options import ExportOptions
from busi_tune.export.guard import Guard, guard_graph
from busi_tune.export.parity import Logits, Shown, differing, outputs_of
from busi_tune.export.source import Source, guard_of
from busi_tune.images import Pixels
from busi_tune.inference import Classifier

Result = dict[str, Any]
CALIBRATION_IMAGES = 128
FORMS = ("int8", "float16")
Judge = Callable[[bytes], gate.Gate]


def make_variant(
    form: str,
    folder: Path,
    source: Source,
    network: bytes,
    options: ExportOptions,
    facts: Mapping[str, Any],
    float32: Logits,
    shown: Shown,
) -> Made:
    """The model of `form`, "int8" or "float16"; `float32` are the float32 model's logits of the test images `shown`.

    Raises:
        GateError: it does not pass its gate on the validation split.
    """
    validation, labels = source.part("validation").pixels(), source.labels("validation")
    exact = quantisation.logits(network, validation)

    def judge(candidate: bytes) -> gate.Gate:
        return gate.compare(exact, quantisation.logits(candidate, validation), labels, source.classes, options.max_drop)

    small, passed, kept = _shrunk(form, network, source, judge)
    guard = guard_of(small, source)
    facts = dict(facts) | {"precision": form, "guard": guard.to_metadata()}
    if options.sensitivity is not None:
        answers = source.answers("validation", quantisation.logits(small, validation))
        point = operating_point(answers, source.groups("validation"), options.sensitivity)
        facts["operating_point"] = point.to_dict()
    graph = assembly.assemble(resize.any_size(source.size), small, guard_graph(guard))
    place = files.temporary_for(folder / variant_name(form))
    files.write_bytes(place, assembly.finish(graph, facts))
    certificate = _certificate(form, place, source, facts, float32, shown) | {
        "gate": asdict(passed),
        "kept_in_float32": kept,
        "graph_sha256": assembly.graph_sha256(graph),
        "weights_sha256": assembly.weights_sha256(graph),
        "bytes": place.stat().st_size,
    }
    certificate["guard"] = {"scores": guard.to_metadata(), "test": guard_rates(place, guard, source)}
    certificate["latency_ms"] = _latency(form, folder, place, shown.pictures[0][None])
    return Made(graph, facts, certificate)


def variant_name(form: str) -> str:
    """What the model file of a form is called."""
    return f"model.{form}.onnx"


def _shrunk(form: str, network: bytes, source: Source, judge: Judge) -> tuple[bytes, gate.Gate, list[str]]:
    if form == "int8":
        return gate.through_gate(network, _calibration(source), judge)
    small = quantisation.float16(network)
    found = judge(small)
    if not found.passed:
        raise gate.GateError(gate.failure(form, found))
    return small, found, []


def _calibration(source: Source) -> Pixels:
    """Training images to calibrate with, each class as often as it has images, or equally."""
    part = source.part("train")
    generator = np.random.default_rng(source.identity.config.seed)
    share = CALIBRATION_IMAGES // len(source.classes)
    chosen = [generator.permutation(np.flatnonzero(part.labels == k))[:share] for k in range(len(source.classes))]
    pixels: Pixels = part.pixels()[np.sort(np.concatenate(chosen))]
    return pixels


def _certificate(
    form: str, place: Path, source: Source, facts: Mapping[str, Any], float32: Logits, shown: Shown
) -> Result:
    """What the model answers on the test split, beside what the float32 model does."""
    labels, groups = source.labels("test"), source.groups("test")
    found, pixels = outputs_of(Classifier(place), shown.pictures, ("logits", "pixels"))
    different = differing(pixels, shown.pixels)
    answers = source.answers("test", found.astype(np.float64))
    before, after = float32.argmax(axis=1), answers.predicted
    names, paths = source.classes, source.part("test").paths
    result: Result = {
        "passed": not different,
        "reasons": [f"{different} pictures are not resized as they were for training"] if different else [],
        "precision": form,
        "images": len(labels),
        "agreement": float((before == after).mean()),
        "changed": [
            {"path": paths[row], "class": names[labels[row]]} | {"float32": names[before[row]], form: names[after[row]]}
            for row in np.flatnonzero(before != after)
        ],
        "test": {**summarise(answers), **with_intervals(answers, groups)},
    }
    if "operating_point" in facts:
        point = facts["operating_point"]
        result["operating_point"] = point | {"test": at_threshold(answers, groups, point["threshold"])}
    return result


def guard_rates(place: Path, guard: Guard, source: Source) -> dict[str, float]:
    """How often the guard of the model at `place` warns; see detection.py.

    The test images have the network's size here, which the resize leaves as they are.
    """
    model = Classifier(place)

    def scores(pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(outputs_of(model, list(pixels), ("guard",))[0])

    return detection_rates(scores, guard, source.part("test").pixels())


def _latency(form: str, folder: Path, place: Path, picture: Pixels) -> dict[str, float]:
    """Median milliseconds of a batch of one picture, of the float32 model and of this one, in turn."""
    places = {"float32": files.temporary_for(folder / "model.onnx"), form: place}
    models = {name: Classifier(path) for name, path in places.items()}
    return gate.latency({name: partial(model.run, picture) for name, model in models.items()})
