"""The model card: its values equal the measured ones, and its text is well-formed."""

import csv
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import ModelCardData, model_index_to_eval_results
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from busi_tune import files, pipeline, results
from busi_tune.config import Config
from busi_tune.evaluation.metrics import Answers, numbers
from busi_tune.evaluation.verdict import compare
from busi_tune.export.parity import Reference
from busi_tune.export.usefulness import warnings_about
from busi_tune.export_options import ExportOptions
from busi_tune.progress import Silent
from busi_tune.report.card import model_card
from busi_tune.results import SCHEMAS, MetricsFile, VerdictFile, VerificationFile
from exported import Exported, linked

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]
Tables = list[list[list[str]]]


@pytest.fixture(scope="module")
def card(exported: Exported) -> str:
    return (exported.folder / "README.md").read_text()


def body(card: str) -> str:
    """The card without the metadata before it."""
    return card.split("\n---\n", 1)[1]


def sections(card: str) -> dict[str, tuple[str, Tables]]:
    """The text and the tables under each second-level heading, from a Markdown parser.

    A table is a list of rows, the header row first.
    """
    found: dict[str, tuple[str, Tables]] = {}
    heading, inside, tables = "", "", Tables()
    for token, after in pairwise([*MarkdownIt("commonmark").enable("table").parse(body(card)), None]):
        assert token is not None
        kind = token.type
        if kind == "heading_open" and after:
            heading, inside = after.content, ""
            tables = []
        elif kind == "table_open":
            tables.append([])
        elif kind == "tr_open":
            tables[-1].append([])
        elif kind in ("th_open", "td_open"):
            tables[-1][-1].append(after.content if after else "")
        elif kind == "inline":
            inside += token.content + "\n"
        found[heading] = inside.replace("\n", " "), tables
    return found


def figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def interval(edges: list[float] | None) -> str:
    return f"{edges[0]:.3f} to {edges[1]:.3f}" if edges else "none"


def card_of(run: Path, certificate: VerificationFile) -> dict[str, tuple[str, Tables]]:
    return sections(model_card(run, certificate))


def test_what_the_card_says_of_the_test_split(exported: Exported, card: str) -> None:
    text, (metrics, confusion) = sections(card)["Figures"]
    figures = results.read(exported.run / "metrics.json", MetricsFile)["test"]
    said = {row[0]: row[1:] for row in metrics}
    # Metrics independent of the temperature are in two files: those of the run, and those of the certificate.
    for test in (figures, exported.certificate["test"]):
        spread = test["intervals"]
        assert said["accuracy"] == [figure(test["accuracy"]), interval(spread["accuracy"])]
        assert said["macro F1"] == [figure(test["macro_f1"]), interval(spread["macro_f1"])]
        for name in ("benign", "malignant", "normal"):
            recall = test["per_class"][name]["recall"], spread["per_class"][name]["recall"]
            assert said[f"{name} recall"] == [figure(recall[0]), interval(recall[1])]
        assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == test["confusion_matrix"]
    # Metrics that depend on the temperature are those of the exported model.
    assert said["Brier score"][0] == figure(exported.certificate["calibration"]["test"]["after"]["brier"])
    # Balanced accuracy has no row of its own, because it equals macro recall.
    assert len(metrics) == len(numbers(test))
    assert "No interval of log loss: it has no upper bound" in text
    assert f"those on the {figures['images']} test images, in {figures['groups']} groups" in text
    assert "None of these images has a near-duplicate in the training split." in text


def test_the_hub_reads_the_metadata_of_the_card(exported: Exported, tiny: Config, card: str) -> None:
    """The parser is that of Hugging Face; it raises for a wrong model-index."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.pipeline_tag) == ("other", "onnx", "image-classification")
    assert {"onnx", "breast-ultrasound", tiny.arch} <= set(data.tags or [])
    metadata = metadata_load(exported.folder / "README.md")
    assert metadata is not None
    name, evaluation = model_index_to_eval_results(metadata["model-index"])
    assert name == data.model_name == f"{tiny.arch}-{tiny.image_size}"
    assert evaluation == data.eval_results
    assert {(each.task_type, each.dataset_split) for each in evaluation} == {("image-classification", "test")}
    found = {each.metric_name: (each.metric_type, each.metric_value) for each in evaluation}
    test = exported.certificate["test"]
    expected = {
        "accuracy": ("accuracy", test["accuracy"]),
        "macro F1": ("f1", test["macro_f1"]),
        "macro ROC AUC": ("roc_auc", test["macro_roc_auc"]),
        "Brier score": ("brier_score", test["brier"]),
        "sensitivity for the disease": ("recall", test["malignant_vs_rest"]["sensitivity"]),
        "specificity for the disease": ("specificity", test["malignant_vs_rest"]["specificity"]),
    }
    assert {name: found[name][0] for name in expected} == {name: type_ for name, (type_, _) in expected.items()}
    assert {name: found[name][1] for name in expected} == pytest.approx(
        {name: value for name, (_, value) in expected.items()}, abs=1e-6
    )


def test_what_the_card_says_of_probabilities_guard_and_verification(exported: Exported, card: str) -> None:
    found, certificate = sections(card), exported.certificate
    text, (calibration,) = found["Probabilities"]
    assert figure(certificate["temperature"]) in text
    figures = certificate["calibration"]["test"]
    assert [row[1:] for row in calibration[1:]] == [
        [figure(figures["before"][name]), figure(figures["after"][name])]
        for name in ("brier", "log_loss", "calibration_error")
    ]
    _, (scores, rates) = found["Input guard"]
    assert [(row[0], row[2]) for row in scores[1:]] == [
        (score["name"], score["warning"]) for score in certificate["guard"]["scores"]
    ]
    assert dict(rates[1:]) == {kind: figure(share) for kind, share in certificate["guard"]["test"].items()}
    text, _ = found["What was verified"]
    assert f"on {certificate['images']} test images, read from their files, and on a few of them in 8 other" in text
    assert f"{certificate['max_error']:.2e}" in text
    assert "Operating point" not in found
    assert "Smaller models" not in found


def test_what_the_card_says_of_data_licence_and_limits(exported: Exported, card: str) -> None:
    text, (table,) = sections(card)["Data"]
    rows: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter(), "test": Counter()}
    groups: dict[str, set[str]] = {name: set() for name in rows}
    with (exported.run / "split.csv").open() as file:
        for row in csv.DictReader(file):
            rows[row["split"]][row["class"]] += 1
            groups[row["split"]].add(row["group"])
    classes = table[0][1:-1]
    assert table[1:] == [
        [part, *(str(count[name]) for name in classes), str(len(groups[part]))] for part, count in rows.items()
    ]
    with (exported.run / "split.excluded.csv").open() as file:
        assert f"Images left out: {len(list(csv.DictReader(file)))} (" in text
    assert f"`{exported.certificate['split'][:16]}`" in text
    licence, _ = sections(card)["Licence"]
    # The licence asks for credit, a link, and the changes.
    for asked in (
        "W. Al-Dhabyani",
        "10.1016/j.dib.2019.104863",
        "creativecommons.org/licenses/by/4.0",
        "was trained on part",
    ):
        assert asked in licence
    assert "whose owners decide on their licence" in licence
    assert "Other machines, operators and patients differ" in sections(card)["Limits"][0]
    assert "not a medical device" in card


def test_the_card_reads_well(card: str) -> None:
    prose = re.sub(r"```.*?```", "", body(card), flags=re.DOTALL)
    assert not [line for line in card.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert "\n\n\n" not in card
    assert card.endswith(".\n")
    # Typical errors of a template: a missing or an extra space.
    assert not re.findall(r"[^|]  |\w [.,;:]\s|[a-z][.,;][A-Za-z ]{0}[A-Z]", prose)
    for text, tables in sections(card).values():
        assert text
        assert "|" not in text
        for table in tables:
            assert len({len(row) for row in table}) == 1
            assert len(table) > 1


def test_the_verdict_of_the_study(exported: Exported, tmp_path: Path) -> None:
    best = linked(exported.run, tmp_path / "study" / "best")
    assert "Against the baseline" not in model_card(best, exported.certificate)
    labels = np.arange(60) % 3
    wrong = Answers(labels, np.eye(3)[(labels + 1) % 3], ("benign", "malignant", "normal"))
    right = Answers(labels, np.eye(3)[labels], wrong.classes)
    verdict: VerdictFile = {
        "schema": SCHEMAS[VerdictFile],
        **compare(wrong, right, np.arange(60)),
        "trials": 20,
        "optimism": None,
        "optimism_at_most": 0.1,
    }
    files.write_json(tmp_path / "study" / "verdict.json", verdict)
    text, _ = card_of(best, exported.certificate)["Figures"]
    assert f"Against the baseline of its study: {verdict['sentence']}" in text
    other = linked(exported.run, tmp_path / "study" / "other")
    assert "Against the baseline" not in model_card(other, exported.certificate)


def test_an_operating_point_and_a_smaller_model(exported: Exported, tmp_path: Path) -> None:
    asked = ExportOptions(sensitivity=0.8, float16=True, max_drop=0.5)
    certificate = pipeline.export(exported.run, tmp_path / "export", exported.data, Silent(), options=asked)
    found = sections((tmp_path / "export" / "README.md").read_text())
    point = certificate["operating_point"]
    text, (table,) = found["Operating point"]
    assert f"its probability of malignant is at least {point['threshold']:.4f}" in text
    assert f"{point['missed']} of {point['cases']} malignant cases are below it" in text
    assert "The same images chose the checkpoint, so this promises nothing for new cases." in text
    assert point["claim"]["sentence"] in text
    test = point["test"]
    assert table[1:] == [
        [name, figure(at["value"]), interval(at["interval"]), str(at["images"])]
        for name, at in (("sensitivity", test["sensitivity"]), ("specificity", test["specificity"]))
    ]
    small = certificate["models"]["model.float16.onnx"]
    text, _ = found["Smaller models"]
    assert f"`model.float16.onnx` ({small['bytes'] / 1e6:.1f} MB)" in text
    assert f"{100 * small['agreement']:.1f} % of the images" in text
    assert f"accuracy of {small['test']['accuracy']:.3f}" in text
    assert f"{small['latency_ms']['float16']:.1f} ms" in text
    assert f"{small['operating_point']['threshold']:.4f}" in text


def test_a_split_that_leaks(exported: Exported, tiny: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipeline.baseline(exported.data, run, tiny.replace(strategy="random", epochs=1), Silent())
    figures = results.read(run / "metrics.json", MetricsFile)
    assert 0 < figures["leaked_test_images"] < 1
    found = card_of(run, exported.certificate)
    assert (
        f"{100 * figures['leaked_test_images']:.0f} % of them have a near-duplicate in the training"
        in found["Figures"][0]
    )
    assert f"accuracy on the other {figures['test_clean']['images']} is" in found["Figures"][0]
    assert "The split is random" in found["Data"][0]


def test_names_from_outside_are_text_in_the_card(exported: Exported, tmp_path: Path) -> None:
    """A class name must not act as HTML in a browser that shows the card."""
    name = "<img src=x onerror=alert(1)>"
    run = linked(exported.run, tmp_path / "run")
    identity = json.loads((run / "config.json").read_text())
    del identity["sha256"]
    identity["classes"] = [name, *identity["classes"][1:]]
    (run / "config.json").unlink()
    results.write(run / "config.json", identity)
    split = (run / "split.csv").read_text().replace(",benign,", f",{name},")
    (run / "split.csv").unlink()
    (run / "split.csv").write_text(split)
    card = model_card(run, exported.certificate)
    assert "<img" not in card
    assert body(card).startswith("# Breast ultrasound: &lt;img src=x onerror=alert(1)&gt;, malignant")


def test_the_card_of_a_refused_export_names_no_file_that_is_not_there(exported: Exported) -> None:
    certificate: Any = {**exported.certificate, "passed": False}
    certificate["models"] = {
        name: {**entry, "passed": False, "reasons": ["a logit is off by <b>"]}
        for name, entry in exported.certificate["models"].items()
    }
    card = model_card(exported.run, certificate)
    assert "did not pass its verification, so this folder holds no model" in card
    assert "- `model.onnx`: a logit is off by &lt;b&gt;" in card
    named = {name for name in re.findall(r"`([^`]+\.\w+)`", card) if not name.endswith(".onnx")}
    assert named == {"verification.json", "predictions.csv"}


def test_a_network_of_no_use_is_called_so(exported: Exported) -> None:
    certificate: VerificationFile = {
        **exported.certificate,
        "warnings": ["The network predicts benign for all images."],
    }
    card = model_card(exported.run, certificate)
    assert "**This network is useless.**" in card
    assert "- The network predicts benign for all images." in card
    assert f"{certificate['max_error']:.2e}" not in card


def test_warnings_about_networks_of_no_use() -> None:
    classes = ("benign", "malignant")
    useful = np.array([[0.0, 1.0], [1.0, 0.0]])

    def about(logits: NDArray[np.float64], temperature: float = 1.0, error: float = 1e-6) -> list[str]:
        reference = Reference(logits, error, 0.0, logits, 0.0, [[1, 0], [0, 1]])
        return warnings_about(temperature, reference, classes)

    assert about(useful) == []
    assert ["ran into its bound of 20" in text for text in about(useful, temperature=20.0)] == [True]
    assert ["ran into its bound of 0.05" in text for text in about(useful, temperature=0.05)] == [True]
    assert about(np.array([[0.0, 1.0], [0.2, 1.0]])) == ["The network predicts malignant for all 2 test images."]
    assert ["do not depend on the image" in text for text in about(np.zeros((2, 2)), error=0.0)] == [True]
    assert ["are so large that rounding" in text for text in about(useful * 1e10, error=4780.0)] == [True]
    assert "no numbers at all" in about(useful, error=float("nan"))[-1]
