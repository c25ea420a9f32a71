"""Charts of two sets of figures side by side: baseline and search on each fold, internal and external images."""

from collections.abc import Sequence

import plotly.graph_objects as go

from busi_tune.report.card import title
from busi_tune.report.charts import BLUE, ORANGE, Chart, chart, label
from busi_tune.results import EvaluationFile, Interval, NestedFile

# An axis on which marks at 0 and at 1 are whole.
RANGE = {"range": [-0.05, 1.07]}
# The metrics in the chart of an evaluation, by the ends of their dotted names.
SHOWN = ("accuracy", "macro_f1", "balanced_accuracy", "sensitivity", "specificity", "macro_roc_auc")


def _points(
    places: Sequence[str], values: Sequence[float], edges: Sequence[Interval | None], name: str, colour: str
) -> go.Scatter:
    """Values with their intervals, over names."""
    spread = [edge or [value, value] for value, edge in zip(values, edges, strict=True)]
    return go.Scatter(
        # Long names take two lines.
        x=[label(place).replace(" vs rest ", " vs rest<br>") for place in places],
        y=list(values),
        name=name,
        mode="markers",
        marker={"color": colour, "size": 10, "symbol": "circle" if colour == BLUE else "diamond"},
        customdata=[list(edge) for edge in spread],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [edge[1] - value for value, edge in zip(values, spread, strict=True)],
            "arrayminus": [value - edge[0] for value, edge in zip(values, spread, strict=True)],
            "color": colour,
            "thickness": 1,
        },
        hovertemplate="%{x}: %{y:.3f}<br>95 % interval %{customdata[0]:.3f} to %{customdata[1]:.3f}",
    )


def nested_chart(found: NestedFile) -> Chart:
    """The accuracy of the baseline and of the search's choice on each outer fold."""
    sides = [(found["baseline"]["folds"], "baseline", BLUE), (found["tuned"]["folds"], "chosen by the search", ORANGE)]
    traces = [
        _points(
            [f"fold {one['fold']}" for one in folds],
            [one["test"]["accuracy"] for one in folds],
            [one["test"]["intervals"].get("accuracy") for one in folds],
            name,
            colour,
        )
        for folds, name, colour in sides
    ]
    ends = ", ".join(
        f"fold {one['fold']} {one['baseline_accuracy']:.3f} and {one['tuned_accuracy']:.3f}" for one in found["choices"]
    )
    return chart(
        "Accuracy on each outer fold",
        f"Points with intervals: the accuracy of the baseline and of what the search chose; {ends}.",
        traces,
        y="accuracy",
        yaxis=RANGE,
        wide=True,
        scattermode="group",
    )


def transfer_chart(found: EvaluationFile) -> Chart:
    """The main metrics on the model's own test images and on the external images."""
    names = [
        name
        for name in found["differences"]
        if name.rpartition(".")[2] in SHOWN and not name.startswith(("per_class", "benign_vs"))
    ]
    titles = [title(tuple(name.split("."))) for name in names]
    traces = []
    for side, name, colour in (("internal", "own test images", BLUE), ("external", "external images", ORANGE)):
        summary = found["internal"] if side == "internal" else found["external"]
        values = [found["differences"][each]["internal" if side == "internal" else "external"] for each in names]
        traces.append(_points(titles, values, [_edge(summary["intervals"], each) for each in names], name, colour))
    ends = ", ".join(
        f"{text} {found['differences'][name]['internal']:.3f} and {found['differences'][name]['external']:.3f}"
        for text, name in zip(titles, names, strict=True)
    )
    return chart(
        "Own test images and external images",
        f"Points with intervals of {len(names)} metrics, first on the model's own test images: {ends}.",
        traces,
        y="value",
        yaxis=RANGE,
        wide=True,
        scattermode="group",
    )


def _edge(intervals: object, name: str) -> Interval | None:
    """The interval of a metric by its dotted name."""
    for part in name.split("."):
        intervals = intervals.get(part) if isinstance(intervals, dict) else None
    return intervals if isinstance(intervals, list) else None
