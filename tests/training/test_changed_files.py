"""A sample of the edits of tests/benchmarks/changed_files.py; none gives a traceback or goes unnoticed."""

from pathlib import Path

import pytest

from edits import COMMANDS, Edit, answer, copied, edits_of, forged, is_wrong, make_place, reason, tried

pytestmark = pytest.mark.slow

# The number of edits for each command, spread evenly. search has few because it is the slowest.
SAMPLE = {"baseline": 14, "search": 8, "export": 4, "verify": 10, "predict": 10}


@pytest.fixture(scope="module")
def whole(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a study and an export; tests must not change them."""
    place = tmp_path_factory.mktemp("whole")
    make_place(place, phantoms)
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_no_edit_of_a_file_passes_as_right(command: str, whole: Path, phantoms: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "place")
    expected = answer(command, tmp_path / "place", phantoms)
    assert (expected.code, expected.crash) == (0, "")
    edits = [edit for part in COMMANDS[command][1] for edit in edits_of(whole, part)]
    # Each new evaluation takes seconds, and test_changed_runs.py covers metrics.json.
    quick = [edit for edit in edits if not edit.path.endswith("metrics.json")]
    step = len(quick) // SAMPLE[command]
    for edit in quick[step // 2 :: step]:
        found = tried(edit, command, whole, tmp_path / "place", phantoms, expected)
        assert not is_wrong(found), (edit.path, edit.what, found)
        again = forged(edit)
        if again is not None:
            found = tried(again, command, whole, tmp_path / "place", phantoms, expected)
            assert found.verdict not in ("a traceback", "no sentence"), (again.path, again.what, found)


def test_an_edit_is_harmless_only_where_a_reason_is_known() -> None:
    assert reason(Edit("studies/baseline/checkpoints/last-0002.safetensors", "emptied", b""), "baseline")
    assert reason(Edit("studies/baseline/state.json", "sha256 removed", b""), "baseline")
    assert not reason(Edit("studies/baseline/state.json", "stop_reason removed", b""), "baseline")
    assert not reason(Edit("studies/baseline/split.csv", "emptied", b""), "baseline")
