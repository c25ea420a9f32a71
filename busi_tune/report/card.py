"""The model card, README.md of an export: the model, its metrics and its use."""

import html
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment

from busi_tune import results, templates
from busi_tune.data.split import read_left_out
from busi_tune.evaluation.metrics import edges, missing_intervals, numbers, shown, worsened
from busi_tune.inference.certificate import UNSIGNED
from busi_tune.results import (
    SPLIT,
    VERDICT,
    MetricsFile,
    RunIdentityFile,
    TestSummary,
    VerdictFile,
    VerificationFile,
)

WIDTH = 120
# The metrics in the card's metadata, with the names that the Hugging Face Hub gives to them.
HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "macro_roc_auc": "roc_auc",
    "matthews_correlation": "matthews_correlation",
    "brier": "brier_score",
    "sensitivity": "recall",
    "specificity": "specificity",
}


def model_card(run: Path, certificate: VerificationFile) -> str:
    """The card of a finished run's export, as Markdown. If the export did not pass, the card gives the reasons."""
    if not certificate["passed"]:
        return _environment().get_template("refused.md.jinja").render(certificate=certificate)
    template = _environment().get_template("card.md.jinja")
    split = pd.read_csv(run / SPLIT, dtype=str, keep_default_na=False)
    figures = results.read(run / results.METRICS, MetricsFile)
    # The verdict on the best run of a study is in the study's folder.
    verdict = run.parent / VERDICT
    return template.render(
        identity=results.read(run / results.IDENTITY, RunIdentityFile),
        test=certificate["test"],
        evaluation=_evaluation(certificate["test"]),
        metrics=_metrics(certificate["test"]),
        missing=missing_intervals(certificate["test"]),
        leaked=figures["leaked_test_images"],
        clean=figures.get("test_clean"),
        counts=split.groupby(["split", "class"]).size().unstack(fill_value=0),
        groups=split.groupby("split")["group"].nunique(),
        left_out=read_left_out(run / SPLIT)["reason"].value_counts(),
        verdict=results.read(verdict, VerdictFile) if run.name == "best" and verdict.exists() else None,
        averaged=certificate.get("averaged"),
        certificate=certificate,
        worse=worsened(certificate["calibration"]["test"]),
        unsigned=UNSIGNED,
    )


def _environment() -> Environment:
    environment = templates.environment("busi_tune.report")
    environment.filters |= {"figure": _figure, "interval": _interval, "paragraph": _paragraph, "plain": _plain}
    return environment


def _plain(value: object) -> str:
    """Escape a name from outside, or a sentence with one, so that Markdown and HTML show it literally."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(str(value), quote=False))


def _metrics(test: TestSummary) -> list[tuple[str, str, str]]:
    """Each metric's name, value and interval."""
    intervals = edges(test["intervals"])
    return [(title(name), _figure(value), _interval(intervals.get(name))) for name, value in shown(test).items()]


def _evaluation(test: TestSummary) -> list[tuple[str, str, str]]:
    """The metrics of the card's metadata: the Hub's name of each, its title, and its value."""
    disease = "malignant_vs_rest" if "malignant_vs_rest" in test else "positive_vs_rest"
    found = {name[-1]: (name, value) for name, value in numbers(test).items() if name[:-1] in ((), (disease,))}
    listed = [(type_, *found[name]) for name, type_ in HUB_METRICS.items() if name in found]
    return [
        (type_, title(name) if len(name) == 1 else f"{name[-1]} for the disease", f"{value:.6f}")
        for type_, name, value in listed
    ]


def title(path: Sequence[str]) -> str:
    words = " ".join(part.replace("_", " ") for part in path if part != "per_class")
    return (
        words.replace("roc auc", "ROC AUC")
        .replace(" f1", " F1")
        .replace("brier", "Brier score")
        .replace("matthews", "Matthews'")
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _interval(edges: Sequence[float] | None) -> str:
    return " to ".join(_figure(edge) for edge in edges) if edges else "none"


def _paragraph(text: str) -> str:
    """Wrap a text into one paragraph that ends with a line break; line breaks in the text do not matter."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"
