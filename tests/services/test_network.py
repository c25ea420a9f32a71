"""No network access: commands look up no host names, and write only our own cache to an empty home folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray import cloudpickle

from busi_tune.workers.ray_actors import Trainer
from exported import Exported
from small_export import small_model, write_export

pytest_plugins = ["exported"]

ROOT = Path(__file__).resolve().parents[2]
# ONNX Runtime 1.32 first uploads telemetry 2 s after the import, unless telemetry is disabled.
PATIENCE = 5


@dataclass(frozen=True)
class Alone:
    """A program with an empty home folder, and without variables that stop ONNX Runtime's telemetry, such as CI."""

    home: Path
    asked: Path
    resolver: Path

    def run(self, *command: str | Path) -> str:
        """Runs the command to its end and returns its output."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.home),
            "ASKED": str(self.asked),
            "LD_PRELOAD": str(self.resolver),
        }
        done = subprocess.run(
            command, env=environment, cwd=self.home.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def found(self) -> tuple[list[str], list[str]]:
        """The host names and connections requested, and the files in the home folder outside our cache."""
        asked = self.asked.read_text().splitlines() if self.asked.exists() else []
        files = (path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file())
        return asked, sorted(str(path) for path in files if path.parts[:2] != (".cache", "busi-tune"))


@pytest.fixture(scope="session")
def resolver(session_folder: Path) -> Path:
    """A library that records each host name a process looks up."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the resolver that is put before a program's own needs Linux and a C compiler (cc)")
    library = session_folder / "resolver.so"
    source = ROOT / "tests/support/resolver.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def alone(resolver: Path, tmp_path: Path) -> Alone:
    """An empty home folder for the programs of a test."""
    (tmp_path / "home").mkdir()
    return Alone(tmp_path / "home", tmp_path / "asked", resolver)


def busi_tune(*arguments: str | Path) -> Sequence[str | Path]:
    return [sys.executable, "-m", "busi_tune", *arguments]


def test_a_name_that_is_asked_for_is_seen(alone: Alone) -> None:
    alone.run(sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 80)")
    assert alone.found() == (["getaddrinfo localhost"], [])


def test_export_verification_and_prediction_send_nothing(alone: Alone, exported: Exported, tmp_path: Path) -> None:
    again, picture = tmp_path / "again", next((exported.data / "benign").glob("*.png"))
    alone.run(*busi_tune("export", exported.run, "--data", exported.data, "--out", again))
    alone.run(*busi_tune("verify", again, "--data", exported.data))
    alone.run(*busi_tune("predict", again, picture))
    # A model without a certificate is first tried in a child process.
    (again / "verification.json").unlink()
    alone.run(*busi_tune("predict", again, picture, "--allow-unverified"))
    assert alone.found() == ([], [])


def test_a_program_that_stays_and_its_child_send_nothing(alone: Alone, tmp_path: Path) -> None:
    """ONNX Runtime sends telemetry while the program runs, not at its end."""
    export = write_export(tmp_path / "export", {"model.onnx": small_model()})
    Image.fromarray(np.full((30, 40), 99, np.uint8)).save(tmp_path / "image.png")
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "from busi_tune.inference import predict\n"
        "def work(export):\n"
        "    print([found.predicted for found in predict(Path(export), [Path('image.png')])], flush=True)\n"
        f"    time.sleep({PATIENCE})\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=work, args=sys.argv[1:])\n"
        "    child.start()\n"
        "    work(sys.argv[1])\n"
        "    child.join()\n"
    )
    assert len(set(alone.run(sys.executable, program, export).splitlines())) == 1
    assert alone.found() == ([], [])


def test_logs_for_trackers_stay_on_the_machine(alone: Alone, exported: Exported, tmp_path: Path) -> None:
    """MLflow sends usage statistics while the program runs, unless they are switched off."""
    run = shutil.copytree(exported.run, tmp_path / "run")
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "import busi_tune\n"
        "busi_tune.write_logs(Path(sys.argv[1]), 'mlflow')\n"
        "busi_tune.write_logs(Path(sys.argv[1]), 'tensorboard')\n"
        f"time.sleep({PATIENCE})\n"
    )
    alone.run(sys.executable, "-c", program, run)
    assert (tmp_path / "logs/mlflow.db").exists()
    assert alone.found() == ([], [])


def test_an_actor_of_a_ray_cluster_is_silenced_as_it_is_loaded(alone: Alone, tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    actor.write_bytes(cloudpickle.dumps(Trainer))
    names = ["ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "RAY_USAGE_STATS_ENABLED"]
    program = (
        "import os, pickle, sys\n"
        "pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(*(os.environ.get(name) for name in sys.argv[2:]))\n"
    )
    assert alone.run(sys.executable, "-c", program, actor, *names) == "1 1 0\n"


def test_onnx_runtime_that_was_imported_before_is_told_to_stop(alone: Alone) -> None:
    program = (
        "import onnxruntime, sys\n"
        "calls = []\n"
        "sys.setprofile(lambda frame, event, called: calls.append(getattr(called, '__name__', '')))\n"
        "import busi_tune\n"
        "sys.setprofile(None)\n"
        "print('disable_telemetry_events' in calls)\n"
    )
    assert alone.run(sys.executable, "-c", program) == "True\n"
