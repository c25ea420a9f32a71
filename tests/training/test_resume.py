"""Kills and resumes: a command that is killed anywhere and repeated ends with the same bytes as without a kill."""

import shutil
from pathlib import Path

import pytest

import crashes
from crashes import Crash
from result_files import tree

pytestmark = pytest.mark.slow

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]


def workplace(tmp_path: Path, name: str, phantoms: Path) -> Path:
    """An empty working folder, with a copy of the data next to it."""
    folder = tmp_path / name
    folder.mkdir()
    if not (tmp_path / "data").exists():
        shutil.copytree(phantoms, tmp_path / "data")
    return folder


def moments(total: int, kills: int) -> list[int]:
    """`kills` moments spread evenly over 1..total, including both ends."""
    return sorted({1 + (total - 1) * number // (kills - 1) for number in range(kills)})


BASELINE = ["baseline", "--data", "../data", "--epochs", "3", *SMALL]
SEARCH = ["search", "--data", "../data", "--epochs", "4", "--trials", "3", "--trial-epochs", "2", *SMALL]
RUN = ["run", "--data", "../data", "--epochs", "3", "--trials", "2", "--trial-epochs", "2", *SMALL]
CROSSVAL = ["crossval", "--data", "../data", "--folds", "2", "--epochs", "2", *SMALL]


@pytest.mark.parametrize(
    ("command", "kills"),
    [(BASELINE, 10), (SEARCH, 12), (RUN, 5), (CROSSVAL, 8)],
    ids=["baseline", "search", "run", "crossval"],
)
def test_a_kill_at_any_moment_costs_no_byte(command: list[str], kills: int, tmp_path: Path, phantoms: Path) -> None:
    whole = workplace(tmp_path, "whole", phantoms)
    code, total = crashes.run(command, whole)
    assert code == 0, (whole / "output.txt").read_text()
    assert total > 20
    expected = tree(whole / "studies")
    for moment in moments(total, kills):
        killed = workplace(tmp_path, f"killed-{moment}", phantoms)
        assert crashes.run(command, killed, Crash(at_moment=moment))[0] == -9
        code, _ = crashes.run(command, killed)
        assert code == 0, (killed / "output.txt").read_text()
        assert tree(killed / "studies") == expected, f"killed at moment {moment} of {total}"
        shutil.rmtree(killed)


def test_many_kills_in_a_row_cost_no_byte(tmp_path: Path, phantoms: Path) -> None:
    """Each start runs a little longer than the last before it is killed."""
    whole = workplace(tmp_path, "whole", phantoms)
    assert crashes.run(SEARCH, whole)[0] == 0
    killed = workplace(tmp_path, "killed", phantoms)
    kills = 0
    # The moment grows, because a step longer than a fixed number of moments would never finish.
    while crashes.run(SEARCH, killed, Crash(at_moment=50 + kills))[0] == -9:
        kills += 1
        assert kills < 20
    assert kills > 1
    assert tree(killed / "studies") == tree(whole / "studies")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_kill_in_the_middle_of_a_checkpoint_costs_no_byte(share: float, tmp_path: Path, phantoms: Path) -> None:
    whole = workplace(tmp_path, "whole", phantoms)
    assert crashes.run(BASELINE, whole)[0] == 0
    largest = max(path.stat().st_size for path in (whole / "studies").rglob("*.safetensors"))
    killed = workplace(tmp_path, "killed", phantoms)
    code, _ = crashes.run(BASELINE, killed, Crash(at_bytes=int(largest * share)))
    assert code == -25  # SIGXFSZ: the kernel ends the process at this byte of the file.
    [half] = (killed / "studies").rglob("*.tmp")
    assert half.stat().st_size == int(largest * share)
    assert crashes.run(BASELINE, killed)[0] == 0
    assert tree(killed / "studies") == tree(whole / "studies")
