"""Results in a notebook: dictionaries that a notebook shows as tables and pictures."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from busi_tune import results
from busi_tune.errors import printable
from busi_tune.results import (
    CrossvalResult,
    MetricsFile,
    ReportFile,
    RunResult,
    SearchResult,
    TestSummary,
    VerificationFile,
)

# The maximum number of trials in the table of a study.
TRIALS = 10
Document = TypeVar("Document", bound=Mapping[str, object])


@dataclass(frozen=True)
class View:
    """The content of a view: sentences, tables (columns and rows), and pictures (description and base64 PNG)."""

    sentences: Sequence[str] = ()
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[object]]]] = ()
    pictures: Sequence[tuple[str, str]] = field(default_factory=list)


class ShownResult(dict[str, object]):
    """The document of a result, equal to a plain dictionary. A notebook shows its tables and pictures."""

    def __init__(self, document: Mapping[str, object], folder: Path) -> None:
        super().__init__(document)
        self.folder = folder

    def _repr_html_(self) -> str:
        from busi_tune import templates

        kind = VIEWS.get(str(self.get("schema")), _plain)
        environment = templates.environment("busi_tune.report", _cell)
        return environment.get_template("view.html.jinja").render(view=kind(self, self.folder))


def shown_result(document: Document, folder: Path) -> Document:
    """The same document as a `ShownResult`, with the pictures in `folder`."""
    return cast("Document", ShownResult(document, folder))


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value) if type(value) is str else value


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _key_table(test: TestSummary) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    from busi_tune.report.contents import key_figures

    columns = ("test images", str(test["images"]), "95 % interval")
    return columns, [(one["name"], one["value"], _interval(one["interval"])) for one in key_figures(test)]


def _class_table(test: TestSummary) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    names = ("images", "precision", "recall", "f1", "roc_auc")
    rows = [(name, *(dict(one)[key] for key in names)) for name, one in test["per_class"].items()]
    return ("class", *names), rows


def _pictures(folder: Path, *names: str) -> list[tuple[str, str]]:
    """The pictures of these names that exist in a folder: description and base64."""
    found = [folder / name for name in names if (folder / name).exists()]
    return [(path.stem.replace("_", " "), base64.b64encode(path.read_bytes()).decode()) for path in found]


def _run(document: Mapping[str, object], folder: Path) -> View:
    run = cast("MetricsFile", document)
    groups = f"{run['test']['images']} test images in {run['test']['groups']} groups"
    return View(
        [f"Epoch {run['best_epoch']} of {run['epochs_run']} is kept ({run['stop_reason']}); {groups}."],
        [_key_table(run["test"]), _class_table(run["test"])],
        _pictures(folder, results.CURVES, results.CONFUSION),
    )


def _study(document: Mapping[str, object], folder: Path) -> View:
    study = cast("SearchResult", document)
    sign = 1 if study["metric"] == "val_loss" else -1
    complete = [row for row in study["trials"] if row["state"] == "COMPLETE" and isinstance(row["value"], float)]
    first = sorted(complete, key=lambda row: (sign * float(str(row["value"])), row["number"]))[:TRIALS]
    columns = [name for name in (first[0] if first else {}) if name != "stop_reason"]
    table = (columns, [[row[name] for name in columns] for row in first])
    count = f"{len(study['trials'])} trials by {study['metric']}, of which {len(complete)} are complete."
    if "best" not in study:
        return View([count], [table])
    verdict = study.get("verdict")
    best = _run(study["best"], folder / "best")
    sentences = [count, *([verdict["sentence"]] if verdict else []), f"Trial {study['best']['trial']} is the best."]
    return View([*sentences, *best.sentences], [table, *best.tables], best.pictures)


def _crossval(document: Mapping[str, object], folder: Path) -> View:
    found = cast("CrossvalResult", document)
    rows = [
        (one["fold"], one["test"]["images"], one["test"]["accuracy"], one["test"]["macro_f1"], one["best_epoch"])
        for one in found["folds"]
    ]
    folds = (("fold", "images", "accuracy", "macro F1", "kept epoch"), rows)
    sentence = f"All {len(rows)} folds together; each image is predicted by a model that was not trained on it:"
    return View([sentence], [_key_table(found["pooled"]), folds], _pictures(folder, results.CONFUSION))


def _export(document: Mapping[str, object], folder: Path) -> View:  # noqa: ARG001
    certificate = cast("VerificationFile", document)
    rows = [
        (name, "passed" if one["passed"] else "; ".join(one["reasons"]), one.get("max_error"), one.get("bytes"))
        for name, one in certificate["models"].items()
    ]
    models = (("model", "verification", "largest error", "bytes"), rows)
    return View([*certificate["warnings"]], [models, _key_table(certificate["test"])])


def _everything(document: Mapping[str, object], folder: Path) -> View:  # noqa: ARG001
    found = cast("RunResult", document)
    parts = [_study(found["search"], Path(found["places"]["study"])), _export(found["export"], Path())]
    return View(
        [text for part in parts for text in part.sentences],
        [table for part in parts for table in part.tables],
        [picture for part in parts for picture in part.pictures],
    )


def _report(document: Mapping[str, object], folder: Path) -> View:
    report = cast("ReportFile", document)
    return View([f"{folder / results.REPORT_PAGE} shows the {report['kind']} in {folder}."])


def _plain(document: Mapping[str, object], folder: Path) -> View:  # noqa: ARG001
    rows = [(key, value) for key, value in document.items() if not isinstance(value, list | Mapping)]
    return View(tables=[(("", ""), rows)])


VIEWS: dict[str, Callable[[Mapping[str, object], Path], View]] = {
    results.SCHEMAS[MetricsFile]: _run,
    results.SCHEMAS[SearchResult]: _study,
    results.SCHEMAS[CrossvalResult]: _crossval,
    results.SCHEMAS[VerificationFile]: _export,
    results.SCHEMAS[RunResult]: _everything,
    results.SCHEMAS[ReportFile]: _report,
}
