"""A report as one self-contained HTML page, made only from the content of report.json and the pictures."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from busi_tune import option, templates
from busi_tune.evaluation.metrics import edges, missing_intervals, shown
from busi_tune.names import composed
from busi_tune.overlays import LIMITS
from busi_tune.report.card import title
from busi_tune.report.charts import (
    BLUE,
    DARK,
    LIGHT,
    ORANGE,
    Chart,
    coverage,
    folds,
    learning,
    ranking,
    reliability_chart,
    template,
)
from busi_tune.report.compared_charts import nested_chart, transfer_chart
from busi_tune.report.contents import tested
from busi_tune.report.pictures import Album
from busi_tune.report.study_charts import study_charts
from busi_tune.results import Json, ReportFile, TestSummary

TITLES = {
    "summary": "Summary",
    "data": "Data and split",
    "learning": "Learning curves",
    "confusion": "Confusion matrix and all figures",
    "ranking": "ROC and precision-recall",
    "reliability": "Reliability",
    "coverage": "Risk and coverage",
    "study": "Study",
    "nested": "Search on outer folds",
    "evaluation": "Own test images and external images",
    "folds": "Folds",
    "mistakes": "Worst mistakes",
    "export": "Export",
    "repeat": "How to repeat it",
}
# The paths in report.json of the metrics on unseen images.
PLACES = {
    "metrics": ("metrics", "test"),
    "pooled": ("pooled", "pooled"),
    "evaluation": ("evaluation", "external"),
    "export": ("export", "test"),
}
Place = tuple[str | int, ...]


def page(document: ReportFile, album: Album) -> str:
    """The HTML of a report's page."""
    charts = _charts(document)
    prefix = next((place for key, place in PLACES.items() if key in document), ())
    test = tested(document)
    return (
        templates.environment("busi_tune.report")
        .get_template("report.html.jinja")
        .render(
            report=document,
            titles=TITLES,
            charts=charts,
            drawn={
                "charts": {name: chart.figure for name, chart in charts.items()},
                "light": template(LIGHT),
                "dark": template(DARK),
            },
            number=_numbers(document),
            prefix=prefix,
            test=test,
            metrics=_metrics(document, prefix),
            title_of=_titles(test),
            left_out=Counter(each["reason"] for each in document["evaluation"]["left_out"])
            if "evaluation" in document
            else {},
            missing=missing_intervals(test) if test else [],
            album=album,
            picture=lambda path: album.pictures.get(composed(path), ""),
            overlay=lambda path: album.overlays.get(composed(path), ""),
            limits=LIMITS,
            configuration=_configuration(document),
            text=_text,
            plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library itself
        )
    )


def _charts(document: ReportFile) -> dict[str, Chart]:
    found: dict[str, Chart] = {}
    test = tested(document)
    if document.get("history"):
        kept = document["metrics"]["best_epoch"] if "metrics" in document else None
        found |= learning(document["history"], kept)
    if "answers" in document and test is not None:
        answers = document["answers"]
        found |= ranking(answers["curves"], test)
        bins = answers["reliability"]
        name = "External images" if "evaluation" in document else "As trained"
        found["reliability"] = reliability_chart(bins["before"], name, BLUE)
        if bins["after"]:
            found["reliability-after"] = reliability_chart(
                bins["after"], f"After the temperature {bins['temperature']:.3f}", ORANGE
            )
        found["coverage"] = coverage(answers["coverage"])
    if "study" in document and document["study"]["trials"]:
        found |= {f"study-{name}": chart for name, chart in study_charts(document["study"]).items()}
    if "nested" in document:
        found["nested"] = nested_chart(document["nested"])
    if "evaluation" in document:
        found["evaluation"] = transfer_chart(document["evaluation"])
    if document.get("folds"):
        found |= folds(document)
    return found


def _numbers(document: ReportFile) -> Callable[..., Markup]:
    """A function that formats the number at a path of report.json; attributes hold the path and the full value."""

    def number(*parts: str | int | Place, digits: int = 3, share: bool = False, plain: bool = False) -> Markup:
        path = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        value: object = document
        for part in path:
            value = _inside(value, part)
        if value is None:
            return Markup("&ndash;")
        assert isinstance(value, int | float)
        text = f"{value:,}" if isinstance(value, int) else _rounded(value, digits)
        text = f"{value:.0%}" if share else f"{value:.4g}" if plain else text
        return Markup('<data data-at="{}" value="{}">{}</data>').format(json.dumps(path), repr(value), text)

    return number


def _inside(value: object, part: str | int) -> object:
    if isinstance(value, Mapping):
        return value[part]
    assert isinstance(value, list)
    return value[int(part)]


def _rounded(value: float, digits: int) -> str:
    """A float with `digits` decimals, or with `digits` - 1 significant digits if it is very small or large."""
    return (
        f"{value:.{digits}f}" if value == 0 or 10**-digits <= abs(value) < 10**5 else f"{value:.{max(1, digits - 1)}g}"
    )


def _metrics(document: ReportFile, prefix: Place) -> list[tuple[str, Place, Place | None]]:
    """The title of each metric, and the paths of its value and of its interval in report.json."""
    test = tested(document)
    if test is None:
        return []
    known = edges(test["intervals"])
    return [
        (title(name), (*prefix, *name), (*prefix, "intervals", *name) if name in known else None)
        for name in shown(test)
    ]


def _titles(test: TestSummary | None) -> Callable[[str], str]:
    """A function that gives the title of a metric by its dotted name. Names of classes may have dots, too."""
    known = {".".join(name): title(name) for name in shown(test)} if test else {}
    return lambda name: known.get(name) or title(name.split("."))


def _configuration(document: ReportFile) -> dict[str, Json]:
    if "identity" in document:
        return document["identity"]["config"]
    if "study" in document:
        return document["study"]["identity"]["config"]
    if "crossval" in document:
        return document["crossval"]["config"]
    if "outer" in document:
        return document["outer"]["config"]
    if "evaluation" in document:
        found = document["evaluation"]
        return {"model": found["model"], "data": found["data"], "similarity": found["similarity"]}
    return document["export"]["options"] if "export" in document else {}


def _text(value: Json | Sequence[float]) -> str:
    if value is None:
        return "none"
    return option.shown(tuple(value)) if isinstance(value, list) else option.shown(value)
