"""Result files of runs and studies in a form that tests can compare."""

import csv
import json
from pathlib import Path

CLOCKS = {"seconds", "images_per_second"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def content(path: Path) -> object:
    """The bytes of a file; of a file with timings, its values without them."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]
    if path.name == "state.json":
        state = json.loads(path.read_text())
        # This hash covers the timings.
        del state["sha256"]
        state["history"] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in state["history"]]
        return state
    return path.read_bytes()


LEFT_OUT = frozenset({"study.db", "data.json", "options.json", "report.html", "report.json"})


def tree(folder: Path) -> dict[str, object]:
    """All files of a result folder with their content, except for the database, locks, and those in `LEFT_OUT`.

    A report shows the seconds of each epoch; options.json has the number of workers.
    """
    paths = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name not in LEFT_OUT
    )
    # learning_curves.png is compared, too: it is drawn from history.csv and shows no timings.
    return {path.relative_to(folder).as_posix(): content(path) for path in paths}
