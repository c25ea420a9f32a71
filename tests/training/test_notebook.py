"""The Python interface in a notebook: the tour, an interrupted cell, bars, and results as tables and pictures."""

import asyncio
import html
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import busi_tune
from busi_tune import results
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, summarise
from busi_tune.report.views import ShownResult
from busi_tune.results import SCHEMAS, MetricsFile, VerdictFile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs/notebooks/tour.ipynb"


def outputs(cell: Any, kind: str) -> str:
    """The outputs of one MIME type, and printed text if `kind` is text/plain."""
    parts = [one["data"].get(kind, "") for one in cell["outputs"] if "data" in one]
    printed = [one["text"] for one in cell["outputs"] if one["output_type"] == "stream"]
    return "\n".join([*parts, *(printed if kind == "text/plain" else [])])


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which notebooks run; their kernel finds this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    return tmp_path


def client(notebook: Any, folder: Path) -> NotebookClient:
    return NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})


def test_the_tour_is_committed_without_outputs() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 10
    assert [cell["outputs"] for cell in cells] == [[]] * 10
    assert [cell["execution_count"] for cell in cells] == [None] * 10


def test_the_tour_runs(kernel: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    client(notebook, kernel).execute()
    by_source = {cell["source"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}

    def cell(text: str) -> Any:
        return next(cell for source, cell in by_source.items() if text in source)

    assert "image/png" in str(cell(".plot()")["outputs"])
    run = outputs(cell("busi_tune.baseline("), "text/html")
    assert run.count("data:image/png;base64,") == 2
    assert "95 % interval" in run
    assert "<td>malignant</td>" in run
    verdict = results.read(kernel / "tour/tuned/verdict.json", VerdictFile)
    assert html.escape(verdict["sentence"]) in outputs(cell("busi_tune.search("), "text/html")
    assert "model.onnx</td><td>passed" in outputs(cell("busi_tune.export("), "text/html")
    answers = outputs(cell("pictures = "), "text/html")
    assert answers.count("data:image/jpeg;base64,") == 3
    assert "'malignant':" in outputs(cell("by_class"), "text/plain")
    assert (kernel / "tour/tuned/report.html").exists()
    # Bars are widgets, and stderr is empty.
    widgets = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert any(state["model_name"] == "FloatProgressModel" for state in widgets.values())
    errors = [one for cell in by_source.values() for one in cell["outputs"] if one.get("name") == "stderr"]
    assert errors == []


INTERRUPTED = """
from pathlib import Path
import busi_tune
config = busi_tune.Config(arch="resnet18", weights="none", image_size=32, epochs=12, early_stopping_patience=12,
                          batch_size=16, device="cpu")
run = busi_tune.baseline(Path({data!r}), Path("run"), config)
"""


def test_an_interrupted_cell_goes_on_when_it_is_run_again(phantoms: Path, kernel: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(INTERRUPTED.format(data=str(phantoms)))])
    runner = client(notebook, kernel)
    history = kernel / "run/history.csv"

    def interrupt() -> None:
        while not history.exists() or len(history.read_text().splitlines()) < 4:
            time.sleep(0.05)
        # According to its types, it is not a coroutine.
        manager: Any = runner.km
        asyncio.run(manager.interrupt_kernel())

    with runner.setup_kernel():
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            runner.execute_cell(notebook["cells"][0], 0)
        thread.join()
        before = history.read_text().splitlines()
        assert 4 <= len(before) < 13
        assert not (kernel / "run/metrics.json").exists()
        runner.execute_cell(notebook["cells"][0], 0)
    done = len(before) - 1
    assert f"continues after epoch {done}." in outputs(notebook["cells"][0], "text/plain")
    after = history.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 13
    assert (kernel / "run/metrics.json").exists()


def test_the_package_offers_its_functions_and_imports_no_library() -> None:
    script = (
        "import sys, busi_tune\n"
        "heavy = ('numpy', 'torch', 'optuna', 'onnx', 'onnxruntime', 'pandas', 'tqdm', 'rich', 'click')\n"
        "assert set(busi_tune.__all__) <= set(dir(busi_tune))\n"
        "busi_tune.Config, busi_tune.SearchOptions, busi_tune.BusiTuneError\n"
        "assert [name for name in heavy if name in sys.modules] == []\n"
        "busi_tune.predict\n"
        "assert 'torch' not in sys.modules\n"
        "from busi_tune.search import session\n"
        "import busi_tune.crossval, busi_tune.export, busi_tune.report\n"
        "for name in busi_tune.__all__:\n"
        "    assert callable(getattr(busi_tune, name)), name\n"
        "assert busi_tune.search.__module__ == busi_tune.export.__module__ == 'busi_tune.pipeline'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(busi_tune.OFFERED) == set(busi_tune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        getattr(busi_tune, "serch")  # noqa: B009


def test_help_explains_each_field_of_the_configuration() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import busi_tune; help(busi_tune.Config)"], capture_output=True, text=True, check=True
    ).stdout
    for one in busi_tune.Config.options.values():
        assert f"{one.name}: {one.help}" in shown
        assert f"Default: {one.shown_default}." in shown


def test_names_from_users_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    labels = np.arange(40) % 2
    answers = Answers(labels, np.where(labels[:, None] == [0, 1], 0.8, 0.2), ("benign", name))
    test = {**summarise(answers), **with_intervals(answers, np.arange(40))}
    document = {"schema": SCHEMAS[MetricsFile], "test": test, "best_epoch": 1, "epochs_run": 1, "stop_reason": name}
    page = ShownResult(document, tmp_path)._repr_html_()
    assert name not in page
    assert page.count("&lt;script&gt;") == 2
