"""Result files and `--json` outputs of every command, validated with the JSON Schemas in docs/reference/schemas."""

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import schemas
from busi_tune import results
from busi_tune.cli import exit_code
from busi_tune.inference.certificate import VERIFICATION

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
STUDY = [*SMALL, "--epochs", "2", "--trials", "2", "--trial-epochs", "1", "--confirm", "1", "--confirm-seeds", "2"]
EXPORT = ["--sensitivity", "0.8", "--float16", "--max-drop", "0.5"]
# Commands in order; DATA stands for the image folder, and each output goes to `outputs/NAME`.
COMMANDS = {
    "baseline.json": ["baseline", "--out", "run", *SMALL, "--epochs", "2", "--seeds", "2", "--data", "DATA", "--json"],
    "audit.json": ["data", "audit", "--data", "DATA", "--out", "audit", "--json"],
    "split.json": ["data", "split", "--data", "DATA", "--out", "split.csv", "--json"],
    "plan.json": ["baseline", "--out", "planned", *SMALL, "--epochs", "2", "--data", "DATA", "--dry-run", "--json"],
    "run.json": ["run", *STUDY, *EXPORT, "--data", "DATA", "--json"],
    "search.json": ["search", *STUDY, "--data", "DATA", "--json"],
    "crossval.json": ["crossval", *SMALL, "--epochs", "1", "--folds", "2", "--data", "DATA", "--json"],
    "nested.json": [
        *("search", *SMALL, "--epochs", "1", "--trials", "1", "--folds", "2", "--out", "studies/nested"),
        *("--baseline", "studies/crossval", "--data", "DATA", "--json"),
    ],
    "compare.json": ["compare", "studies/tuned/best", "studies/tuned/trials/0000", "--json"],
    "export.json": ["export", "studies/tuned/best", "--out", "exports/tuned", *EXPORT, "--json"],
    "verify.json": ["verify", "exports/tuned", "--json"],
    "verify-again.json": ["verify", "exports/tuned", "--data", "DATA", "--json"],
    "evaluate.json": [
        *("evaluate", "exports/tuned", "--data", "DATA", "--training-data", "DATA", "--out", "evaluation", "--json"),
        "--leave-out-conflicts",
    ],
    "report.json": ["report", "studies/tuned", "--export", "exports/tuned", "--json"],
    "predict.json": ["predict", "exports/tuned", "DATA/benign", "broken.png", "--json", "--min-confidence", "0.5"],
    "predict.jsonl": ["predict", "exports/tuned", "DATA/benign", "broken.png", "--jsonl", "--min-confidence", "0.5"],
}
# The name of a schema, and a document that it must accept.
DOCUMENTS = [
    ("config", "run/config.json"),
    ("state", "run/state.json"),
    ("data", "run/data.json"),
    ("metrics", "run/metrics.json"),
    ("seeds", "run/seeds.json"),
    ("metrics", "run/seeds/1/metrics.json"),
    ("audit", "audit/audit.json"),
    ("config", "studies/tuned/trials/0001/config.json"),
    ("state", "studies/tuned/trials/0001/state.json"),
    ("metrics", "studies/tuned/best/metrics.json"),
    ("study", "studies/tuned/study.json"),
    ("verdict", "studies/tuned/verdict.json"),
    ("outcome", "studies/tuned/outcome.json"),
    ("report", "studies/tuned/report.json"),
    ("report", "outputs/report.json"),
    ("crossval", "studies/crossval/crossval.json"),
    ("pooled", "studies/crossval/pooled.json"),
    ("crossval-result", "outputs/crossval.json"),
    ("nested", "studies/nested/nested.json"),
    ("nested-verdict", "studies/nested/nested_verdict.json"),
    ("nested-verdict", "outputs/nested.json"),
    ("compare", "outputs/compare.json"),
    ("evaluation", "evaluation/evaluation.json"),
    ("evaluation", "outputs/evaluate.json"),
    ("labels", "exports/tuned/labels.json"),
    ("verification", "exports/tuned/verification.json"),
    ("baseline", "outputs/baseline.json"),
    ("metrics", "outputs/baseline.json"),
    ("audit", "outputs/audit.json"),
    ("split", "outputs/split.json"),
    ("options", "run/options.json"),
    ("plan", "outputs/plan.json"),
    ("run", "outputs/run.json"),
    ("search", "outputs/search.json"),
    ("verification", "outputs/export.json"),
    ("verification", "outputs/verify.json"),
    ("verification", "outputs/verify-again.json"),
]
# The schema of each JSON file that a result folder may hold.
FILES = {
    results.IDENTITY: "config",
    results.CROSSVAL: "crossval",
    results.POOLED: "pooled",
    results.NESTED: "nested",
    results.NESTED_VERDICT: "nested-verdict",
    results.STATE: "state",
    results.SOURCE: "data",
    results.OPTIONS: "options",
    results.METRICS: "metrics",
    results.SEEDS: "seeds",
    results.AUDIT: "audit",
    results.VERDICT: "verdict",
    results.OUTCOME: "outcome",
    results.REPORT: "report",
    "study.json": "study",
    results.LABELS: "labels",
    VERIFICATION: "verification",
    results.EVALUATION: "evaluation",
}


@pytest.fixture(scope="module")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the result files and outputs of `COMMANDS`."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "outputs").mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, arguments in COMMANDS.items():
            with Path("outputs", name).open("w") as output:
                patch.setattr(sys, "stdout", output)
                code = exit_code([part.replace("DATA", str(phantoms)) for part in arguments])
            assert code == ("broken.png" in arguments), arguments
    return folder


def validator(name: str) -> Draft202012Validator:
    """The validator of the stored schema of this name."""
    schema = json.loads((schemas.FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "document"), DOCUMENTS)
def test_a_real_document_agrees_with_its_schema(schema: str, document: str, place: Path) -> None:
    validator(schema).validate(json.loads((place / document).read_text()))


@pytest.mark.slow
def test_every_json_file_of_every_result_agrees_with_its_schema(place: Path) -> None:
    validators, found = {name: validator(schema) for name, schema in FILES.items()}, set()
    for folder in ("run", "audit", "studies", "exports", "evaluation"):
        for path in (place / folder).rglob("*.json"):
            validators[path.name].validate(json.loads(path.read_text()))
            found.add(path.name)
    assert found == set(FILES)


@pytest.mark.slow
def test_the_result_of_run_is_made_of_the_results_of_its_steps(place: Path) -> None:
    whole, *parts = (
        json.loads((place / "outputs" / f"{name}.json").read_text()) for name in ("run", "search", "export")
    )
    # These commands print the stored certificate and trials; only disk use is measured again.
    assert [whole["search"] | {"disk_bytes": 0}, whole["export"]] == [parts[0] | {"disk_bytes": 0}, parts[1]]
    for entry in whole["predictions"]:
        validator("prediction").validate(entry)


@pytest.mark.slow
def test_runs_cross_validations_and_exports_hold_the_risk_coverage_curve(place: Path) -> None:
    metrics, pooled, certificate = (
        json.loads((place / name).read_text())
        for name in ("run/metrics.json", "studies/crossval/pooled.json", "exports/tuned/verification.json")
    )
    for part in (metrics["validation"], metrics["test"], pooled["pooled"], certificate["test"]):
        assert part["risk_coverage"][-1]["coverage"] == 1
        assert part["risk_coverage"][-1]["error"] == pytest.approx(1 - part["accuracy"])
        assert 0 <= part["aurc"] <= 1
    assert metrics["test"]["intervals"]["aurc"]
    assert pooled["pooled"]["intervals"]["aurc"]
    assert certificate["validation_risk_coverage"][-1]["images"] == metrics["validation"]["images"]


@pytest.mark.slow
def test_predictions_and_their_errors_agree_with_their_schemas(place: Path) -> None:
    *answers, broken = listed = json.loads((place / "outputs/predict.json").read_text())
    lines = [json.loads(line) for line in (place / "outputs/predict.jsonl").read_text().splitlines()]
    assert lines == listed
    assert len(answers) > 20
    assert {"schema", "predicted", "probabilities", "malignant", "refer"} <= set(answers[0])
    assert set(broken) == {"schema", "path", "error"}
    validator("predictions").validate(listed)
    for entry in lines:
        validator("prediction").validate(entry)
        for wrong in (
            {key: value for key, value in entry.items() if key != "path"},
            {**entry, "probabilities": "high"},
        ):
            assert not validator("prediction").is_valid(wrong)
            assert not validator("predictions").is_valid([wrong])


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "document"), DOCUMENTS)
def test_a_schema_refuses_another_version_and_a_missing_key(schema: str, document: str, place: Path) -> None:
    value = json.loads((place / document).read_text())
    version = value["schema"] + "0"
    for wrong in ({**value, "schema": version}, {key: value[key] for key in value if key != "schema"}):
        # The schema of `baseline` does not fix a version.
        assert (schema == "baseline" and "schema" in wrong) or not validator(schema).is_valid(wrong)


def test_the_stored_schemas_are_those_of_the_types() -> None:
    stored = {path.stem: path.read_text() for path in schemas.FOLDER.iterdir()}
    assert stored == schemas.texts(), "The types have changed; run make reference."


def test_the_page_names_every_schema_and_every_file() -> None:
    page = schemas.FOLDER.with_name("files.md").read_text()
    for name in schemas.texts():
        assert f"[{name}](schemas/{name}.json)" in page
    for name in FILES:
        assert f"| `{name}` |" in page


def test_every_document_with_a_schema_has_a_version() -> None:
    documents = {
        kind
        for kind in vars(results).values()
        if isinstance(kind, type) and "schema" in getattr(kind, "__annotations__", {})
    }
    assert documents == set(schemas.VERSIONS)
