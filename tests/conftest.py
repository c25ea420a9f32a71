"""Fixtures for all tests: small phantom data sets, a tiny configuration and a PostgreSQL server."""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from busi_tune.config import Config
from busi_tune.data.phantoms import make_phantoms
from busi_tune.progress import Silent
from image_folders import NO_REAL_IMAGES
from postgres import Server, programs

# Must precede the import of PyTorch. A second thread slows such small models down, above all on shared cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray runs its workers at nice 15, so they would wait for the tests of the other process.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test fails, because it has checked nothing. Only tests of the real images may be skipped."""
    report = yield
    if os.environ.get("CI") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if NO_REAL_IMAGES not in reason:
            report.outcome, report.longrepr = "failed", f"CI must run this test: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds the marker `services` to every test below tests/services."""
    services = Path(__file__).with_name("services")
    for item in items:
        if services in item.path.parents:
            item.add_marker(pytest.mark.services)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what several test files share."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module", autouse=True)
def folders_of_a_module(session_folder: Path) -> Iterator[None]:
    """Removes the folders that a test file shares between its tests: those of the whole suite would take gigabytes."""
    before = set(session_folder.parent.iterdir())
    yield
    for folder in set(session_folder.parent.iterdir()) - before:
        # pytest itself removes the folders of single tests, and keeps those of failed ones.
        if folder.name.startswith("test_"):
            continue
        # pytest adds a link to the newest folder of each name.
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def cache(session_folder: Path) -> Iterator[None]:
    """Puts decoded arrays into a temporary folder instead of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_folder / "cache"))
        yield


@pytest.fixture(scope="session")
def phantoms(session_folder: Path) -> Path:
    """A data set of about 80 phantoms with masks, twins and a label conflict; tests must not change it."""
    folder = session_folder / "phantoms/data"
    folder.mkdir(parents=True)
    make_phantoms(folder, Silent(), {"benign": 26, "malignant": 22, "normal": 20}, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny() -> Config:
    """A configuration that trains in seconds."""
    return Config(
        arch="resnet18", weights="none", image_size=32, epochs=3, batch_size=16, device="cpu", precision="float32"
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A real PostgreSQL server."""
    if programs() is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed; apt-get install postgresql")
    server = Server()
    yield server
    server.remove()
