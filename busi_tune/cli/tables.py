"""Results as tables."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from busi_tune.cli.export_tables import show_certificate
from busi_tune.cli.prediction_formats import table
from busi_tune.cli.screen import print_line, print_table
from busi_tune.evaluation.metrics import Name, edges, missing_intervals, shown
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


def show_run(figures: MetricsFile, folder: Path) -> None:
    """A finished run: its metrics on the test split with their intervals, and the confusion matrix."""
    test = figures["test"]
    kept = f"epoch {figures['best_epoch']} of {figures['epochs_run']} kept; {figures['stop_reason']}"
    title = f"{folder}: test accuracy {test['accuracy']:.4f} on {test['images']} images in {test['groups']} groups"
    _show_metrics(figures, f"{title} ({kept})")
    if "positive" in test:
        print_line(f"Positive is {test['positive']}.")
    for sentence in missing_intervals(test):
        print_line(sentence)
    _show_matrix("Confusion matrix (rows: true class)", test)
    prior = ", ".join(f"{name} {share:.2f}" for name, share in figures["effective_prior"].items())
    print_line(f"Sampler and class weights together train for about these class shares: {prior}.")
    print_line("The loss is divided by each batch's sum of weights, which moves the shares a little.")
    if figures["leaked_test_images"]:
        print_line(f"{figures['leaked_test_images']:.0%} of the test images have a near-duplicate in training.")


def _show_matrix(title: str, part: TestSummary) -> None:
    names = list(part["per_class"])
    matrix = [[name, *counts] for name, counts in zip(names, part["confusion_matrix"], strict=True)]
    print_table(title, ["", *names], matrix)


def _show_metrics(figures: MetricsFile, title: str) -> None:
    """The metrics of all test images, and where some of them leak, of these and of the others."""
    every = _cells(figures["test"])
    titles = _titles(every)
    if "test_leaked" not in figures:
        print_table(title, ["metric", "test", INTERVAL], [[titles[name], *every[name]] for name in every])
        return
    parts = {"all": figures["test"], "leaked": figures["test_leaked"]}
    if "test_clean" in figures:
        parts["clean"] = figures["test_clean"]
    heads = [f"{name} {part['images']}" for name, part in parts.items()]
    cells = [_cells(part) for part in parts.values()]
    rows = [[titles[name], *(text for part in cells for text in part.get(name, ("", "")))] for name in every]
    print_table(title, ["metric", *(column for head in heads for column in (head, INTERVAL))], rows)


def _titles(names: Iterable[Name]) -> dict[Name, str]:
    """Metrics by titles that differ: a class whose name makes two of them equal, as `macro` does, is quoted."""
    plain = {name: " ".join(_words(name)) for name in names}
    counts = Counter(plain.values())
    return {name: " ".join(_words(name, '"' * (counts[title] > 1))) for name, title in plain.items()}


def _words(name: Name, quote: str = "") -> list[str]:
    if name[0] == "per_class":
        return [f"{quote}{name[1]}{quote}", *(part.replace("_", " ") for part in name[2:])]
    return [part.replace("_", " ") for part in name]


def _dotted(name: str) -> Name:
    """The parts of a metric's name; a class may have a dot in its own."""
    first, *rest = name.split(".", 1)
    return (first, *rest[0].rsplit(".", 1)) if rest else (first,)


def _cells(part: TestSummary) -> dict[Name, tuple[str, str]]:
    """Each metric's value and its interval, as text; nothing where there is none."""
    intervals = edges(part["intervals"])
    return {name: (f"{value:.3f}", _low_high(intervals.get(name))) for name, value in shown(part).items()}


def _low_high(interval: Interval | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def show_seeds(result: SeedsFile) -> None:
    """How much of each metric the seed alone changes."""
    columns = ["metric", "mean", "standard deviation", "lowest", "highest"]
    titles = _titles(map(_dotted, result["metrics"]))
    rows = [
        [titles[_dotted(name)], *(f"{value:.3f}" for value in found.values())]
        for name, found in result["metrics"].items()
    ]
    print_table(f"The same training with {len(result['seeds'])} seeds, on the same split", columns, rows)


def show_crossval(result: CrossvalResult, folder: Path) -> None:
    """A cross-validation: the pooled metrics beside their spread over the folds, and the pooled confusion matrix."""
    pooled, count = result["pooled"], len(result["folds"])
    cells = _cells(pooled)
    titles = _titles(cells)
    rows = []
    for name, found in result["spread"].items():
        metric = _dotted(name)
        if metric in cells:
            spread = [f"{found[key]:.3f}" for key in ("mean", "standard_deviation", "lowest", "highest")]
            rows.append([titles[metric], *cells[metric], *spread])
    title = f"{folder}: accuracy {pooled['accuracy']:.4f} on {pooled['images']} images in {pooled['groups']} groups"
    columns = ["metric", "pooled", INTERVAL, "mean of folds", "deviation", "lowest", "highest"]
    print_table(f"{title}, each answered by one of {count} models that had not seen it", columns, rows)
    _show_matrix("Confusion matrix of all folds (rows: true class)", pooled)
    if result["repeats"]:
        accuracy = result["repeats"]["accuracy"]
        print_line(
            f"Over the partitions the pooled accuracy has mean {accuracy['mean']:.3f} and standard deviation "
            f"{accuracy['standard_deviation']:.3f}, from {accuracy['lowest']:.3f} to {accuracy['highest']:.3f}."
        )
    print_line(
        "The interval is for these images and these models; it does not cover what other training images would change."
    )


def show_audit(found: AuditFile, folder: Path) -> None:
    """An audit in a few lines."""
    print_table(f"{found['folder']}: audit", ["what", "found"], summary(found))
    print_line(f"{folder / 'audit.html'} shows the groups as pictures; {folder / 'audit.json'} holds everything.")


def show_split(result: SplitResult, file: Path) -> None:
    """A split in numbers: images of each class, and groups."""
    rows = [[label, *counts.values()] for label, counts in result["images"].items()]
    rows.append(["groups", *result["groups"].values()])
    print_table(f"{file}: images a class, and groups", ["class", *result["groups"]], rows)
    print_line(
        f"{result['left_out']} images left out; {result['leaked']:.0%} of the test images have a twin in training."
    )


SHORT = {
    "number": "trial",
    "learning_rate": "lr",
    "weight_decay": "decay",
    "scheduler_patience": "patience",
    "epochs_run": "epochs",
    "best_epoch": "best at",
    "stop_reason": "why it ended",
}


def show_search(result: SearchResult, folder: Path) -> None:
    """A study: its trials, the importance of its parameters, and the best trial after its full training."""
    trials = result["trials"]
    columns = [SHORT.get(name, name) for name in trials[0]]
    title = f"{folder}: {len(trials)} trials; value is the best {result['metric']}"
    print_table(title, columns, [trial.values() for trial in trials])
    print_line(f"{folder} holds {result['disk_bytes'] / 1e6:,.0f} MB.")
    if "best" not in result:
        return
    _show_audit_of_pruning(result["audit"])
    best = result["best"]
    if result["finalists"]:
        columns = ["trial", "mean", "standard deviation", "values"]
        rows = [
            [entry["trial"], entry["mean"], entry["standard_deviation"], ", ".join(f"{v:.4f}" for v in entry["values"])]
            for entry in result["finalists"]
        ]
        print_table(f"Finalists: best {result['metric']} of full trainings, a seed each", columns, rows)
    confirmed = "confirmed by its mean over seeds" if result["finalists"] else "not confirmed with other seeds"
    print_line(f"Best is trial {best['trial']}, {confirmed}; trained on to its end:")
    show_run(best, folder / "best")
    _show_importances(result)
    if result["verdict"] is not None:
        show_verdict(result["verdict"])


def _show_importances(result: SearchResult) -> None:
    if result["importances"]:
        rows = [[name, *(f"{value:.2f}" for value in found.values())] for name, found in result["importances"].items()]
        print_table(
            "Importance of each parameter (PED-ANOVA), over resamples", ["parameter", "share", "2.5 %", "97.5 %"], rows
        )
    for sentence in result["never_acted"]:
        print_line(sentence)


def show_verdict(verdict: VerdictFile) -> None:
    """Baseline against tuned, on the same test images."""
    _show_differences("Baseline against tuned, paired", verdict, ("baseline", "tuned"))
    expected = "" if verdict["optimism"] is None else f"some {100 * verdict['optimism']:.1f} points, "
    print_line(
        f"The best of {verdict['trials']} equally good trials would look better in validation accuracy than it is, by "
        f"{expected}{100 * verdict['optimism_at_most']:.1f} points at most."
    )
    print_line(verdict["sentence"])


def show_nested(found: NestedFile, folder: Path) -> None:
    """A nested search: what each fold chose, how much the choices agree, and the verdict on the procedure."""
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
    print_table(f"{folder}: what each fold's study chose, and the accuracy on the fold itself", columns, rows)
    for name, agreed in found["agreement"].items():
        print_line(
            f"{name.replace('_', ' ').capitalize()}: the choices spread over {agreed['spread']:.0%} of the range; "
            f"drawn at random they would over {agreed['by_chance']:.0%}."
        )
    own = sum(choice["trial"] == 0 for choice in found["choices"])
    print_line(f"In {own} of {len(rows)} folds the study chose the baseline's own values.")
    title = f"Baseline against the search procedure, paired on {found['images']} images in {found['groups']} groups"
    _show_differences(title, found, ("baseline", "tuned"))
    print_line(found["sentence"])
    print_line(found["judged"])


def show_comparison(found: CompareResult) -> None:
    """Two runs, or two cross-validations, on the same images."""
    title = (
        f"{found['first']} against {found['second']}, paired on {found['images']} images in {found['groups']} groups"
    )
    _show_differences(title, found, ("first", "second"))
    smallest = found["detectable_difference"]
    if smallest is not None:
        print_line(f"Differences in accuracy above {100 * smallest:.1f} points could be seen here.")
    print_line(found["sentence"])


def _show_differences(title: str, found: Comparison, names: tuple[str, str]) -> None:
    titles = _titles(map(_dotted, found["differences"]))
    rows = [
        [
            titles[_dotted(name)],
            *(f"{metric[key]:.3f}" for key in ("baseline", "tuned", "difference")),
            _low_high(metric["interval"]),
        ]
        for name, metric in found["differences"].items()
        if name != "balanced_accuracy" or "macro_recall" not in found["differences"]
    ]
    print_table(title, ["metric", *names, "difference", INTERVAL], rows)
    print_line(
        f"{found['changed_to_right']} images changed to right, {found['changed_to_wrong']} to wrong; "
        f"McNemar's exact {_p(found['mcnemar_p'])}, by groups {_p(found['grouped_p'])}."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _show_audit_of_pruning(audited: list[AuditedTrial] | None) -> None:
    if audited is None:
        return
    if not audited:
        print_line("No pruned trial could be trained on: the audit has nothing to say.")
        return
    columns = ["trial", "pruned at", "value then", "value at its end", "regret"]
    print_table("Pruned trials, drawn at random and trained on", columns, [entry.values() for entry in audited])
    lost = [entry["regret"] for entry in audited if entry["regret"]]
    print_line(
        f"{len(lost)} of {len(audited)} would have been better than the best; mean regret "
        f"{sum(lost) / len(audited):.4f}."
    )


def show_all(result: RunResult) -> None:
    """Each step of `run`: its result and its folder."""
    places = {name: Path(str(place)) for name, place in result["places"].items()}
    best = result["search"]["best"]
    show_search(result["search"], places["study"])
    show_certificate(result["export"], places["export"])
    _show_predictions(result["predictions"], list(result["baseline"]["test"]["per_class"]))
    trials = f"{len(result['search']['trials'])} trials, best is trial {best['trial']}"
    verified = f"verified on {result['export']['images']} test images"
    rows = [
        ["data", "images, as found", str(places["data"])],
        ["baseline", _figures(result["baseline"]), str(places["baseline"])],
        ["search", trials, str(places["study"])],
        ["best, retrained", _figures(best), str(places["study"] / "best")],
        ["export", verified, str(places["export"] / "model.onnx")],
    ]
    print_table("Done", ["step", "result", "where"], rows)


def _show_predictions(entries: Sequence[PredictionEntry], classes: list[str]) -> None:
    predictions = [
        Prediction(
            entry["path"],
            entry.get("class", ""),
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
    cells = _cells(figures["test"])
    (accuracy, interval), (f1, _) = (cells.get((name,), ("undefined", "")) for name in ("accuracy", "macro_f1"))
    return f"test accuracy {accuracy}{interval and f' ({interval})'}, macro F1 {f1}"
