"""Publication of an export: after a kill at any moment, the folder holds no model that did not pass."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crashes
from busi_tune import files, pipeline
from busi_tune.errors import BusiTuneError
from busi_tune.export.draft import DOCUMENTS, publish, staging_folder
from busi_tune.export.source import Source, fit
from busi_tune.inference import open_export
from busi_tune.inference.certificate import check_folder
from busi_tune.locks import only_writer
from busi_tune.progress import Silent
from crashes import MOMENTS, Crash
from exported import EXPORT_FILES, Exported, names

pytestmark = pytest.mark.slow

pytest_plugins = ["exported"]
OLD, NEW = (
    {"model.onnx": b"old", "model-32.onnx": b"old small", "model.int8.onnx": b"old int8"},
    {
        "model.onnx": b"new",
        "model-32.onnx": b"new small",
    },
)


def write_files(folder: Path, models: dict[str, bytes], *, passed: bool) -> None:
    """Writes the files of an export; verification.json has the hashes of its models."""
    certificate = {name: {"passed": passed, "model_sha256": files.sha256_bytes(data)} for name, data in models.items()}
    for name, data in {name: name.encode() for name in DOCUMENTS}.items() | models.items():
        (folder / name).write_bytes(data)
    (folder / "verification.json").write_text(json.dumps({"models": certificate}))


def vouched(folder: Path) -> dict[str, bytes]:
    """The models that passed and match their hash in the folder's verification.json."""
    known = json.loads((folder / "verification.json").read_text())["models"]
    found = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    return {
        name: data
        for name, data in found.items()
        if name in known and known[name]["passed"] and known[name]["model_sha256"] == files.sha256_bytes(data)
    }


def killed_at(moment: int, action: Callable[[], None]) -> bool:
    """Whether a child process is killed at its n-th change of the file system; False if `action` ends first."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def count(event: str, _: object) -> None:
            if event in MOMENTS:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("passed", [True, False])
def test_no_kill_leaves_a_model_that_did_not_pass(passed: bool, tmp_path: Path) -> None:
    for moment in range(1, 20):
        folder = tmp_path / str(moment)
        staging = folder / "staging"
        staging.mkdir(parents=True)
        write_files(folder, OLD, passed=True)
        write_files(staging, NEW, passed=passed)
        killed = killed_at(moment, lambda: publish(staging, folder, passed=passed))  # noqa: B023
        for name, data in vouched(folder).items():
            assert data in {OLD[name], *([NEW[name]] if passed and name in NEW else [])}, moment
        if not killed:
            break
    # Five documents, and three models that are replaced or deleted.
    assert moment == 9
    assert {path.name for path in folder.glob("*.onnx")} == (set(NEW) if passed else set())
    assert vouched(folder) == (NEW if passed else {})


def test_a_staging_folder_is_deleted_at_the_end_and_after_a_kill(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as staging:
        (staging / "model.onnx").write_bytes(b"half")
    assert names(tmp_path) == set()
    with pytest.raises(ZeroDivisionError), staging_folder(tmp_path) as staging:
        (staging / "model.onnx").write_bytes(b"half" * (1 // 0))
    assert names(tmp_path) == set()
    staging.mkdir()
    (staging / "model.onnx").write_bytes(b"half")
    with only_writer(tmp_path):
        assert names(tmp_path) == {".lock"}


def test_an_export_killed_in_the_middle_of_a_model_is_made_again(exported: Exported, tmp_path: Path) -> None:
    command = ["export", str(exported.run), "--data", str(exported.data), "--out", "export"]
    half = (exported.folder / "model.onnx").stat().st_size // 2
    code, _ = crashes.run(command, tmp_path, Crash(at_bytes=half))
    assert code == -signal.SIGXFSZ, (tmp_path / "output.txt").read_text()
    folder = tmp_path / "export"
    (left,) = names(folder) - {".lock"}
    assert left.startswith(".export.")
    with pytest.raises(BusiTuneError, match=r"holds no model\.onnx"):
        open_export(folder)
    assert crashes.run(command, tmp_path)[0] == 0
    assert names(folder) == EXPORT_FILES
    assert check_folder(folder)["passed"]


def test_fitting_leaves_the_model_of_the_run_as_it_is(exported: Exported) -> None:
    source = Source.of(exported.run, pipeline.run_data(exported.run, exported.data, Silent()), Silent())
    fitted = fit(source, None)
    assert float(source.model.temperature) == 1
    assert float(fitted.model.temperature) == pytest.approx(fitted.temperature) != 1
    assert fitted.model.model is source.model.model
