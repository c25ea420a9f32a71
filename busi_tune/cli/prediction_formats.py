"""The formats of a prediction: a line of a table, of a JSON list or of JSON lines, and a row of a CSV."""

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from busi_tune.cli.screen import json_text, rule
from busi_tune.errors import printable
from busi_tune.inference import Prediction
from busi_tune.results import PREDICTION

YES_NO = {None: "", True: "yes", False: "no"}


def table(
    predictions: Iterable[Prediction], classes: Sequence[str], *, flag: str, selective: bool = False
) -> Iterator[str]:
    """A table with fixed column widths; the file and its error or warning are last, because their length varies.

    `flag` is the heading of the operating point's column, or "" if the model has no operating point. With `selective`,
    a column marks the predictions to refer.
    """
    marks = [*([flag] if flag else []), *(["refer"] if selective else [])]
    heads = ["predicted", *(f"p({name})" for name in classes), *marks]
    widths = [max(map(cell_len, [heads[0], *classes])), *map(cell_len, heads[1:])]
    yield _line([*heads, "file"], widths)
    yield " " + rule() * (sum(widths) + 2 * len(widths) + len("file"))
    for found in predictions:
        values = [f"{value:.4f}" for value in found.probabilities] or [""] * len(classes)
        flags = [YES_NO[mark] for mark in (*([found.malignant] if flag else []), *([found.refer] if selective else []))]
        remark = found.error or (f"warning: {found.warning}" if found.warning else "")
        yield _line([found.predicted, *values, *flags, found.path + (f": {remark}" if remark else "")], widths)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *numbers, last = (printable(cell) for cell in cells)
    right = [" " * (width - cell_len(cell)) + cell for cell, width in zip(numbers, widths[1:], strict=True)]
    return " " + "  ".join([set_cell_size(first, widths[0]), *right, last])


def json_list(predictions: Iterable[Prediction], classes: Sequence[str]) -> Iterator[str]:
    """One JSON list with an object per line."""
    before = "["
    for found in predictions:
        yield before + _json(found, classes)
        before = ","
    yield "]" if before == "," else "[]"


def json_lines(predictions: Iterable[Prediction], classes: Sequence[str]) -> Iterator[str]:
    """A JSON object per line."""
    return (_json(found, classes) for found in predictions)


def _json(found: Prediction, classes: Sequence[str]) -> str:
    return json_text(found.to_entry(classes))


def columns(
    classes: Sequence[str], *, flag: str, guarded: bool, selective: bool = False, explained: bool = False
) -> list[str]:
    """The columns of the CSV: with a flag and a warning if the model has them, and with `refer` if `selective`.

    With `explained`, `overlay` names the picture of each prediction.

    `model` is the first 16 digits of the SHA-256 of the model's file. `schema` is the version of these columns.
    """
    marks = {flag: bool(flag), "refer": selective, "overlay": explained, "warning": guarded}
    extra = [name for name, present in marks.items() if present]
    return ["path", "predicted", *(f"p_{name}" for name in classes), *extra, "error", "model", "schema"]


def as_row(found: Prediction, names: Sequence[str], model: str) -> dict[str, object]:
    """A prediction as a row with the columns `names`; floats keep every digit."""
    values = [found.path, found.predicted, *(found.probabilities or [""] * sum(n.startswith("p_") for n in names))]
    row: dict[str, object] = dict(zip(names, values, strict=False))
    more: dict[str, object] = {
        found.flag: found.malignant,
        "refer": found.refer,
        "overlay": found.overlay,
        "warning": found.warning,
        "error": found.error,
        "model": model,
        "schema": PREDICTION,
    }
    return row | {name: value for name, value in more.items() if name in names}
