"""The charts of a report, drawn by Plotly only from the content of report.json."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import plotly.graph_objects as go

from busi_tune.errors import printable
from busi_tune.results import Band, ClassCurves, EpochRecord, Json, ReliabilityBin, ReportFile, TestSummary

# Colours with a contrast of at least 3 on white and on the page's dark background, distinct for the red-green blind.
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#2f7fc1", "#c8701a", "#2b9468", "#9a63c7", "#d1495b", "#868d96"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
LIGHT = {"ink": "#1d232a", "faint": "#dde2e8", "line": "#9aa4af", "ground": "#ffffff"}
DARK = {"ink": "#e4e8ec", "faint": "#2c343d", "line": "#5d6874", "ground": "#171c21"}
HEIGHT = 300
MARGIN = {"l": 8, "r": 12, "t": 12, "b": 8}
Numbers = Sequence[float | None] | Sequence[int]


@dataclass(frozen=True)
class Chart:
    """A chart as Plotly's JSON, its title, and its alternative text."""

    title: str
    alt: str
    figure: dict[str, Json]
    wide: bool = False


def template(colours: dict[str, str]) -> dict[str, Json]:
    """The Plotly template of all charts on a light or a dark page."""
    axis = {
        "gridcolor": colours["faint"],
        "linecolor": colours["line"],
        "zerolinecolor": colours["faint"],
        "automargin": True,
    }
    layout = go.layout.Template(
        layout={
            "font": {"color": colours["ink"], "family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": colours["ground"],
                "bordercolor": colours["line"],
                "font": {"color": colours["ink"]},
            },
            "shapedefaults": {"line": {"color": colours["line"]}},
        }
    )
    return _plain(layout)


def _plain(element: go.Figure | go.layout.Template) -> dict[str, Json]:
    found = element.to_plotly_json() if not isinstance(element, go.Figure) else json.loads(str(element.to_json()))
    assert isinstance(found, dict)
    return found


def label(text: str) -> str:
    """A user's name, escaped for Plotly, whose labels are a kind of HTML."""
    return html.escape(printable(text))


def chart(
    title: str,
    alt: str,
    traces: Sequence[object],
    *,
    x: str = "",
    y: str = "",
    wide: bool = False,
    height: int = HEIGHT,
    marked: Mapping[str, object] | None = None,
    **layout: object,
) -> Chart:
    """A chart of `traces` with axis titles and `marked` shapes. The page adds the template."""
    base = {"template": None, "height": height, "margin": MARGIN}
    figure = go.Figure(data=list(traces), layout={**base, **layout, **(marked or {})})
    figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        dragmode=False,
        hovermode="closest",
    )
    figure.update_xaxes(title={"text": x}, fixedrange=True)
    figure.update_yaxes(title={"text": y}, fixedrange=True)
    plain = _plain(figure)
    parts = plain["layout"]
    assert isinstance(parts, dict)
    parts.pop("template", None)
    return Chart(title, alt, plain, wide=wide)


def line(x: Numbers, y: Numbers, name: str, colour: str, **attributes: object) -> go.Scatter:
    """A line with a mark at each point."""
    look = {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": {"size": 5, "color": colour}}
    return go.Scatter(x=list(x), y=list(y), name=label(name), **{**look, **attributes})


def whole(most: int) -> dict[str, object]:
    """An axis of whole numbers up to `most`."""
    return {"dtick": 1} if most <= 12 else {}


def learning(records: Sequence[EpochRecord], kept: int | None) -> dict[str, Chart]:
    """Losses, scores and learning rate over the epochs, with a mark at the kept epoch."""
    epochs = [record["epoch"] for record in records]
    mark: dict[str, object] = {}
    if kept is not None:
        mark["shapes"] = [{"type": "line", "x0": kept, "x1": kept, "yref": "paper", "y0": 0, "y1": 1, "line": DOTTED}]
        mark["annotations"] = [
            {"x": kept, "yref": "paper", "y": 1, "text": f"kept: {kept}", "showarrow": False, "xanchor": "left"}
        ]
    last = records[-1]
    lowest = min(records, key=lambda record: record["val_loss"])
    ending = f"kept epoch {kept}" if kept is not None else "no epoch kept yet"
    losses = [
        line(epochs, [record["train_loss"] for record in records], "training", BLUE),
        line(epochs, [record["val_loss"] for record in records], "validation", ORANGE),
    ]
    scores = [
        line(epochs, [record["val_accuracy"] for record in records], "accuracy", GREEN),
        line(epochs, [record["val_macro_f1"] for record in records], "macro F1", PURPLE),
    ]
    rates = line(epochs, [record["learning_rate"] for record in records], "learning rate", GREY)
    rates.line.shape = "hv"
    over_epochs = partial(chart, x="epoch", xaxis=whole(len(records)))
    return {
        "loss": over_epochs(
            "Loss",
            f"Line chart of {len(records)} epochs: the training loss ends at {last['train_loss']:.3f}, the validation "
            f"loss at {last['val_loss']:.3f}; the lowest validation loss is {lowest['val_loss']:.3f} in epoch "
            f"{lowest['epoch']}; {ending}.",
            losses,
            y="weighted cross-entropy",
            marked=mark,
        ),
        "score": over_epochs(
            "Validation scores",
            f"Line chart: the validation accuracy ends at {last['val_accuracy']:.3f}, the macro F1 at "
            f"{last['val_macro_f1']:.3f}; {ending}.",
            scores,
            y="score",
            marked=mark,
        ),
        "rate": over_epochs(
            "Learning rate",
            f"Step chart: the learning rate begins at {records[0]['learning_rate']:g} and ends at "
            f"{last['learning_rate']:g}.",
            [rates],
            y="learning rate",
            yaxis=_decades([record["learning_rate"] for record in records]),
            showlegend=False,
        ),
    }


def _decades(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis with ticks at whole powers of ten around `values`."""
    edges = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return {"type": "log", "exponentformat": "power", "dtick": 1, "range": [edges[0] - 0.3, edges[1] + 0.3]}


DOTTED = {"dash": "dot", "width": 1.5}
DIAGONAL = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": DOTTED, "layer": "below"}
UNIT = {"range": [-0.02, 1.02]}


def band(curve: Band, name: str, colour: str, hover: str) -> list[go.Scatter]:
    """A curve and the area of its interval."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    text = [[low, high] for low, high in zip(curve["low"], curve["high"], strict=True)]
    return [
        go.Scatter(x=curve["x"], y=curve["low"], **edge),
        go.Scatter(x=curve["x"], y=curve["high"], fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.18)", **edge),
        go.Scatter(
            x=curve["x"],
            y=curve["y"],
            customdata=text,
            name=label(name),
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate=f"{hover}<br>95 % interval %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}<extra></extra>",
        ),
    ]


def ranking(curves: dict[str, ClassCurves], test: TestSummary) -> dict[str, Chart]:
    """The ROC curve and the precision-recall curve of each class against the others."""
    found: dict[str, Chart] = {}
    for number, (name, curve) in enumerate(curves.items()):
        colour, figures = COLOURS[number % len(COLOURS)], test["per_class"][name]
        area, precision = figures["roc_auc"], figures["average_precision"]
        found[f"roc-{number}"] = chart(
            f"ROC, {name}",
            f"ROC curve of {name} against the rest: area {_figure(area)}.",
            band(curve["roc"], name, colour, "false-positive rate %{x:.3f}<br>sensitivity %{y:.3f}"),
            x="false-positive rate",
            y="sensitivity",
            shapes=[DIAGONAL],
            xaxis=UNIT,
            yaxis=UNIT,
            showlegend=False,
        )
        level = {"type": "line", "x0": 0, "x1": 1, "y0": curve["share"], "y1": curve["share"], "line": DOTTED}
        found[f"precision-{number}"] = chart(
            f"Precision and recall, {name}",
            f"Precision-recall curve of {name}: average precision {_figure(precision)}, where guessing would have "
            f"{curve['share']:.3f}.",
            band(curve["precision_recall"], name, colour, "recall %{x:.3f}<br>precision %{y:.3f}"),
            x="recall",
            y="precision",
            shapes=[{**level, "layer": "below"}],
            xaxis=UNIT,
            yaxis=UNIT,
            showlegend=False,
        )
    return found


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def reliability_chart(bins: Sequence[ReliabilityBin], title: str, colour: str) -> Chart:
    """Accuracy over confidence, with the interval of each bin's accuracy."""
    x, y = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
    trace = go.Scatter(
        x=x,
        y=y,
        mode="markers+lines",
        line={"color": colour, "width": 1},
        marker={"color": colour, "size": 8},
        customdata=[[each["images"], each["low"], each["high"]] for each in bins],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [each["high"] - each["accuracy"] for each in bins],
            "arrayminus": [each["accuracy"] - each["low"] for each in bins],
            "color": colour,
            "thickness": 1,
        },
        hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>95 % interval %{customdata[1]:.3f} to "
        "%{customdata[2]:.3f}<br>%{customdata[0]} images<extra></extra>",
    )
    apart = max(bins, key=lambda each: abs(each["accuracy"] - each["confidence"]))
    alt = (
        f"Reliability diagram of {sum(each['images'] for each in bins)} answers in {len(bins)} bins; the bin furthest "
        f"from the diagonal has confidence {apart['confidence']:.3f} and accuracy {apart['accuracy']:.3f}."
    )
    return chart(
        title,
        alt,
        [trace],
        x="confidence",
        y="accuracy",
        shapes=[DIAGONAL],
        xaxis=UNIT,
        yaxis=UNIT,
        showlegend=False,
    )


def coverage(curve: Band) -> Chart:
    """The error rate of the most confident predictions, over their share of the images."""
    half = min(range(len(curve["x"])), key=lambda place: abs(curve["x"][place] - 0.5))
    return chart(
        "Error rate of the most confident predictions",
        f"Risk-coverage curve: the error rate of all predictions is {curve['y'][-1]:.3f}, that of the most confident "
        f"{curve['x'][half]:.0%} is {curve['y'][half]:.3f}.",
        band(curve, "error rate", BLUE, "%{x:.1%} of the images<br>error rate %{y:.3f}"),
        x="share of the images, most confident first",
        y="error rate",
        xaxis=UNIT,
        yaxis={"range": [-0.02, min(1.02, max(curve["high"][len(curve["high"]) // 10 :]) + 0.05)]},
        showlegend=False,
        wide=True,
    )


def folds(document: ReportFile) -> dict[str, Chart]:
    """Validation loss and accuracy of each fold over the epochs."""
    histories = {number: records for number, records in document.get("folds", {}).items() if records}
    found = {}
    for key, column, title in (("loss", "val_loss", "validation loss"), ("accuracy", "val_accuracy", "accuracy")):
        traces, ends = [], []
        for place, (number, records) in enumerate(histories.items()):
            values = [record["val_loss"] if column == "val_loss" else record["val_accuracy"] for record in records]
            ends.append(f"fold {number} {values[-1]:.3f}")
            epochs = [record["epoch"] for record in records]
            traces.append(line(epochs, values, f"fold {number}", COLOURS[place % len(COLOURS)]))
        found[f"fold-{key}"] = chart(
            title.capitalize() if key == "loss" else "Validation accuracy",
            f"Line chart of the {title} on the validation images of {len(histories)} folds, which ends at: "
            f"{', '.join(ends)}.",
            traces,
            x="epoch",
            y=title,
            xaxis=whole(max(map(len, histories.values()))),
        )
    return found
