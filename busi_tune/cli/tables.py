"""Tables of results."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from busi_tune.cli.export_tables import show_certificate, suggestion
from busi_tune.cli.prediction_formats import table
from busi_tune.cli.screen import fits, print_line, print_table, print_text
from busi_tune.evaluation.metrics import Name, edges, missing_intervals, once, shown
from busi_tune.inference import Prediction
from busi_tune.report.summary import summary
from busi_tune.results import (
    AuditedTrial,
    AuditFile,
    CompareResult,
    Comparison,
    CrossvalResult,
    Interval,
    MetricsFile,
    NestedFile,
    PredictionEntry,
    RunResult,
    SearchResult,
    SeedsFile,
    SplitResult,
    TestSummary,
    VerdictFile,
)

INTERVAL = "95 % interval"
# The metrics reported most, to which sensitivity and specificity are added if a class is the disease.
REPORTED: tuple[Name, ...] = (("accuracy",), ("balanced_accuracy",), ("macro_f1",), ("macro_roc_auc",))
REPORTED_WITHOUT_DISEASE: tuple[Name, ...] = (("macro_precision",), ("matthews_correlation",))
# Class shares count as equal if they differ by at most this value.
EQUAL = 0.02
KEPT = (
    "Each run keeps its epoch of highest validation accuracy; ties go to the lower validation loss. "
    "Scheduler and early stopping follow the validation loss."
)


def show_run(figures: MetricsFile, folder: Path, *, everything: bool = False) -> None:
    """Print a finished run: its test metrics with their intervals, and the confusion matrix.

    With `everything`, all metrics are printed, otherwise the six reported most.
    """
    test = figures["test"]
    print_text(f"{folder}: epoch {figures['best_epoch']} of {figures['epochs_run']} kept; {figures['stop_reason']}.")
    title = f"{test['images']} test images in {test['groups']} groups of near-duplicates"
    names = _chosen(shown(test), everything)
    _show_metrics(figures, title, names)
    if "positive" in test:
        print_text(f"Positive is {test['positive']}.")
    reasons = {name: reason for name, reason in test["without_interval"].items() if dotted(name) in names}
    for sentence in missing_intervals({**test, "without_interval": reasons}):
        print_text(sentence)
    show_matrix("Confusion matrix (rows: true class)", test)
    shares = figures["effective_prior"]
    if max(shares.values()) - min(shares.values()) > EQUAL:
        text = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        print_text(f"Sampler and class weights together give about these class shares in training: {text}.")
    if "risk_coverage" in figures["validation"]:
        print_text(f"{suggestion(figures['validation']['risk_coverage'])} An export calibrates the confidences.")
    if figures["leaked_test_images"]:
        print_text(f"{figures['leaked_test_images']:.0%} of the test images have a near-duplicate in training.")


def _chosen(names: Iterable[Name], everything: bool) -> list[Name]:
    """All of `names`, or the six metrics reported most."""
    known = list(names)
    if everything:
        return known
    disease = [name for name in known if name[0].endswith("_vs_rest") and name[1] in ("sensitivity", "specificity")]
    return [name for name in (*REPORTED, *(disease or REPORTED_WITHOUT_DISEASE)) if name in known]


def show_matrix(title: str, part: TestSummary) -> None:
    """Print the confusion matrix of a summary."""
    names = list(part["per_class"])
    matrix = [[name, *counts] for name, counts in zip(names, part["confusion_matrix"], strict=True)]
    print_table(title, ["", *names], matrix)


def _show_metrics(figures: MetricsFile, title: str, names: Sequence[Name]) -> None:
    """Print the metrics of all test images; if some of them leak, also those of the leaked and the clean images."""
    parts = {"test": figures["test"]}
    if "test_leaked" in figures:
        parts = {"all": figures["test"], "leaked": figures["test_leaked"]}
    if "test_clean" in figures:
        parts["clean"] = figures["test_clean"]
    heads = [name if len(parts) == 1 else f"{name} {part['images']}" for name, part in parts.items()]
    columns = [column for head in heads for column in (head, INTERVAL)]
    rows = _metric_rows(list(parts.values()), names)
    if fits(["metric", *columns], rows):
        print_table(title, ["metric", *columns], rows)
        return
    for number, head in enumerate(heads):
        table = [[row[0], *row[1 + 2 * number : 3 + 2 * number]] for row in rows]
        print_table(title if number == 0 else "", ["metric", head, INTERVAL], table)


def _metric_rows(parts: Sequence[TestSummary], names: Sequence[Name]) -> list[list[str]]:
    """A row for each metric, with its value and interval in each part; accuracy is first.

    The second row is the accuracy of always predicting the class that has most images in the first part.
    """
    cells, titles = [_cells(part) for part in parts], titles_of(names)
    rows = [[titles[name], *(text for part in cells for text in part.get(name, ("", "")))] for name in names]
    counts = {name: metrics["images"] for name, metrics in parts[0]["per_class"].items()}
    largest = max(counts, key=lambda name: counts[name])
    shares = [part["per_class"][largest]["images"] / part["images"] for part in parts]
    rows.insert(1, [f"  always {largest}", *(text for share in shares for text in (f"{share:.3f}", ""))])
    return rows


def titles_of(names: Iterable[Name]) -> dict[Name, str]:
    """A unique title for each metric. Class names that would make two titles equal, such as `macro`, are quoted."""
    plain = {name: " ".join(_words(name)) for name in names}
    counts = Counter(plain.values())
    return {name: " ".join(_words(name, '"' * (counts[title] > 1))) for name, title in plain.items()}


def _words(name: Name, quote: str = "") -> list[str]:
    if name[0] == "per_class":
        return [f"{quote}{name[1]}{quote}", *(part.replace("_", " ") for part in name[2:])]
    return [part.replace("_", " ") for part in name]


def dotted(name: str) -> Name:
    """The parts of a metric's dotted name; the name of a class may contain dots itself."""
    first, *rest = name.split(".", 1)
    return (first, *rest[0].rsplit(".", 1)) if rest else (first,)


def _cells(part: TestSummary) -> dict[Name, tuple[str, str]]:
    """The value and the interval of each metric as text; "" for a missing interval."""
    intervals = edges(part["intervals"])
    return {name: (f"{value:.3f}", low_high(intervals.get(name))) for name, value in shown(part).items()}


def low_high(interval: Interval | None) -> str:
    """An interval as text, or "" if there is none."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def show_seeds(result: SeedsFile, *, everything: bool = False) -> None:
    """Print how much the seed alone changes each metric."""
    columns = ["metric", "mean", "deviation", "lowest", "highest"]
    found = once({dotted(name): metric for name, metric in result["metrics"].items()})
    names = _chosen(found, everything)
    titles = titles_of(names)
    rows = [[titles[name], *(f"{value:.3f}" for value in found[name].values())] for name in names]
    print_table(f"The same training with {len(result['seeds'])} seeds, on the same split", columns, rows)


def show_crossval(result: CrossvalResult, folder: Path, *, everything: bool = False) -> None:
    """Print a cross-validation: the pooled metrics, their spread over the folds, and the pooled confusion matrix."""
    pooled, count = result["pooled"], len(result["folds"])
    spread = {dotted(name): found for name, found in result["spread"].items()}
    names = [name for name in _chosen(shown(pooled), everything) if name in spread]
    more = [[f"{value:.3f}" for value in spread[name].values()] for name in names]
    more.insert(1, [""] * 4)
    rows = [row + cells for row, cells in zip(_metric_rows([pooled], names), more, strict=True)]
    print_text(f"{folder}: {pooled['images']} images in {pooled['groups']} groups of near-duplicates,")
    columns = ["metric", "pooled", INTERVAL, "mean", "sd", "low", "high"]
    print_table(f"each predicted by one of {count} models not trained on it; spread over the folds", columns, rows)
    show_matrix("Confusion matrix of all folds (rows: true class)", pooled)
    if result["repeats"]:
        accuracy = result["repeats"]["accuracy"]
        print_text(
            f"Over the repeats the pooled accuracy has mean {accuracy['mean']:.3f} and standard deviation "
            f"{accuracy['standard_deviation']:.3f}, from {accuracy['lowest']:.3f} to {accuracy['highest']:.3f}."
        )
    print_text(
        "The interval is for these images and these models; it does not cover the effect of other training images."
    )


def show_audit(found: AuditFile) -> None:
    """Print an audit in a few lines."""
    print_table(f"{found['folder']}: audit", ["what", "found"], summary(found))


def show_split(result: SplitResult, file: Path) -> None:
    """Print the numbers of images of each class, and of groups, in a split."""
    rows = [[label, *counts.values()] for label, counts in result["images"].items()]
    rows.append(["groups", *result["groups"].values()])
    print_table(f"{file}: images of each class, and groups", ["class", *result["groups"]], rows)
    print_text(
        f"{result['left_out']} images left out; {result['leaked']:.0%} of the test images have a twin in training."
    )


SHORT = {
    "number": "trial",
    "learning_rate": "lr",
    "weight_decay": "decay",
    "scheduler_patience": "patience",
    "val_accuracy": "val_acc",
    "seconds": "s",
}
# The columns of trials.csv that the printed table leaves out or shows in another form.
FOLDED = frozenset({"value", "val_macro_f1", "epochs_run", "best_epoch", "stop_reason"})
ENDS = {"early stopping": "stopped"}


def show_search(result: SearchResult, folder: Path, *, everything: bool = False) -> None:
    """Print a study: its trials, the importance of its parameters, and the best trial after its full training."""
    _show_trials(result, folder)
    if "best" not in result:
        return
    _show_audit_of_pruning(result["audit"])
    best = result["best"]
    if result["finalists"]:
        columns = ["trial", "mean", "deviation", "values"]
        rows = [
            [entry["trial"], entry["mean"], entry["standard_deviation"], ", ".join(f"{v:.4g}" for v in entry["values"])]
            for entry in result["finalists"]
        ]
        print_table(f"Finalists: best {result['metric']} of full trainings, one for each seed", columns, rows)
    confirmed = "confirmed by its mean over seeds" if result["finalists"] else "not confirmed with other seeds"
    before = next(trial["epochs_run"] for trial in result["trials"] if trial["number"] == best["trial"])
    trained = f", continued from epoch {before} to {best['epochs_run']}" if before != best["epochs_run"] else ""
    print_text(f"Best is trial {best['trial']}, {confirmed}{trained}.")
    show_run(best, folder / "best", everything=everything)
    _show_importances(result)


def _show_trials(result: SearchResult, folder: Path) -> None:
    trials, metric = result["trials"], result["metric"]
    kept = [name for name in trials[0] if name not in FOLDED and name != metric][2:]
    columns = ["trial", "state", metric, *(SHORT.get(name, name) for name in kept), "best at"]
    rows = [
        [
            trial["number"],
            ENDS.get(str(trial["stop_reason"]), str(trial["state"]).lower()),
            _short(trial["value"]),
            *(_short(trial[name]) for name in kept),
            f"{trial['best_epoch']}/{trial['epochs_run']}" if trial["epochs_run"] else "",
        ]
        for trial in trials
    ]
    title = f"{folder}: {len(trials)} trials, each by the best {metric} of its epochs; trials.csv has more columns"
    print_table(title, columns, rows, blocks=True)
    for trial in trials:
        if trial["state"] == "FAIL":
            print_text(f"Trial {trial['number']} failed: {trial['stop_reason']}")
    print_text(f"{folder} holds {result['disk_bytes'] / 1e6:,.0f} MB.")


def _short(value: object) -> object:
    """A float rounded to three significant digits. It stays a float, so that the table aligns it as a number."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _show_importances(result: SearchResult) -> None:
    if result["importances"]:
        rows = [[name, *(f"{value:.2f}" for value in found.values())] for name, found in result["importances"].items()]
        print_table(
            "Importance of each parameter (PED-ANOVA), over resamples", ["parameter", "share", "2.5 %", "97.5 %"], rows
        )
    for sentence in result["never_acted"]:
        print_text(sentence)


def show_verdict(verdict: VerdictFile, *, everything: bool = False) -> None:
    """Print the comparison of baseline and tuned model on the same test images."""
    _show_differences("Baseline against tuned, paired", verdict, ("baseline", "tuned"), everything)
    most = f"{100 * verdict['optimism_at_most']:.1f} points"
    by = f"at most {most}" if verdict["optimism"] is None else f"about {100 * verdict['optimism']:.1f}, at most {most}"
    print_text(
        f"Luck alone raises the validation accuracy of the best of {verdict['trials']} equally good trials by {by}; "
        "it does not raise the test accuracy."
    )


def show_nested(found: NestedFile, folder: Path, *, everything: bool = False) -> None:
    """Print a nested search: the choices of each fold, their agreement, and the verdict on the procedure."""
    names = list(found["agreement"])
    columns = ["fold", "trial", *(SHORT.get(name, name) for name in names), found["metric"], "baseline", "tuned"]
    rows = [
        [
            choice["fold"],
            choice["trial"],
            *(choice["params"][name] for name in names),
            choice["value"],
            f"{choice['baseline_accuracy']:.3f}",
            f"{choice['tuned_accuracy']:.3f}",
        ]
        for choice in found["choices"]
    ]
    print_table(f"{folder}: values that each fold's study chose, and the accuracy on the fold", columns, rows)
    for name, agreed in found["agreement"].items():
        print_text(
            f"{name.replace('_', ' ').capitalize()}: the choices spread over {agreed['spread']:.0%} of the range; "
            f"random values would spread over {agreed['by_chance']:.0%}."
        )
    own = sum(choice["trial"] == 0 for choice in found["choices"])
    print_text(f"In {own} of {len(rows)} folds the study chose the values of the baseline.")
    title = f"Baseline against the search procedure, paired on {found['images']} images in {found['groups']} groups"
    _show_differences(title, found, ("baseline", "tuned"), everything)
    print_text(found["sentence"])
    print_text(found["judged"])


def show_comparison(found: CompareResult, *, everything: bool = False) -> None:
    """Print the comparison of two runs, or of two cross-validations, on the same images."""
    title = (
        f"{found['first']} against {found['second']}, paired on {found['images']} images in {found['groups']} groups"
    )
    _show_differences(title, found, ("first", "second"), everything)
    smallest = found["detectable_difference"]
    if smallest is not None:
        print_text(f"Differences in accuracy above {100 * smallest:.1f} points could be seen here.")
    print_text(found["sentence"])


def _show_differences(title: str, found: Comparison, names: tuple[str, str], everything: bool) -> None:
    differences = once({dotted(name): metric for name, metric in found["differences"].items()})
    chosen = _chosen(differences, everything)
    titles = titles_of(chosen)
    rows = [
        [
            titles[name],
            *(f"{differences[name][key]:.3f}" for key in ("baseline", "tuned", "difference")),
            low_high(differences[name]["interval"]),
        ]
        for name in chosen
    ]
    print_table(title, ["metric", *names, "difference", INTERVAL], rows)
    print_text(
        f"{found['changed_to_right']} images changed to right, {found['changed_to_wrong']} to wrong. McNemar's exact "
        f"test gives {_p(found['mcnemar_p'])} with images as cases, and {_p(found['grouped_p'])} with groups of "
        "near-duplicates as cases."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _show_audit_of_pruning(audited: list[AuditedTrial] | None) -> None:
    if audited is None:
        return
    if not audited:
        print_text("No pruned trial could be continued, so the audit has no result.")
        return
    columns = ["trial", "pruned at", "value then", "final value", "regret"]
    print_table("Pruned trials, drawn at random and continued", columns, [entry.values() for entry in audited])
    lost = [entry["regret"] for entry in audited if entry["regret"]]
    print_text(
        f"{len(lost)} of {len(audited)} would have been better than the best trial; mean regret "
        f"{sum(lost) / len(audited):.4f}."
    )


def show_all(result: RunResult, *, everything: bool = False) -> None:
    """Print the result and the folder of each step of `run`. The caller prints the verdict last."""
    places = {name: Path(str(place)) for name, place in result["places"].items()}
    best = result["search"]["best"]
    show_run(result["baseline"], places["baseline"], everything=everything)
    show_search(result["search"], places["study"], everything=everything)
    show_certificate(result["export"], places["export"])
    _show_predictions(result["predictions"], list(result["baseline"]["test"]["per_class"]))
    trials = f"{len(result['search']['trials'])} trials, best is trial {best['trial']}"
    verified = f"verified on {result['export']['images']} test images"
    rows = [
        ["data", "images, as found", str(places["data"])],
        ["baseline", _figures(result["baseline"]), str(places["baseline"])],
        ["search", trials, str(places["study"])],
        ["best", _figures(best), str(places["study"] / "best")],
        ["export", verified, str(places["export"] / "model.onnx")],
        ["report", "all results on one page", str(places["report"])],
    ]
    print_table("Done", ["step", "result", "where"], rows)


def _show_predictions(entries: Sequence[PredictionEntry], classes: list[str]) -> None:
    predictions = [
        Prediction(
            entry["path"],
            entry.get("predicted", ""),
            tuple(entry.get("probabilities", {}).values()),
            entry.get("malignant", entry.get("positive")),
            entry.get("warning", ""),
            entry.get("error", ""),
        )
        for entry in entries
    ]
    flag = next((word for word in ("malignant", "positive") for entry in entries if word in entry), "")
    for line in table(predictions, classes, flag=flag):
        print_line(line)


def _figures(figures: MetricsFile) -> str:
    value, interval = _cells(figures["test"]).get(("accuracy",), ("undefined", ""))
    return f"test accuracy {value}" + (f" ({interval})" if interval else "")
