"""The int8 and float16 models of an export, each with a gate and a separate certificate."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from busi_tune.export import assembly, gate, quantisation, resize
from busi_tune.export.calibration import OperatingPoint, evaluated, operating_point, summary_with_intervals
from busi_tune.export.detection import detection_rates
from busi_tune.export.draft import Draft, Made
from busi_tune.export.graphs import with_outputs
from busi_tune.export.guard import Guard, guard_graph
from busi_tune.export.parity import differing, outputs_of
from busi_tune.export.source import Source, guard_of
from busi_tune.images import Pixels
from busi_tune.inference import MODEL, Classifier
from busi_tune.inference.contents import read_contents
from busi_tune.results import GuardResult, ModelCertificate, ModelFigures

CALIBRATION_IMAGES = 128
Form = Literal["int8", "float16"]
FORMS: tuple[Form, ...] = ("int8", "float16")


def make_variant(draft: Draft, form: Form) -> Made:
    """Write the model of a smaller form of the draft's network, and compare it with the float32 model.

    Raises:
        GateError: the model does not pass its gate on the validation split.
    """
    source, sensitivity = draft.source, draft.options.sensitivity
    small, passed, kept = _shrunk(draft, form)
    guard, point = guard_of(small, source), None
    if sensitivity is not None:
        answers = source.answers("validation", quantisation.logits(small, source.part("validation").pixels()))
        point = operating_point(answers, source.groups("validation"), sensitivity)
    graph = assembly.assemble(resize.any_size(source.size), small, guard_graph(guard))
    facts = draft.facts(graph, guard, point) | {"precision": form}
    path = draft.write(variant_name(form), graph, facts)
    contents = read_contents(path)
    figures, scores = _compared(draft, form, path, point)
    certificate: ModelCertificate = {
        **figures,
        "gate": passed.entry(),
        "kept_in_float32": kept,
        "graph_sha256": contents.graph_sha256,
        "weights_sha256": contents.weights_sha256,
        "guard": guard_result(path, guard, source, scores),
        "latency_ms": _latency(draft, form, path),
    }
    return Made(graph, facts, certificate, scores)


def variant_name(form: Form) -> str:
    """The name of a form's model file."""
    return f"model.{form}.onnx"


def _shrunk(draft: Draft, form: Form) -> tuple[bytes, gate.Gate, list[str]]:
    """The draft's network in a smaller form, its gate, and the names of the layers that stay in float32."""
    source, network, max_drop = draft.source, draft.fitted.network, draft.options.max_drop
    if draft.options.cam:
        # The gate checks predictions, which say nothing about maps. A smaller model therefore has no maps.
        network = with_outputs(network, ("logits", "features"))
    validation, labels = source.part("validation").pixels(), source.labels("validation")
    exact = quantisation.logits(network, validation)

    def judge(candidate: bytes) -> gate.Gate:
        found, positive = quantisation.logits(candidate, validation), source.identity.config.positive
        return gate.compare(exact, found, labels, source.classes, max_drop, positive=positive)

    if form == "int8":
        return gate.through_gate(network, _calibration(source), judge)
    small = quantisation.float16(network)
    found = judge(small)
    if not found.passed:
        raise gate.GateError(gate.failure(form, found))
    return small, found, []


def _calibration(source: Source) -> Pixels:
    """Training images for the calibration: an equal number of each class, or all images of a smaller class."""
    part = source.part("train")
    generator = np.random.default_rng(source.identity.config.seed)
    share = CALIBRATION_IMAGES // len(source.classes)
    chosen = [generator.permutation(np.flatnonzero(part.labels == k))[:share] for k in range(len(source.classes))]
    pixels: Pixels = part.pixels()[np.sort(np.concatenate(chosen))]
    return pixels


def _compared(
    draft: Draft, form: Form, path: Path, point: OperatingPoint | None
) -> tuple[ModelFigures, NDArray[np.float32]]:
    """Compare the predictions of the model at `path` on the test split with the float32 model's.

    The second result has the scores (n, k) of the model's guard.
    """
    source, shown = draft.source, draft.shown
    labels, groups = source.labels("test"), source.groups("test")
    found, pixels, scores = outputs_of(Classifier(path), shown.pictures, ("logits", "pixels", "guard"))
    different = differing(pixels, shown.pixels)
    answers = source.answers("test", found.astype(np.float64))
    before, after = draft.reference.logits.argmax(axis=1), answers.predicted
    names, paths = source.classes, source.part("test").paths
    result: ModelFigures = {
        "passed": not different,
        "reasons": [f"{different} pictures are not resized as they were for training"] if different else [],
        "precision": form,
        "images": len(labels),
        "agreement": float((before == after).mean()),
        "changed": [
            {"path": paths[row], "class": names[labels[row]], "float32": names[before[row]], form: names[after[row]]}
            for row in np.flatnonzero(before != after)
        ],
        "test": summary_with_intervals(answers, groups),
    }
    if point:
        result["operating_point"] = evaluated(point, answers, groups)
    return result, scores


def guard_result(path: Path, guard: Guard, source: Source, unchanged: NDArray[np.float32]) -> GuardResult:
    """The guard of the model at `path`, with its warning rates; `unchanged` has its scores of the test images.

    The images already have the network's size here, so the model's resize does not change them.
    """
    model = Classifier(path)

    def scores(pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(outputs_of(model, list(pixels), ("guard",))[0])

    rates = detection_rates(scores, guard, source.part("test").pixels(), unchanged)
    return {"scores": guard.entries(), "test": rates}


def _latency(draft: Draft, form: Form, path: Path) -> dict[str, float]:
    """The median milliseconds of the float32 model and of this model for one picture, measured in turn."""
    models = {"float32": Classifier(draft.staging / MODEL), form: Classifier(path)}
    picture = draft.shown.pictures[0][None]
    return gate.latency({name: partial(model.run, picture) for name, model in models.items()})
