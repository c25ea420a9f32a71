"""The content of a report, from the files of a result of any kind."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from busi_tune import __version__, files, results
from busi_tune.config import Config
from busi_tune.data.folds import read_folds
from busi_tune.data.split import Roles, Split, read_split
from busi_tune.errors import FileError, RunError
from busi_tune.evaluation.curves import class_curves, cooled, coverage, reliability
from busi_tune.evaluation.metrics import Answers, confusion_matrix
from busi_tune.export_options import ExportOptions
from busi_tune.inference.certificate import VERIFICATION, read_certificate
from busi_tune.names import composed
from busi_tune.option import Options, words
from busi_tune.report.explanations import explain_mistakes
from busi_tune.report.pictures import Album
from busi_tune.report.study_contents import IDENTITY, TRIALS, read_study, row_of_trial
from busi_tune.results import (
    CROSSVAL,
    FOLDS,
    METRICS,
    POOLED,
    PREDICTIONS,
    SPLIT,
    CrossvalFile,
    CrossvalIdentityFile,
    EvaluationFile,
    Json,
    MetricsFile,
    Mistake,
    NestedFile,
    NestedIdentityFile,
    ReportAnswers,
    ReportData,
    ReportFigure,
    ReportFile,
    ReportImage,
    ReportKind,
    RunIdentityFile,
    TestSummary,
)
from busi_tune.search_options import SearchOptions
from busi_tune.training import run_folder

# The maximum number of mistakes and of contradictions in a report.
MISTAKES, CONTRADICTIONS = 12, 12
UNFINISHED = "Run the report again when it has ended."
# Options that decide where and how fast a command runs, not its result.
ELSEWHERE = frozenset({"device", "precision"})


@dataclass(frozen=True)
class JudgedAnswers:
    """The predictions in a predictions.csv, the group of each image, and the training images of each model.

    `training` is empty for an export. `models` has the folder of each model, a run or an export. The keys of both are
    folds; a single model has the key 0.
    """

    answers: Answers
    table: pd.DataFrame
    groups: np.ndarray[tuple[int], np.dtype[np.int64]]
    grouped: bool
    training: Mapping[int, pd.DataFrame]
    models: Mapping[int, Path]


def kind_of(folder: Path) -> ReportKind:
    """The kind of result in a folder.

    Raises:
        RunError: the folder holds no result.
    """
    marks: dict[str, ReportKind] = {
        VERIFICATION: "export",
        IDENTITY: "study",
        CROSSVAL: "cross-validation",
        results.NESTED: "nested search",
        results.EVALUATION: "evaluation",
        results.IDENTITY: "run",
    }
    for name, kind in marks.items():
        if (folder / name).exists():
            return kind
    state = "is not there" if not folder.exists() else f"holds none of {', '.join(marks)}"
    raise RunError(f"{folder} {state}; name the folder of a result, as `busi-tune list` shows them.")


def data_folder(folder: Path) -> Path | None:
    """The folder of the images at the time of the result in `folder`, or None if no file records it."""
    if (folder / results.EVALUATION).exists():
        place = Path(results.read(folder / results.EVALUATION, EvaluationFile)["data"])
        return place.parent if place.is_file() else place
    places = [folder, folder / "best", folder / TRIALS / "0000", folder / "folds" / "1", folder / "studies" / "1"]
    known = next((place for place in places if (place / results.SOURCE).exists()), None)
    return None if known is None else Path(results.read(known / results.SOURCE, results.DataFile)["folder"])


def read_report(folder: Path, album: Album, export: Path | None = None) -> ReportFile:
    """The content of the report on `folder`; the pictures of its images are added to `album`.

    `export` is an export of the run, or of the study's best run, that the report shows as well.

    Raises:
        RunError: the folder holds no result, or `export` belongs to another result.
        FileError: a file cannot be read or has changed.
    """
    kind = kind_of(folder)
    document = READERS[kind](folder, album)
    if export is not None and kind != "export":
        _add_export(document, folder, export)
    document["sections"] = [name for name in SECTIONS if _has(document, name)]
    return document


SECTIONS = (
    "summary",
    "data",
    "learning",
    "confusion",
    "ranking",
    "reliability",
    "coverage",
    "study",
    "nested",
    "evaluation",
    "folds",
    "mistakes",
    "export",
    "repeat",
)


def _has(document: ReportFile, section: str) -> bool:
    needs = {
        "data": "data",
        "learning": "history",
        "confusion": "answers",
        "ranking": "answers",
        "reliability": "answers",
        "coverage": "answers",
        "study": "study",
        "nested": "nested",
        "evaluation": "evaluation",
        "folds": "folds",
        "mistakes": "answers",
        "export": "export",
    }
    return section not in needs or bool(document.get(needs[section]))


def tested(document: ReportFile) -> TestSummary | None:
    """The metrics on images that the model has not seen, or None if there are none yet."""
    if "metrics" in document:
        return document["metrics"]["test"]
    if "pooled" in document:
        return document["pooled"]["pooled"]
    if "evaluation" in document:
        return document["evaluation"]["external"]
    return document["export"]["test"] if "export" in document else None


def _begin(kind: ReportKind, folder: Path) -> ReportFile:
    return {
        "schema": results.SCHEMAS[ReportFile],
        "kind": kind,
        "folder": folder.resolve().name,
        "finished": False,
        "state": "",
        "verdict": "",
        "figures": [],
        "sections": [],
        "commands": [],
        "versions": {"busi-tune": __version__},
    }


def _run(folder: Path, album: Album) -> ReportFile:
    document = _begin("run", folder)
    document["state"] = _add_run(document, folder, album)
    document["commands"] = [_command("baseline", Config, document["identity"]["config"], "--data", "DIR")]
    if document["finished"] and document["metrics"]:
        document["verdict"] = _accuracy(document["metrics"]["test"], "Test accuracy") + _leak(document["metrics"])
    else:
        document["verdict"] = document["state"]
    return document


def _add_run(document: ReportFile, folder: Path, album: Album) -> str:
    """Add the content of a run's files to `document`; return a sentence on the run's state."""
    identity = results.read(folder / results.IDENTITY, RunIdentityFile)
    state = run_folder.read_state(folder)
    split = read_split(folder / SPLIT)
    document["identity"], document["history"] = identity, state["history"] if state else []
    document["versions"] |= {key: str(value) for key, value in identity["environment"].items()}
    document["data"] = _data(split, split.used, "split", album)
    document["data"]["leaked"] = float(split.has_twin_in_training("test").mean())
    ended, epochs = state["stop_reason"] if state else "", len(document["history"])
    if not ended or not (folder / METRICS).exists():
        return _unfinished(folder, epochs, int(str(identity["config"]["epochs"])))
    figures = results.read(folder / METRICS, MetricsFile)
    document["finished"], document["metrics"] = True, figures
    document["figures"] = key_figures(figures["test"])
    answered = _answered(folder, figures["test"], split.used, {0: split.rows("train")})
    document["answers"] = _answers(answered, album)
    return f"Finished: epoch {figures['best_epoch']} of {epochs} kept; {ended}."


def _unfinished(folder: Path, epochs: int, most: int) -> str:
    row = row_of_trial(folder)
    begun = f"{epochs} of at most {most} epochs are done."
    if row is None:
        return f"This run has not ended: {begun} It has no test figures yet. {UNFINISHED}"
    if row["state"] == "FAIL":
        return f"This trial failed: {str(row['stop_reason']).rstrip('.')}. {begun}"
    return f"This trial ended early and has no test figures: {row['stop_reason']}; {begun}"


def _study(folder: Path, album: Album) -> ReportFile:
    document = _begin("study", folder)
    study = document["study"] = read_study(folder)
    best, trials = study["best"], study["trials"]
    if best is not None and (folder / "best" / METRICS).exists():
        _add_run(document, folder / "best", album)
    else:
        split = read_split(folder / SPLIT)
        document["data"] = _data(split, split.used, "split", album)
    document["finished"] = study["outcome"] is not None and not study["states"].get("RUNNING")
    counts = ", ".join(f"{count} {state.lower()}" for state, count in study["states"].items())
    document["state"] = f"{len(trials)} trials: {counts}."
    if not document["finished"]:
        document["state"] += f" This study has not ended. {UNFINISHED}"
    document["verdict"] = _study_verdict(document)
    config = study["identity"]["config"]
    options = [f"--trials {len(trials)}", f"--trial-epochs {study['identity']['trial_epochs']}"]
    options += [f"--metric {study['identity']['metric']}", f"--pruner {study['identity']['pruner']}"]
    document["commands"] = [_command("search", Config, config, "--data", "DIR", *" ".join(options).split())]
    return document


def _study_verdict(document: ReportFile) -> str:
    study = document["study"]
    if study["best"] is None:
        return "No trial has been completed yet."
    verdict = study["verdict"]
    if not document["finished"] or "metrics" not in document:
        value = next(trial["value"] for trial in study["trials"] if trial["number"] == study["best"])
        metric = study["identity"]["metric"]
        return f"So far trial {study['best']} of {len(study['trials'])} trials is the best, with {metric} {value:.4f}."
    best = _accuracy(document["metrics"]["test"], f"Trial {study['best']} is the best, with test accuracy")
    return best + (f" Against the baseline: {verdict['sentence']}" if verdict else "")


def _crossval(folder: Path, album: Album) -> ReportFile:
    document = _begin("cross-validation", folder)
    identity = document["crossval"] = results.read(folder / CROSSVAL, CrossvalIdentityFile)
    folds = read_folds(folder / FOLDS)
    document["data"] = _data(folds, folds.used.assign(fold="fold " + folds.used["fold"].astype(str)), "fold", album)
    runs = {number: folder / "folds" / str(number) for number in range(1, folds.count + 1)}
    states = {number: run_folder.read_state(run) for number, run in runs.items() if run.is_dir()}
    document["folds"] = {str(number): state["history"] for number, state in states.items() if state}
    options = ["--folds", str(identity["folds"])]
    document["commands"] = [_command("crossval", Config, identity["config"], "--data", "DIR", *options)]
    known = next((run for run in runs.values() if (run / results.IDENTITY).exists()), None)
    if known is not None:
        environment = results.read(known / results.IDENTITY, RunIdentityFile)["environment"]
        document["versions"] |= {key: str(value) for key, value in environment.items()}
    ended = sum(bool(state and state["stop_reason"]) for state in states.values())
    if not (folder / POOLED).exists():
        document["state"] = f"This cross-validation has not ended: {ended} of {folds.count} folds are trained."
        document["verdict"] = document["state"] = f"{document['state']} {UNFINISHED}"
        return document
    found = document["pooled"] = results.read(folder / POOLED, CrossvalFile)
    document["finished"], document["figures"] = True, key_figures(found["pooled"])
    document["state"] = f"Finished: {folds.count} folds."
    answered = "each predicted by a model that was trained neither on it nor on a near-duplicate of it"
    document["verdict"] = _accuracy(found["pooled"], "Accuracy", f", {answered}")
    training = {number: read_split(run / SPLIT).rows("train") for number, run in runs.items()}
    document["answers"] = _answers(_answered(folder, found["pooled"], folds.used, training, models=runs), album)
    return document


def _nested(folder: Path, album: Album) -> ReportFile:
    document = _begin("nested search", folder)
    identity = document["outer"] = results.read(folder / results.NESTED, NestedIdentityFile)
    folds = read_folds(folder / FOLDS)
    document["data"] = _data(folds, folds.used.assign(fold="fold " + folds.used["fold"].astype(str)), "fold", album)
    runs = {number: folder / "studies" / str(number) / "best" for number in range(1, folds.count + 1)}
    states = {number: run_folder.read_state(run) for number, run in runs.items() if run.is_dir()}
    document["folds"] = {str(number): state["history"] for number, state in states.items() if state}
    options = folder / results.OPTIONS
    known = results.read(options, results.OptionsFile)["options"] if options.exists() else {}
    more = ["--folds", str(identity["folds"]), *words(SearchOptions, known)]
    document["commands"] = [_command("search", Config, identity["config"], "--data", "DIR", *more)]
    if not (folder / results.NESTED_VERDICT).exists():
        document["state"] = f"This search has not ended: {len(states)} of {folds.count} studies have a best trial."
        document["verdict"] = document["state"] = f"{document['state']} {UNFINISHED}"
        return document
    found = document["nested"] = results.read(folder / results.NESTED_VERDICT, NestedFile)
    document["pooled"], document["finished"] = found["tuned"], True
    test = found["tuned"]["pooled"]
    document["figures"] = key_figures(test)
    document["state"] = f"Finished: {folds.count} folds, each with a study of its own."
    document["verdict"] = f"{_accuracy(test, 'The search has accuracy')} {found['sentence']}"
    environment = results.read(runs[1] / results.IDENTITY, RunIdentityFile)["environment"]
    document["versions"] |= {key: str(value) for key, value in environment.items()}
    training = {number: read_split(run / SPLIT).rows("train") for number, run in runs.items()}
    document["answers"] = _answers(_answered(folder, test, folds.used, training), album)
    return document


def _evaluation(folder: Path, album: Album) -> ReportFile:
    document = _begin("evaluation", folder)
    found = document["evaluation"] = results.read(folder / results.EVALUATION, EvaluationFile)
    external, internal = found["external"], found["internal"]
    change = found["differences"]["accuracy"]
    edges = change["interval"]
    between = f" (95 % interval {edges[0]:+.3f} to {edges[1]:+.3f})" if edges else ""
    document["finished"], document["figures"] = True, key_figures(external)
    document["state"] = f"Finished: {found['model']} on {found['data']}."
    document["verdict"] = (
        f"{_accuracy(external, 'External accuracy')} It is {internal['accuracy']:.3f} on the model's own "
        f"{internal['images']} test images; the difference is {change['difference']:+.3f}{between}."
    )
    document["data"] = {
        "images": {name: {"external": number} for name, number in found["images"].items()},
        "totals": {"external": external["images"]},
        "groups": {"external": external["groups"]},
        "group_sizes": {},
        "left_out": {},
        "contradictions": [],
        "leaked": None,
    }
    document["answers"] = _answers(_answered(folder, external, None, {}), album)
    more = ["--data", found["data"], "--similarity", str(found["similarity"]), "--out", "DIR"]
    renamed = [f"{name}={label}" for label, name in found["labels"].items() if label != name]
    more += ["--map", ",".join(renamed)] if renamed else []
    more += ["--training-data", found["training_data"]] if found["training_data"] else []
    document["commands"] = [shlex.join(["busi-tune", "evaluate", found["model"], *more])]
    return document


def _export(folder: Path, album: Album) -> ReportFile:
    document = _begin("export", folder)
    certificate = document["export"] = read_certificate(folder)
    document["finished"] = True
    document["versions"] |= certificate["versions"]
    test = certificate["test"]
    document["figures"] = key_figures(test)
    passed = "Verified" if certificate["passed"] else "Not verified"
    document["state"] = f"{passed}: {', '.join(certificate['models'])}."
    document["verdict"] = f"{_export_verdict(document)} {_accuracy(test, 'Test accuracy')}"
    answered = _answered(folder, test, None, {})
    counts = answered.table["class"].value_counts()
    document["data"] = {
        "images": {str(name): {"test": int(counts[name])} for name in sorted(counts.index)},
        "totals": {"test": len(answered.table)},
        "groups": {"test": test["groups"]},
        "group_sizes": {},
        "left_out": {},
        "contradictions": [],
        "leaked": None,
    }
    document["answers"] = _answers(answered, album, certificate["temperature"])
    document["commands"] = [_export_command(document)]
    return document


def _export_verdict(document: ReportFile) -> str:
    certificate = document["export"]
    if not certificate["passed"]:
        return f"Not verified: {'; '.join(certificate['reasons'])}."
    changed = certificate["answers_changed"]
    but = f", except for {changed} predictions within the tolerance" if changed else ""
    return f"Verified: on all {certificate['images']} test images ONNX Runtime predicts as PyTorch does{but}."


def _add_export(document: ReportFile, folder: Path, export: Path) -> None:
    """Add an export to the report on its run, or on the study whose best run was exported.

    Raises:
        RunError: the export is of another run, or the run is not finished.
    """
    certificate = read_certificate(export)
    if "metrics" not in document or certificate["source_sha256"] != document["metrics"]["model_sha256"]:
        raise RunError(f"{export} is not the export of {folder}; name its own export, or leave --export out.")
    document["export"] = certificate
    document["commands"].append(_export_command(document))
    run = folder / "best" if document["kind"] == "study" else folder
    answered = _answered(run, document["metrics"]["test"], read_split(run / SPLIT).used, {})
    after = cooled(answered.answers, certificate["temperature"])
    document["answers"]["reliability"]["after"] = reliability(after, answered.groups)
    document["answers"]["reliability"]["temperature"] = certificate["temperature"]


def _data(roles: Roles | Split, used: pd.DataFrame, part: str, album: Album) -> ReportData:
    """The numbers of images by class and part, their groups, and the images left out."""
    groups = used[["group", part]].drop_duplicates()[part]
    order = [name for name in ("train", "validation", "test") if name in set(used[part])] or sorted(set(used[part]))
    out = roles.left_out
    sizes = Counter(used.groupby("group").size())
    contradictions = [
        [_image(path, label) for path, label in zip(rows["path"], rows["class"], strict=True)]
        for _, rows in out.groupby("group")
        if rows["class"].nunique() > 1
    ]
    digests = dict(zip(out["path"], out["sha256"], strict=True))
    for image in [image for group in contradictions[:CONTRADICTIONS] for image in group]:
        album.add(image["path"], digests[image["path"]])
    return {
        "images": {
            str(label): {name: int((rows[part] == name).sum()) for name in order}
            for label, rows in used.groupby("class")
        },
        "totals": {name: int((used[part] == name).sum()) for name in order},
        "groups": {name: int((groups == name).sum()) for name in order},
        "group_sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "left_out": {str(reason): int(count) for reason, count in out["reason"].value_counts().items()},
        "contradictions": contradictions,
        "leaked": None,
    }


def _image(path: str, label: str) -> ReportImage:
    return {"path": path, "class": label}


def _answered(
    folder: Path,
    test: TestSummary,
    used: pd.DataFrame | None,
    training: Mapping[int, pd.DataFrame],
    *,
    models: Mapping[int, Path] | None = None,
) -> JudgedAnswers:
    """The predictions in predictions.csv of `folder`, checked against the metrics `test`.

    `used` has the groups and hashes of the images. `training` has the training images by fold, and `models` the runs; a
    single model is fold 0, and is in `folder`.

    Raises:
        FileError: the predictions cannot be read, or do not match `test`.
    """
    classes = tuple(test["per_class"])
    path = folder / PREDICTIONS
    with files.explained(path, "read"):
        try:
            table = pd.read_csv(path, dtype={"path": str, "class": str, "sha256": str}, keep_default_na=False)
            table["path"] = table["path"].map(composed)
            probabilities = table[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
            labels = np.array([classes.index(label) for label in table["class"]], dtype=np.int64)
        except (ValueError, KeyError) as error:
            raise FileError(f"{path} is damaged ({str(error).strip()}); restore it or start over.") from error
    answers = Answers(labels, probabilities, classes)
    if confusion_matrix(labels, answers.predicted, len(classes)).tolist() != test["confusion_matrix"]:
        raise FileError(f"{path} is damaged (its predictions do not match the figures); restore it or start over.")
    groups = table["group"].to_numpy() if "group" in table else np.arange(len(table))
    if used is not None:
        known = used.assign(path=used["path"].map(composed)).set_index("path").reindex(table["path"])
        if known["group"].isna().any():
            raise FileError(f"{path} has images that the split does not have; restore it or start over.")
        groups = np.asarray(pd.factorize(known["group"])[0], dtype=np.int64)
        table["sha256"] = known["sha256"].to_numpy()
    if "sha256" not in table:
        # Evaluations of earlier versions lack it.
        table["sha256"] = ""
    grouped = used is not None or "group" in table
    return JudgedAnswers(answers, table, groups, grouped, training, models or {0: folder})


def _answers(answered: JudgedAnswers, album: Album, temperature: float | None = None) -> ReportAnswers:
    """The part of the report about predictions; the pictures of the worst mistakes are added to `album`."""
    answers, groups = answered.answers, answered.groups
    after = [] if temperature is None else reliability(cooled(answers, temperature), groups)
    matrix = confusion_matrix(answers.labels, answers.predicted, len(answers.classes))
    mistakes, folds = _mistakes(answered, album)
    return {
        "images": len(groups),
        "grouped": answered.grouped,
        "shares": [[count / max(1, sum(row)) for count in row] for row in matrix.tolist()],
        "curves": class_curves(answers, groups),
        "reliability": {"before": reliability(answers, groups), "after": after, "temperature": temperature},
        "coverage": coverage(answers, groups),
        "mistakes": mistakes,
        "maps": explain_mistakes(mistakes, answered.models, folds, album),
        "wrong": int((answers.predicted != answers.labels).sum()),
    }


def _mistakes(answered: JudgedAnswers, album: Album) -> tuple[list[Mistake], list[int]]:
    """The wrong predictions with the lowest probability of the true class, and their folds.

    Each mistake has the nearest training image.
    """
    answers, table = answered.answers, answered.table
    own = answers.probabilities[np.arange(len(table)), answers.labels]
    surest = answers.probabilities.max(axis=1)
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    order = sorted(wrong.tolist(), key=lambda row: (own[row], -surest[row], table["path"].iloc[row]))
    found: list[Mistake] = []
    folds = [int(table.iloc[row].get("fold", 0)) for row in order[:MISTAKES]]
    for row, fold in zip(order, folds, strict=False):
        entry = table.iloc[row]
        album.add(entry["path"], entry["sha256"])
        training = answered.training.get(fold)
        mistake: Mistake = {
            **_image(entry["path"], entry["class"]),
            "predicted": answers.classes[int(answers.predicted[row])],
            "probabilities": dict(zip(answers.classes, answers.probabilities[row].tolist(), strict=True)),
            "nearest": None if training is None else album.nearest(entry["path"], training),
        }
        found.append(mistake)
    return found, folds


def key_figures(test: TestSummary) -> list[ReportFigure]:
    """The key metrics of a summary, with their intervals."""
    spread = test["intervals"]
    found: list[ReportFigure] = [
        {"name": "Accuracy", "value": test["accuracy"], "interval": spread.get("accuracy")},
        {"name": "Macro F1", "value": test["macro_f1"], "interval": spread.get("macro_f1")},
    ]
    for key, name in (("malignant_vs_rest", "malignant"), ("positive_vs_rest", test.get("positive", ""))):
        binary = test.get(key)
        if isinstance(binary, dict):
            edges = spread.get(key, {})
            assert isinstance(edges, dict)
            for metric, title in (
                ("sensitivity", f"Sensitivity for {name}"),
                ("specificity", f"Specificity for {name}"),
                ("roc_auc", f"ROC AUC of {name}"),
            ):
                found.append({"name": title, "value": binary[metric], "interval": edges.get(metric)})
    found.append(
        {
            "name": "Calibration error",
            "value": test["calibration_error"],
            "interval": spread.get("calibration_error"),
        }
    )
    return found


def _accuracy(test: TestSummary, begin: str, end: str = "") -> str:
    interval = test["intervals"].get("accuracy")
    edges = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{begin} {test['accuracy']:.3f}{edges} on {test['images']} images in {test['groups']} groups{end}."


def _leak(figures: MetricsFile) -> str:
    share = figures["leaked_test_images"]
    text = f" {share:.0%} of the test images have a near-duplicate in training, so every figure is too good."
    return text if share else ""


def _command(name: str, kind: type[Options], values: Mapping[str, Json], *more: str) -> str:
    """A command line with all options that differ from their defaults."""
    own = {key: value for key, value in values.items() if key not in ELSEWHERE}
    return shlex.join(["busi-tune", name, *more, *words(kind, own)])


READERS: Mapping[ReportKind, Callable[[Path, Album], ReportFile]] = {
    "run": _run,
    "study": _study,
    "cross-validation": _crossval,
    "nested search": _nested,
    "evaluation": _evaluation,
    "export": _export,
}


def _export_command(document: ReportFile) -> str:
    return _command("export", ExportOptions, document["export"]["options"], "RUN", "--out", "DIR")
