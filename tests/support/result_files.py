"""Result files of runs and studies, as tests compare them."""

import csv
import json
from pathlib import Path

CLOCKS = {"seconds", "images_per_second"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def content(path: Path) -> object:
    """A file's bytes, or where it holds timings, its values without them."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]
    if path.name == "state.json":
        state = json.loads(path.read_text())
        # It is that of a content with timings.
        del state["sha256"]
        state["history"] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in state["history"]]
        return state
    return path.read_bytes()


def tree(folder: Path) -> dict[str, object]:
    """Every file of a result folder but the database, with its content."""
    paths = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name not in ("study.db", ".lock", "data.json")
    )
    # The learning curves are drawn from history.csv; the picture is compared, too.
    return {path.relative_to(folder).as_posix(): content(path) for path in paths}
