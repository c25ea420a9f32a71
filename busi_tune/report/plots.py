"""Plots of a run (learning curves and confusion matrix), of a cross-validation, and of an external evaluation."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from busi_tune import files, results
from busi_tune.evaluation.metrics import CALIBRATION_BINS, Answers, calibration_bins
from busi_tune.progress import Progress
from busi_tune.results import CURVES, EvaluationFile, MetricsFile, RiskCoveragePoint, TestSummary
from busi_tune.training.epochs import Epoch
from busi_tune.training.run_folder import changed_pictures, history


def plot_run(folder: Path, progress: Progress) -> None:
    """Draw the plots of a finished run that are missing or changed into its folder.

    The plots' hashes are written to metrics.json.
    """
    metrics = results.read(folder / results.METRICS, MetricsFile)
    missing = changed_pictures(folder, metrics)
    if any(name in metrics.get("files", {}) for name in missing):
        progress.notice(f"{folder / missing[0]} is missing or has changed; it is drawn again.")
    for name in missing:
        figure = (
            learning_curves(history(folder), metrics["best_epoch"]) if name == CURVES else confusion(metrics["test"])
        )
        files.write_bytes(folder / name, _png(figure))
    if missing:
        metrics["files"] = metrics.get("files", {}) | {name: files.sha256(folder / name) for name in missing}
        results.write(folder / results.METRICS, metrics)


def plot_pooled(folder: Path, pooled: TestSummary) -> None:
    """Draw the confusion matrix of a cross-validation's predictions into its folder."""
    files.write_bytes(folder / results.CONFUSION, _png(confusion(pooled, "all folds")))


def plot_evaluation(folder: Path, found: EvaluationFile, answers: Answers) -> None:
    """Draw the plots of an evaluation into its folder: confusion matrix, risk-coverage curves and reliability."""
    curves = {
        "internal test images": found["internal"].get("risk_coverage", []),
        "external images": found["external"].get("risk_coverage", []),
    }
    pictures = {
        results.CONFUSION: confusion(found["external"], "external images"),
        results.RISK_COVERAGE: risk_coverage_curves(curves),
        results.RELIABILITY: reliability(answers),
    }
    for name, figure in pictures.items():
        files.write_bytes(folder / name, _png(figure))


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    return data.getvalue()


def learning_curves(records: list[Epoch], best_epoch: int) -> Figure:
    """Losses, validation accuracy and F1, and the learning rate over the epochs, with a mark at the kept epoch."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, scores, rates = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.4])
    epochs = [record.epoch for record in records]
    losses.plot(epochs, [r.train_loss for r in records], ".-", color="C0", label="training (weighted)")
    losses.plot(epochs, [r.val_loss for r in records], ".-", color="C1", label="validation (weighted)")
    losses.set_ylabel("cross-entropy")
    scores.plot(epochs, [r.val_accuracy for r in records], ".-", color="C2", label="validation accuracy")
    scores.plot(epochs, [r.val_macro_f1 for r in records], ".-", color="C4", label="validation macro F1")
    scores.set_ylim(0, 1)
    rates.step(epochs, [r.learning_rate for r in records], where="mid", color="C7")
    rates.set(ylabel="learning rate", xlabel="epoch", yscale="log")
    rates.xaxis.get_major_locator().set_params(integer=True)
    for axes in (losses, scores):
        axes.axvline(best_epoch, color="0.6", linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.legend(loc="best", frameon=False)
    for axes in (losses, scores, rates):
        axes.grid(color="0.92")
    return figure


def confusion(test: TestSummary, part: str = "test split") -> Figure:
    """A confusion matrix of counts, shaded by their share of the true class."""
    counts = np.array(test["confusion_matrix"])
    classes = list(test["per_class"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 1.0 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shade = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{part}, {test['images']} images, accuracy {test['accuracy']:.3f}", fontsize=11)
    figure.colorbar(shade, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def risk_coverage_curves(curves: Mapping[str, list[RiskCoveragePoint]]) -> Figure:
    """The error rate among the predicted images over their share, with a line for each curve that has points."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            axes.plot([point["coverage"] for point in points], [point["error"] for point in points], ".-", label=name)
    axes.set(xlabel="share of the images, most confident first", ylabel="error rate of these", xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", frameon=False)
    axes.grid(color="0.92")
    return figure


def reliability(answers: Answers) -> Figure:
    """Accuracy over confidence in the bins of the calibration error, and the number of images in each bin."""
    bins, confidence, right = calibration_bins(answers)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = counts > 0
    sure, accuracy = (np.bincount(bins, each, CALIBRATION_BINS)[used] / counts[used] for each in (confidence, right))
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    axes, images = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.plot(sure, accuracy, ".-", color="C1")
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    images.bar((np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, counts, width=0.9 / CALIBRATION_BINS, color="C7")
    images.set(xlabel="confidence", ylabel="images")
    for each in (axes, images):
        each.grid(color="0.92")
    return figure
