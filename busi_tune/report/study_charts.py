"""The charts of a study: its history, curves, parameters and cost."""

import json
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from busi_tune.report.charts import BLUE, GREEN, GREY, ORANGE, RED, Chart, chart, label, line, whole
from busi_tune.results import Importance, Json, ReportStudy, ReportTrial

# The colour, symbol and name of each state.
STATES = {
    "PRUNED": (GREY, "x", "pruned"),
    "FAIL": (RED, "triangle-down", "failed"),
    "RUNNING": (ORANGE, "diamond", "running"),
    "COMPLETE": (BLUE, "circle", "complete"),
}
# The maximum number of trials whose curves are drawn.
CURVES = 400


def study_charts(study: ReportStudy) -> dict[str, Chart]:
    """All charts of a study that has trials."""
    found = {"history": _history(study)}
    if any(trial["curve"] for trial in study["trials"]):
        found["curves"] = _curves(study)
    complete = [trial for trial in study["trials"] if trial["value"] is not None and trial["params"]]
    varied = [name for name in study["identity"]["space"] if len({str(t["params"].get(name)) for t in complete}) > 1]
    if len(complete) > 1 and varied:
        found["parallel"] = _parallel(study, complete, varied)
    outcome = study["outcome"]
    importances = outcome.get("importances") if outcome else None
    if importances:
        found["importance"] = _importance(importances)
    for number, name in enumerate(varied):
        found[f"slice-{number}"] = _slice(study, complete, name)
    found["cost"] = _cost(study)
    return found


def _of_state(study: ReportStudy, state: str) -> list[ReportTrial]:
    return [trial for trial in study["trials"] if trial["state"] == state]


def _history(study: ReportStudy) -> Chart:
    metric, traces = study["identity"]["metric"], []
    for state, (colour, sign, name) in STATES.items():
        own = [trial for trial in _of_state(study, state) if trial["value"] is not None]
        if own:
            traces.append(
                go.Scatter(
                    x=[trial["number"] for trial in own],
                    y=[trial["value"] for trial in own],
                    mode="markers",
                    name=name,
                    marker={"color": colour, "symbol": sign, "size": 8},
                    text=[_words(trial) for trial in own],
                    hovertemplate="trial %{x}: %{y:.4f}<br>%{text}<extra></extra>",
                )
            )
    numbers = [trial["number"] for trial in study["trials"]]
    best = line(numbers, study["leading"], "best so far", GREEN, mode="lines")
    best.line.shape = "hv"
    last = study["leading"][-1]
    alt = f"Scatter chart of the {metric} of {len(numbers)} trials, with the best so far" + (
        f", which ends at {last:.4f}." if last is not None else "; none is complete."
    )
    return chart("History", alt, [*traces, best], x="trial", y=metric, wide=True, xaxis=whole(len(numbers)))


def _words(trial: ReportTrial) -> str:
    return "<br>".join(label(f"{name} {_short(value)}") for name, value in trial["params"].items())


def _short(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(study: ReportStudy) -> Chart:
    """The metric of each trial over its epochs. Pruned trials are grey; the best trial stands out."""
    metric, shown = study["identity"]["metric"], [trial for trial in study["trials"] if trial["curve"]][-CURVES:]
    traces = []
    for state, (colour, _, name) in STATES.items():
        own = [trial for trial in shown if trial["state"] == state and trial["number"] != study["best"]]
        if own:
            traces.append(_joined(own, name, colour, width=1, opacity=0.45 if state == "PRUNED" else 0.75))
    best = [trial for trial in study["trials"] if trial["number"] == study["best"] and trial["curve"]]
    if best:
        traces.append(_joined(best, f"best: trial {study['best']}", GREEN, width=3, opacity=1))
    alt = f"Line chart of the {metric} after each epoch of {len(shown)} trials; pruned trials are grey" + (
        f", and the best, trial {study['best']}, ends at {best[0]['curve'][-1]:.4f}." if best else "."
    )
    axis = whole(max(len(trial["curve"]) for trial in shown))
    return chart("Each trial's curve", alt, traces, x="epoch", y=metric, wide=True, height=340, xaxis=axis)


def _joined(trials: Sequence[ReportTrial], name: str, colour: str, *, width: int, opacity: float) -> go.Scatter:
    """The curves of several trials as one line with gaps."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        x += [*range(1, len(trial["curve"]) + 1), None]
        y += [*trial["curve"], None]
        numbers += [trial["number"]] * (len(trial["curve"]) + 1)
    return go.Scatter(
        x=x,
        y=y,
        customdata=numbers,
        name=name,
        mode="lines+markers",
        opacity=opacity,
        connectgaps=False,
        line={"color": colour, "width": width},
        marker={"size": 4, "color": colour},
        hovertemplate="trial %{customdata}, epoch %{x}: %{y:.4f}<extra></extra>",
    )


def _is_log(study: ReportStudy, name: str) -> bool:
    found = json.loads(str(study["identity"]["space"][name]))
    return bool(found.get("attributes", {}).get("log"))


def _numbers(trials: Sequence[ReportTrial], name: str) -> list[float] | None:
    """A parameter's values if all of them are numbers, else None."""
    values = [trial["params"].get(name) for trial in trials]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else None


def _parallel(study: ReportStudy, trials: Sequence[ReportTrial], names: Sequence[str]) -> Chart:
    values = [trial["value"] for trial in trials]
    metric = study["identity"]["metric"]
    dimensions = [_dimension(study, trials, name) for name in names]
    dimensions.append({"label": metric, "values": values})
    trace = go.Parcoords(
        dimensions=dimensions,
        line={
            "color": values,
            "colorscale": [[0, GREY], [1, ORANGE]],
            "reversescale": study["lower_is_better"],
            "showscale": False,
        },
        labelside="top",
        labelangle=-14,
        labelfont={"size": 11},
        tickfont={"size": 11},
    )
    return chart(
        "Parallel coordinates",
        f"Parallel coordinates of {len(trials)} trials over {', '.join(names)} and {metric}; the better a trial, the "
        "more orange its line. The table of all trials has the values.",
        [trace],
        wide=True,
        height=360,
        margin={"l": 56, "r": 40, "t": 76, "b": 24},
    )


def _dimension(study: ReportStudy, trials: Sequence[ReportTrial], name: str) -> dict[str, object]:
    numbers = _numbers(trials, name)
    if numbers is None:
        words = sorted({str(trial["params"].get(name)) for trial in trials})
        places = [words.index(str(trial["params"].get(name))) for trial in trials]
        return {"label": name, "values": places, "tickvals": list(range(len(words))), "ticktext": words}
    if not _is_log(study, name):
        return {"label": name, "values": numbers}
    powers = [math.log10(number) for number in numbers]
    ticks = list(range(math.floor(min(powers)), math.ceil(max(powers)) + 1))
    texts = [f"{10.0**tick:g}" for tick in ticks]
    return {"label": name, "values": powers, "tickvals": ticks, "ticktext": texts, "range": [ticks[0], ticks[-1]]}


def _importance(importances: Mapping[str, Importance]) -> Chart:
    names = list(importances)[::-1]
    found = [importances[name] for name in names]
    trace = go.Bar(
        x=[each["importance"] for each in found],
        y=[label(name) for name in names],
        orientation="h",
        marker={"color": BLUE},
        customdata=[[each["low"], each["high"]] for each in found],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [each["high"] - each["importance"] for each in found],
            "arrayminus": [each["importance"] - each["low"] for each in found],
            "color": GREY,
        },
        hovertemplate="%{y}: %{x:.3f}<br>95 % of resamples %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
    )
    words = [
        f"{name} {each['importance']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
        for name, each in importances.items()
    ]
    return chart(
        "Importance of each parameter",
        f"Bar chart of shares of importance, with their range over resamples: {', '.join(words)}.",
        [trace],
        x="share of importance",
        showlegend=False,
        wide=True,
        height=max(180, 60 * len(names) + 80),
    )


def _slice(study: ReportStudy, trials: Sequence[ReportTrial], name: str) -> Chart:
    """The metric over one parameter."""
    metric, traces = study["identity"]["metric"], []
    for state, (colour, sign, word) in STATES.items():
        own = [trial for trial in trials if trial["state"] == state]
        if own:
            numbers = _numbers(own, name)
            x = numbers if numbers is not None else [label(str(trial["params"].get(name))) for trial in own]
            traces.append(
                go.Scatter(
                    x=x,
                    y=[trial["value"] for trial in own],
                    mode="markers",
                    name=word,
                    marker={"color": colour, "symbol": sign, "size": 8, "opacity": 0.8},
                    customdata=[trial["number"] for trial in own],
                    hovertemplate="%{x}: %{y:.4f}<br>trial %{customdata}<extra></extra>",
                )
            )
    sign_of = 1 if study["lower_is_better"] else -1
    best = min(trials, key=lambda trial: sign_of * (trial["value"] or 0.0))
    axis = {"type": "log", "exponentformat": "power", "dtick": 1} if _is_log(study, name) else {}
    return chart(
        name,
        f"Scatter chart of {metric} over {name} for {len(trials)} trials; the best value is at "
        f"{_short(best['params'].get(name))}.",
        traces,
        x=label(name),
        y=metric,
        xaxis=axis,
        showlegend=False,
    )


def _cost(study: ReportStudy) -> Chart:
    """The epochs of each trial."""
    traces = []
    for state, (colour, _, name) in STATES.items():
        own = _of_state(study, state)
        if own:
            traces.append(
                go.Bar(
                    x=[trial["number"] for trial in own],
                    y=[trial["epochs_run"] for trial in own],
                    name=name,
                    marker={"color": colour},
                    customdata=[[trial["seconds"], label(trial["stop_reason"])] for trial in own],
                    hovertemplate="trial %{x}: %{y} epochs<br>%{customdata[0]:.1f} s<br>%{customdata[1]}"
                    "<extra></extra>",
                )
            )
    saving = study["saving"]
    return chart(
        "Epochs of each trial",
        f"Bar chart of the epochs of {len(study['trials'])} trials, {saving['epochs_run']} in all; pruning left out "
        f"{saving['epochs_saved']}.",
        traces,
        x="trial",
        y="epochs",
        barmode="overlay",
        wide=True,
        height=240,
        xaxis=whole(len(study["trials"])),
    )
