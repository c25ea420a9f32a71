"""A study on SQLite during reads by another process: no read fails on a lock, and no trial is missing."""

from search_overhead import Load, measure


def test_no_lock_errors_beside_a_dashboard() -> None:
    measured = measure(Load(8, 40, 0.2, "sqlite"), watched=True)
    assert measured.trials == 40
    assert measured.reads > 0
