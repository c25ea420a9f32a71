"""The JSON files of a run: one reader, and one-sentence refusals of invalid files."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.data.split import read_split
from busi_tune.errors import BusiTuneError, FileError
from busi_tune.evaluation.seeds import compare_seeds
from busi_tune.evaluation.verdict import verdict_of
from busi_tune.progress import Silent
from busi_tune.results import (
    DataFile,
    MetricsFile,
    RunIdentityFile,
    SeedsFile,
    StateFile,
    VerdictFile,
)
from busi_tune.training import run_folder
from exported import linked, replace

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]
OPTIONS = [*SMALL, "--precision", "float32", "--epochs", "3"]
KINDS: dict[str, type] = {
    results.METRICS: MetricsFile,
    results.SEEDS: SeedsFile,
    results.IDENTITY: RunIdentityFile,
    results.SOURCE: DataFile,
    results.STATE: StateFile,
    results.VERDICT: VerdictFile,
}
REQUIRED: dict[str, frozenset[str]] = {
    results.METRICS: MetricsFile.__required_keys__,
    results.SEEDS: SeedsFile.__required_keys__,
    results.IDENTITY: RunIdentityFile.__required_keys__,
    results.SOURCE: DataFile.__required_keys__,
    results.STATE: StateFile.__required_keys__,
    results.VERDICT: VerdictFile.__required_keys__,
}
Document = dict[str, object]


@pytest.fixture(scope="module")
def run(phantoms: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two seeds and a verdict on both; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    pipeline.baseline(phantoms, folder, tiny, Silent())
    pipeline.more_seeds(phantoms, folder, tiny, 2, Silent())
    verdict = verdict_of(folder, folder / "seeds/1", read_split(folder / results.SPLIT), 2)
    (folder / results.VERDICT).write_text(json.dumps(verdict))
    return folder


def changed(path: Path, change: Callable[[Document], object]) -> None:
    """Replaces a JSON file with the result of `change` on its content."""
    replace(path, json.dumps(change(json.loads(path.read_text()))).encode())


def written(path: Path) -> Document:
    """The content of a JSON file without its own SHA-256."""
    document: Document = json.loads(path.read_text())
    document.pop("sha256", None)
    return document


def without(key: str) -> Callable[[Document], object]:
    return lambda document: {name: value for name, value in document.items() if name != key}


def with_value(key: str, value: object) -> Callable[[Document], object]:
    return lambda document: {**document, key: value}


def refusal(path: Path, kind: type) -> str:
    """The one-sentence error for a file."""
    with pytest.raises(FileError) as caught:
        results.read(path, kind)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_file_is_what_was_written_and_may_have_more_keys(name: str, kind: type, run: Path, tmp_path: Path) -> None:
    document = written(run / name)
    assert results.read(run / name, kind) == document
    assert next(iter(document)) == "schema"
    (tmp_path / name).write_text(json.dumps({**document, "later": {"more": [1]}}))
    assert results.read(tmp_path / name, kind) == {**document, "later": {"more": [1]}}


def test_a_change_is_noticed_by_the_sha256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    document = {"schema": results.SCHEMAS[DataFile], "folder": "/data/\ud800", "more": [1, 0.1, None, {"a": True}]}
    results.write(path, document)
    assert results.read(path, DataFile) == document
    text = path.read_text()
    for changed_text in (text.replace("0.1", "0.2"), text.replace("/data", "/else"), text.replace('"sha256": "', "$0")):
        path.write_text(changed_text.replace("$0", '"sha256": "0'))
        assert "was changed after it was written (its content has another SHA-256)" in refusal(path, DataFile)
    # Another layout of the same content does not count as a change.
    path.write_text(json.dumps(json.loads(text)))
    assert results.read(path, DataFile) == document
    path.write_text(text.replace("0.1", "NaN"))
    assert "is not valid JSON (NaN is not a number)" in refusal(path, DataFile)
    path.write_text(text.replace("0.1", "1e999"))
    assert "is not valid JSON (1e999 is not a number)" in refusal(path, DataFile)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_missing_key_and_every_wrong_type_is_refused(name: str, kind: type, run: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    document = written(run / name)
    for key in document:
        # No key accepts a list in a list in a list.
        replaced = json.dumps({**document, key: [[[]]]})
        removed = json.dumps({name: value for name, value in document.items() if name != key})
        for text in (replaced, removed) if key in REQUIRED[name] else (replaced,):
            path.write_text(text)
            assert ("has the schema" if key == "schema" else "is damaged (") in refusal(path, kind)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ('{"schema": "busi', "is not valid JSON"),
        ("[1]", "must hold a JSON object, not a list"),
        ("{}", "has the schema None, and this busi-tune reads"),
        ('{"schema": "other/1"}', "has the schema 'other/1'"),
        ('{"schema": "busi-tune.NAME/9"}', "has version busi-tune.NAME/9, and this busi-tune reads"),
        ('{"schema": "busi-tune.NAME/OWN"}', "is damaged (Object missing required field"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_another_file_in_its_place_is_refused(name: str, kind: type, text: str, said: str, tmp_path: Path) -> None:
    own, _, version = results.SCHEMAS[kind].removeprefix("busi-tune.").partition("/")
    path = tmp_path / name
    path.write_bytes(text.replace("NAME/OWN", f"{own}/{version}").replace("NAME", own).encode("latin-1"))
    assert said.replace("NAME", own) in refusal(path, kind)


# metrics.json is not among these, because a damaged one is recreated.
DAMAGES = [
    (results.IDENTITY, without("config")),
    (results.IDENTITY, with_value("schema", "busi-tune.config/2")),
    (results.IDENTITY, with_value("classes", {"benign": 1})),
    (results.IDENTITY, with_value("config", {"epochs": "many"})),
    (results.IDENTITY, with_value("config", {"epoch": 1})),
    (results.STATE, without("watcher")),
    (results.STATE, with_value("schema", "busi-tune.state/2")),
    (results.STATE, with_value("history", [{"epoch": 1}])),
    (results.STATE, with_value("checkpoints", {"best": "best.safetensors"})),
    (results.STATE, with_value("checkpoints", {"last": {"file": "last.safetensors"}})),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_command_that_meets_a_damaged_file_says_so_in_one_sentence(
    name: str,
    damage: Callable[[Document], object],
    run: Path,
    phantoms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = linked(run, tmp_path / "run")
    changed(folder / name, damage)
    code = exit_code(["baseline", "--data", str(phantoms), "--out", str(folder), *OPTIONS])
    output = capsys.readouterr()
    assert code in {1, 2}
    assert output.out == ""
    assert "Traceback" not in output.err
    [sentence] = [line for line in output.err.splitlines() if line.startswith("busi-tune: ")]
    assert sentence.startswith(f"busi-tune: {folder / name}")
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "damage",
    [without("folder"), with_value("schema", "busi-tune.data/2"), with_value("folder", 1), lambda _: None],
)
def test_an_export_of_a_run_whose_data_json_is_damaged(
    damage: Callable[[Document], object], run: Path, tmp_path: Path
) -> None:
    folder = linked(run, tmp_path / "run")
    changed(folder / results.SOURCE, damage)
    with pytest.raises(BusiTuneError) as caught:
        pipeline.export(folder, tmp_path / "export", None, Silent())
    assert str(caught.value).startswith(str(folder / results.SOURCE))


def test_records_with_more_keys_are_read(run: Path, tmp_path: Path) -> None:
    folder = linked(run, tmp_path / "run")
    state = results.read(run / results.STATE, StateFile)
    history = [{**record, "memory": 1} for record in state["history"]]
    results.write(folder / results.STATE, {**state, "history": history})
    assert run_folder.history(folder) == run_folder.history(run)


def test_seeds_are_compared_by_hand(run: Path) -> None:
    first, second = (results.read(run / name / results.METRICS, MetricsFile) for name in ("", "seeds/1"))
    compared = compare_seeds({0: first, 1: second})
    assert compared == results.read(run / results.SEEDS, SeedsFile)
    values = first["test"]["accuracy"], second["test"]["accuracy"]
    assert compared["seeds"] == [0, 1]
    assert compared["metrics"]["accuracy"] == {
        "mean": pytest.approx(sum(values) / 2),
        "standard_deviation": pytest.approx(abs(values[0] - values[1]) / 2**0.5),
        "lowest": min(values),
        "highest": max(values),
    }


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(), (results.CURVES,), (results.CURVES, results.CONFUSION)])
def test_a_finished_run_is_shown_again_without_pytorch(
    missing: tuple[str, ...], run: Path, phantoms: Path, tmp_path: Path
) -> None:
    """Missing pictures of the run are also drawn again."""
    folder = linked(run, tmp_path / "run")
    for name in missing:
        (folder / name).unlink()
    command = ["baseline", "--data", str(phantoms), "--out", str(folder), *OPTIONS, "--json"]
    code = (
        f"import sys; from busi_tune.cli import exit_code; code = exit_code({command!r});"
        "heavy = [m for m in ('torch', 'torchvision', 'optuna', 'onnx', 'matplotlib') if m in sys.modules];"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == str(["matplotlib"] if missing else [])
    assert json.loads(done.stdout) == results.read(run / results.METRICS, MetricsFile)
    for name in (results.CURVES, results.CONFUSION):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "busi_tune" / "py.typed").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["busi_tune"]
