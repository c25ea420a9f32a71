"""Real files and outputs of `--json` against the JSON Schemas in docs/reference/schemas."""

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from busi_tune import files, results
from busi_tune.cli import exit_code
from busi_tune.data.split import read_split
from busi_tune.evaluation.verdict import verdict_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "reference"))
import schemas

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
# Commands in order, DATA being the folder of the images; the output of each goes to `outputs/NAME.json`.
COMMANDS = {
    "baseline": ["baseline", "--out", "run", *SMALL, "--epochs", "2", "--seeds", "2", "--data", "DATA"],
    "audit": ["data", "audit", "--data", "DATA", "--out", "audit"],
    "split": ["data", "split", "--data", "DATA", "--out", "split.csv"],
}
# A schema's name, and a document that must agree with it.
DOCUMENTS = [
    ("config", "run/config.json"),
    ("state", "run/state.json"),
    ("data", "run/data.json"),
    ("metrics", "run/metrics.json"),
    ("seeds", "run/seeds.json"),
    ("metrics", "run/seeds/1/metrics.json"),
    ("verdict", "verdict.json"),
    ("audit", "audit/audit.json"),
    ("baseline", "outputs/baseline.json"),
    ("metrics", "outputs/baseline.json"),
    ("audit", "outputs/audit.json"),
    ("split", "outputs/split.json"),
]


@pytest.fixture(scope="module")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and outputs of `COMMANDS`."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "outputs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, arguments in COMMANDS.items():
            with Path(f"outputs/{name}.json").open("w") as output:
                patch.setattr(sys, "stdout", output)
                assert exit_code([*(part.replace("DATA", str(phantoms)) for part in arguments), "--json"]) == 0
    verdict = verdict_of(folder / "run", folder / "run/seeds/1", read_split(folder / "run/split.csv"), 2)
    files.write_json(folder / "verdict.json", verdict)
    return folder


def validator(name: str) -> Draft202012Validator:
    """The validator of the stored schema of this name."""
    schema = json.loads((schemas.FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(("schema", "document"), DOCUMENTS)
def test_a_real_document_agrees_with_its_schema(schema: str, document: str, place: Path) -> None:
    validator(schema).validate(json.loads((place / document).read_text()))


@pytest.mark.parametrize(("schema", "document"), DOCUMENTS)
def test_a_schema_refuses_another_version_and_a_missing_key(schema: str, document: str, place: Path) -> None:
    value = json.loads((place / document).read_text())
    version = value["schema"] + "0"
    for wrong in ({**value, "schema": version}, {key: value[key] for key in value if key != "schema"}):
        # The schema of `baseline` names no version of its own.
        assert (schema == "baseline" and "schema" in wrong) or not validator(schema).is_valid(wrong)


def test_the_stored_schemas_are_those_of_the_types() -> None:
    stored = {path.stem: path.read_text() for path in schemas.FOLDER.iterdir()}
    assert stored == schemas.texts(), "The types have changed; run make schemas."


def test_the_page_names_every_schema_and_every_file() -> None:
    page = schemas.FOLDER.with_name("files.md").read_text()
    for name in schemas.texts():
        assert f"[{name}](schemas/{name}.json)" in page
    for name in (results.METRICS, results.SEEDS, results.IDENTITY, results.STATE, results.SOURCE, results.VERDICT):
        assert f"| `{name}` |" in page


def test_every_document_with_a_schema_has_a_version() -> None:
    documents = {
        kind
        for kind in vars(results).values()
        if isinstance(kind, type) and "schema" in getattr(kind, "__annotations__", {})
    }
    assert documents == set(schemas.VERSIONS)
