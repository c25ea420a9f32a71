"""An export and its certificate as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from busi_tune.cli.screen import print_line, print_table

Result = Mapping[str, Any]


def show_certificate(certificate: Result, folder: Path) -> None:
    """What was compared of `model.onnx`, and how far the answers are apart."""
    model = certificate["models"]["model.onnx"]
    rows = [
        ["test images", model["images"]],
        ["largest logit error, ONNX Runtime", f"{model['max_error']:.3g}"],
        ["largest logit error, PyTorch float32", f"{model['pytorch_float32_error']:.3g}"],
        ["tolerance", f"{model['tolerance']:.3g}"],
        ["ways to run it that were compared", len(model["errors"])],
        ["answers changed", model["answers_changed"]],
        ["smallest margin of an answer", f"{model['smallest_margin']:.3g}"],
        ["confusion matrices", "equal"],
        ["pictures not resized to the pixel", model["resized_differently"]],
    ]
    print_table(f"{folder}: verified", ["check", "value"], rows)


def show_export(certificate: Result, folder: Path) -> None:
    """The certificate, and what was fitted on the validation split, with what it gives on the test split."""
    show_certificate(certificate, folder)
    before, after = (certificate["calibration"]["test"][name] for name in ("before", "after"))
    rows = [[name.replace("_", " "), f"{before[name]:.3f}", f"{after[name]:.3f}"] for name in before]
    print_table(
        f"Probabilities on the test split, temperature {certificate['temperature']:.3f}", ["", "before", "after"], rows
    )
    if "operating_point" in certificate:
        _show_point(certificate["operating_point"])
    shares = [[kind, f"{share:.3f}"] for kind, share in certificate["guard"]["test"].items()]
    for name, model in certificate["models"].items():
        if "gate" in model:
            _show_variant(name, model)
    print_table("Share of the test images that the input guard warns of", ["images", "warned of"], shares)


def _show_variant(name: str, model: Result) -> None:
    gate, form = model["gate"], model["precision"]
    test, latency = model["test"], model["latency_ms"]
    rows: list[list[Any]] = [
        ["agreement on validation", f"{gate['agreement']:.3f}"],
        ["validation accuracy, float32", f"{gate['accuracy']['float32']:.3f}"],
        [f"validation accuracy, {form}", f"{gate['accuracy']['candidate']:.3f}"],
        ["layers left in float32", len(model["kept_in_float32"])],
        ["test accuracy", f"{test['accuracy']:.3f} ({_interval(test['intervals'].get('accuracy'))})"],
        ["agreement on test", f"{model['agreement']:.3f}, {len(model['changed'])} answers changed"],
        ["one picture, float32", f"{latency['float32']:.1f} ms"],
        [f"one picture, {form}", f"{latency[form]:.1f} ms"],
        ["megabytes", f"{model['bytes'] / 1e6:.1f}"],
    ]
    print_table(f"{name}: passed its gate", ["check", "value"], rows)


def _show_point(point: Result) -> None:
    rows = [
        [name, f"{found['value']:.3f}", *(_interval(found[kind]) for kind in ("intervals", "wilson")), found["images"]]
        for name, found in point["test"].items()
    ]
    title = f"Flagged as malignant from {point['threshold']:.4f} on: the test split"
    print_table(title, ["", "test", "95 % interval", "Wilson's", "images"], rows)
    print_line(point["sentence"])


def _interval(edges: list[float] | None) -> str:
    return " to ".join(f"{edge:.3f}" for edge in edges or [])
