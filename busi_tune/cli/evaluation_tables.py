"""Tables of an evaluation on images of another source."""

from pathlib import Path

from busi_tune.cli.screen import print_table, print_text
from busi_tune.cli.tables import INTERVAL, low_high, show_matrix, titles_of
from busi_tune.errors import listed
from busi_tune.evaluation.metrics import edges, missing_intervals, shown
from busi_tune.results import EvaluationFile, ThresholdFigure, TransferPoint


def show_evaluation(found: EvaluationFile, folder: Path) -> None:
    """Print the metrics next to the internal ones, and the results of calibration, threshold, guard and confidence."""
    external, internal = found["external"], found["internal"]
    there = edges(external["intervals"])
    values = shown(external)
    titles = titles_of(values)
    rows = []
    for name, value in values.items():
        compared = found["differences"].get(".".join(name))
        rest = (
            [f"{compared['internal']:.3f}", f"{compared['difference']:+.3f}", low_high(compared["interval"])]
            if compared
            else ["", "", ""]
        )
        rows.append([titles[name], f"{value:.3f}", low_high(there.get(name)), *rest])
    print_table(
        f"{found['model']} on {found['data']}: accuracy {external['accuracy']:.4f} on {external['images']} images in "
        f"{external['groups']} groups, and {internal['accuracy']:.4f} on its own {internal['images']} test images",
        ["metric", "external", INTERVAL, "own test", "difference", INTERVAL],
        rows,
    )
    for sentence in missing_intervals(external):
        print_text(sentence)
    if found["absent_classes"]:
        absent = ", ".join(found["absent_classes"])
        print_text(f"No external image is of class {absent}, so there are no macro figures.")
    show_matrix("Confusion matrix of the external images (rows: true class)", external)
    _show_calibration(found)
    if "operating_point" in found:
        _show_point(found["operating_point"])
    elif found["kind"] == "run":
        print_text("A run has no threshold; evaluate its export with --sensitivity for an operating point.")
    _show_guard(found)
    _show_confidence(found)
    _show_images(found)
    print_text(f"{folder} holds evaluation.json, predictions.csv and the pictures.")


def _show_calibration(found: EvaluationFile) -> None:
    there = found["calibration"]
    print_text(
        f"On the external images the mean confidence is {there['confidence']:.3f} at an accuracy of "
        f"{there['accuracy']:.3f}. A further temperature of {there['temperature']:.2f} would calibrate these "
        "probabilities (1 changes nothing)."
    )


def _show_point(point: TransferPoint) -> None:
    def cells(figure: ThresholdFigure) -> list[str]:
        return ["none" if figure["value"] is None else f"{figure['value']:.3f}", low_high(figure["interval"])]

    rows = []
    for name, at in (("stored", point["stored"]), ("external", point["needed"])):
        if at is not None:
            sensitivity, specificity = at["figures"]["sensitivity"], at["figures"]["specificity"]
            rows.append([name, f"{at['threshold']:.4f}", *cells(sensitivity), *cells(specificity)])
    print_table(
        f"External images flagged as {point['class']}, threshold for a sensitivity of {point['sensitivity']:g}",
        ["threshold", "from", "sensitivity", INTERVAL, "specificity", INTERVAL],
        rows,
    )
    if point["needed"] is not None:
        print_text("The external threshold is evaluated on the images that chose it, which promises nothing.")


def _show_guard(found: EvaluationFile) -> None:
    if "guard" in found:
        guard = found["guard"]
        scores = ", ".join(f"{name} {share:.3f}" for name, share in guard["scores"].items())
        print_text(
            f"The input guard warns of {guard['external']:.3f} of the external images ({scores}), and of "
            f"{guard['internal']:.3f} of the model's own test images."
        )


def _show_confidence(found: EvaluationFile) -> None:
    if "min_confidence" not in found:
        return
    point = found["min_confidence"]
    own, there = point["validation"], point["external"]
    result = (
        f"{there['coverage']:.0%} of the external images are answered, with an error of {there['error']:.3f}"
        if there
        else "no external image is answered"
    )
    print_text(
        f"From confidence {point['confidence']:.3f} on, which halves the error of the validation images "
        f"({own['coverage']:.0%} answered, error {own['error']:.3f}), {result}."
    )


def _show_images(found: EvaluationFile) -> None:
    for reason in sorted({image["reason"] for image in found["left_out"]}):
        paths = [image["path"] for image in found["left_out"] if image["reason"] == reason]
        print_text(f"{len(paths)} images left out, because {reason}: {listed(paths, most=5)}.")
    if found["unreadable"]:
        paths = [file["path"] for file in found["unreadable"]]
        print_text(f"{len(paths)} images cannot be read: {listed(paths, most=5)}.")
    print_text(found["twins_checked"])
