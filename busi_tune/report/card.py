"""The model card: README.md of an export, which says what the model is, how good, and how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from busi_tune import files
from busi_tune.metrics import numbers
from busi_tune.training.folder import IDENTITY, METRICS, SPLIT

CARD = "README.md"
VERDICT = "verdict.json"


def model_card(run: Path, certificate: Mapping[str, Any]) -> str:
    """The card of the export of a finished run, as Markdown."""
    loader = PackageLoader("busi_tune.report", ".")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=select_autoescape())
    environment.filters["figure"] = _figure
    split = pd.read_csv(run / SPLIT, dtype=str, keep_default_na=False)
    test = files.read_json(run / METRICS)["test"]
    # The best run of a study has its verdict beside it.
    verdict = run.parent / VERDICT
    return environment.get_template("card.md.jinja").render(
        identity=files.read_json(run / IDENTITY),
        test=test,
        metrics=_metrics(test),
        counts=split.groupby(["split", "class"]).size().unstack(fill_value=0),
        groups=split.groupby("split")["group"].nunique(),
        verdict=files.read_json(verdict) if run.name == "best" and verdict.exists() else None,
        certificate=certificate,
    )


def _metrics(test: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each metric's name, value and interval; probabilities are calibrated after them, so theirs are left out."""
    rows = []
    for path, value in numbers(dict(test)).items():
        interval = test["intervals"]
        for key in path:
            interval = interval.get(key, {})
        if path[-1] not in ("brier", "calibration_error"):
            title = " ".join(part.replace("_", " ") for part in path if part != "per_class")
            rows.append((title, _figure(value), " to ".join(_figure(edge) for edge in interval)))
    return rows


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
