"""Tables of an export and its certificate."""

from pathlib import Path

from busi_tune.cli.screen import print_table, print_text
from busi_tune.evaluation.metrics import worsened
from busi_tune.evaluation.selective import halving
from busi_tune.inference.certificate import UNSIGNED
from busi_tune.results import Interval, ModelCertificate, OperatingPointEntry, RiskCoveragePoint, VerificationFile


def show_checked(certificate: VerificationFile, folder: Path, key: str) -> None:
    """Print the result of checking an export's files, and what the check cannot prove without a key."""
    count = len(certificate["models"]) + len(certificate["files"]) + 1
    if key:
        print_text(f"{folder}: the {count} certified files are unchanged, and signed by the key {key}.")
        return
    print_text(f"{folder}: the {count} certified files are unchanged.")
    if "signed_by" in certificate:
        print_text(f"They are signed by the key {certificate['signed_by']}; --key checks that it is the right key.")
    print_text(UNSIGNED)


def show_certificate(certificate: VerificationFile, folder: Path) -> None:
    """Print the comparison of `model.onnx` with PyTorch."""
    model = certificate["models"]["model.onnx"]
    matrices = model["confusion_matrix"]
    errors: list[list[object]] = [
        ["largest logit error, ONNX Runtime", _error(model["max_error"])],
        ["largest logit error, PyTorch float32", _error(model["pytorch_float32_error"])],
        ["tolerance", _error(model["tolerance"])],
        ["smallest margin of a prediction", _error(model["smallest_margin"])],
    ]
    if "cam" in model:
        errors += [
            ["largest error of a map (cam)", _error(model["cam"]["max_error"])],
            ["tolerance of a map", _error(model["cam"]["tolerance"])],
        ]
    # Errors and margins mean nothing for a network whose outputs are constant or only rounding noise.
    useless = bool(certificate["warnings"])
    rows: list[list[object]] = [
        ["test images", model["images"]],
        *([] if useless else errors),
        ["runtime settings compared", len(model["errors"])],
        ["predictions changed", model["answers_changed"]],
        ["confusion matrices", "equal" if matrices["pytorch"] == matrices["onnxruntime"] else "equal, rounding apart"],
        ["pictures resized differently", model["resized_differently"]],
    ]
    verdict = "predicts as PyTorch does, but is useless" if useless else "verified"
    print_table(f"{folder}: {verdict}", ["check", "value"], rows)
    for warning in certificate["warnings"]:
        print_text(warning)


def show_export(certificate: VerificationFile, folder: Path) -> None:
    """Print the certificate, and the test metrics of all values that were fitted on the validation split."""
    show_certificate(certificate, folder)
    before, after = (certificate["calibration"]["test"][name] for name in ("before", "after"))
    rows = [
        ["brier", _figure(before["brier"]), _figure(after["brier"])],
        ["log loss", _figure(before["log_loss"]), _figure(after["log_loss"])],
        ["calibration error", _figure(before["calibration_error"]), _figure(after["calibration_error"])],
    ]
    print_table(
        f"Calibration on the test split, before and after the temperature {certificate['temperature']:.3f}",
        ["", "before", "after"],
        rows,
    )
    if worse := worsened(certificate["calibration"]["test"]):
        print_text(f"On the test split, the temperature makes these worse: {', '.join(worse)}.")
    if "operating_point" in certificate:
        _show_point(certificate["operating_point"])
    show_selective(certificate.get("validation_risk_coverage", []))
    shares = [[kind, f"{share:.3f}"] for kind, share in certificate["guard"]["test"].items()]
    for name, model in certificate["models"].items():
        if "gate" in model:
            _show_variant(name, model)
    print_table("Share of the test images that the input guard warns of", ["images", "warned of"], shares)


def show_selective(points: list[RiskCoveragePoint]) -> None:
    """Print the error among validation images answered with `--min-confidence`; print nothing without points."""
    rows = [
        [f"{point['confidence']:.3f}", f"{point['coverage']:.2f}", f"{point['error']:.3f}", point["images"]]
        for point in reversed(points[1::2])
    ]
    if not rows:
        return
    columns = ["from confidence", "share answered", "error among them", "images"]
    print_table("Validation images answered with --min-confidence", columns, rows)
    print_text(f"{suggestion(points)} These images also chose the checkpoint, so new images have larger errors.")


def suggestion(points: list[RiskCoveragePoint]) -> str:
    """A sentence on the confidence that halves the error of validation images."""
    found = halving(points)
    if found is None or not points[-1]["error"]:
        return "No confidence halves the error of the validation images."
    return (
        f"From confidence {found['confidence']:.3f} on, {found['coverage']:.0%} of the validation images are answered, "
        f"with an error of {found['error']:.3f} instead of {points[-1]['error']:.3f}."
    )


def _show_variant(name: str, model: ModelCertificate) -> None:
    gate, form = model["gate"], model["precision"]
    test, latency = model["test"], model["latency_ms"]
    rows: list[list[object]] = [
        ["agreement on validation", f"{gate['agreement']:.3f}"],
        ["validation accuracy, float32", f"{gate['accuracy']['float32']:.3f}"],
        [f"validation accuracy, {form}", f"{gate['accuracy']['candidate']:.3f}"],
        ["layers left in float32", len(model["kept_in_float32"])],
        ["test accuracy", f"{_figure(test['accuracy'])} ({_interval(test['intervals'].get('accuracy'))})"],
        ["agreement on test", f"{model['agreement']:.3f}, {len(model['changed'])} predictions changed"],
        ["one picture, float32", f"{latency['float32']:.1f} ms"],
        [f"one picture, {form}", f"{latency[form]:.1f} ms"],
        ["megabytes", f"{model['bytes'] / 1e6:.1f}"],
    ]
    print_table(f"{name}: passed its gate", ["check", "value"], rows)


def _show_point(point: OperatingPointEntry) -> None:
    test = point["test"]
    rows = [
        [name, _figure(found["value"]), _interval(found["interval"]), found["images"]]
        for name, found in (("sensitivity", test["sensitivity"]), ("specificity", test["specificity"]))
    ]
    title = f"Test images flagged as {point['class']}, at probabilities from {point['threshold']:.4f} on"
    print_table(title, ["", "test", "95 % interval", "images"], rows)
    print_text(point["sentence"])
    print_text(point["claim"]["sentence"])


def _interval(edges: Interval | None) -> str:
    return " to ".join(f"{edge:.3f}" for edge in edges or [])


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _error(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
