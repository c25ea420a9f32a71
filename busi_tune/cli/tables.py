"""Results as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from busi_tune.cli.screen import print_line, print_table
from busi_tune.inference import Prediction

Result = dict[str, Any]


def show_run(figures: Result, folder: Path) -> None:
    """A finished run: its metrics on the test split, by class, and the confusion matrix."""
    test = figures["test"]
    kept = f"epoch {figures['best_epoch']} of {figures['epochs_run']} kept; {figures['stop_reason']}"
    rows: list[list[Any]] = [
        [name, scores["precision"], scores["recall"], scores["f1"], scores["images"]]
        for name, scores in test["per_class"].items()
    ]
    rows.append(["macro mean", test["macro_precision"], test["macro_recall"], test["macro_f1"], test["images"]])
    print_table(
        f"{folder}: test accuracy {test['accuracy']:.4f} ({kept})",
        ["class", "precision", "recall", "F1", "images"],
        rows,
    )
    names = list(test["per_class"])
    matrix = [[name, *counts] for name, counts in zip(names, test["confusion_matrix"], strict=True)]
    print_table("Confusion matrix (rows: true class)", ["", *names], matrix)
    if figures["leaked_test_images"]:
        print_line(f"{figures['leaked_test_images']:.0%} of the test images have a near-duplicate in training.")


SHORT = {
    "number": "trial",
    "learning_rate": "lr",
    "weight_decay": "decay",
    "scheduler_patience": "patience",
    "epochs_run": "epochs",
    "best_epoch": "best at",
    "stop_reason": "why it ended",
}


def show_search(result: Result, folder: Path) -> None:
    """A study: its trials, and the best one after its full training."""
    trials = result["trials"]
    columns = [SHORT.get(name, name) for name in trials[0]]
    title = f"{folder}: {len(trials)} trials; value is the best {result['metric']}"
    print_table(title, columns, [trial.values() for trial in trials])
    best = result["best"]
    print_line(f"Best is trial {best['trial']}, trained on to its end:")
    show_run(best, folder / "best")


def show_certificate(certificate: Result, folder: Path) -> None:
    """An export: what was compared, and how far the answers are apart."""
    rows = [
        ["test images", certificate["images"]],
        ["largest logit error, ONNX Runtime", f"{certificate['max_error']:.3g}"],
        ["largest logit error, PyTorch float32", f"{certificate['pytorch_float32_error']:.3g}"],
        ["tolerance", f"{certificate['tolerance']:.3g}"],
        ["ways to run it that were compared", len(certificate["errors"])],
        ["answers changed", certificate["answers_changed"]],
        ["confusion matrices", "equal"],
    ]
    print_table(f"{folder}: verified" if certificate["passed"] else f"{folder}: FAILED", ["check", "value"], rows)


def show_predictions(predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """One row a file."""
    rows = [
        [
            p.path,
            p.predicted or p.error,
            *([f"{value:.4f}" for value in p.probabilities] or [""] * len(classes)),
        ]
        for p in predictions
    ]
    print_table("", ["file", "predicted", *(f"p({name})" for name in classes)], rows)


def prediction_dict(prediction: Prediction, classes: Sequence[str]) -> Result:
    """A prediction as JSON has it."""
    if prediction.error:
        return {"path": prediction.path, "error": prediction.error}
    probabilities = dict(zip(classes, prediction.probabilities, strict=True))
    return {"path": prediction.path, "class": prediction.predicted, "probabilities": probabilities}


def show_all(result: Result, places: dict[str, Path]) -> None:
    """What `run` did: each step's outcome and where it lies."""
    show_search(result["search"], places["study"])
    show_certificate(result["export"], places["export"])
    show_predictions(result["predictions"], list(result["baseline"]["test"]["per_class"]))
    best = result["search"]["best"]
    rows = [
        ["data", "images, as found", str(places["data"])],
        ["baseline", _figures(result["baseline"]), str(places["baseline"])],
        [
            "search",
            f"{len(result['search']['trials'])} trials, best is trial {best['trial']}",
            str(places["study"]),
        ],
        ["best, retrained", _figures(best), str(places["study"] / "best")],
        [
            "export",
            f"verified on {result['export']['images']} test images",
            str(places["export"] / "model.onnx"),
        ],
    ]
    print_table("Done", ["step", "result", "where"], rows)


def _figures(figures: Result) -> str:
    test = figures["test"]
    return f"test accuracy {test['accuracy']:.3f}, macro F1 {test['macro_f1']:.3f}"
