"""The command predict, which needs ONNX Runtime but not PyTorch."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from busi_tune.cli.parameters import PATH, Command, examples, key_option, setting, threads_option
from busi_tune.errors import printable

if TYPE_CHECKING:
    from busi_tune.cli.answer_table import AnswerTable, Existing
    from busi_tune.inference import Prediction, Predictions

# The maximum number of arguments for which a similar file name is searched.
MOST_HINTS = 20


def _share(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A value from 0 to 1; all others are refused, also NaN."""
    if value is not None and not 0 <= value <= 1:
        raise click.BadParameter(f"{parameter.name} must be between 0 and 1, not {value:g}.")
    return value


@click.command(
    cls=Command,
    interrupted="Each printed line is complete. With --csv FILE.csv, FILE.csv.partial keeps the rows, and --resume "
    "continues after them.",
    epilog=examples(
        "find scans -name '*.png' | busi-tune predict exports/tuned - --csv answers.csv",
        "busi-tune predict exports/tuned scan.png --explain overlays",
    ),
)
@click.argument("export", type=PATH, metavar="EXPORT")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@setting(
    "--list",
    "lists",
    type=PATH,
    multiple=True,
    metavar="FILE",
    group="data",
    help="Also classify the images in this list, one path a line; may be given several times.",
)
@setting(
    "-0",
    "--null",
    "nul",
    is_flag=True,
    group="data",
    help="Paths in a list end with a NUL character, as `find -print0` writes them.",
)
@setting(
    "--allow-unverified",
    is_flag=True,
    group="model",
    help="Use a model without a certificate, after a trial in a separate process.",
)
@key_option
@setting(
    "--min-confidence",
    type=float,
    callback=_share,
    metavar="NUMBER",
    group="model",
    unset="no prediction is marked",
    help="Mark predictions whose largest probability is lower as refer; `export` prints the validation error for "
    "several values.",
)
@setting(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    metavar="INTEGER",
    group="machines",
    help="Maximum number of images that the model classifies at once.",
)
@threads_option
@setting(
    "--provider",
    default="cpu",
    metavar="NAME",
    group="machines",
    help="Execution provider of ONNX Runtime: cpu, cuda, ...",
)
@setting(
    "--csv",
    "csv_file",
    type=PATH,
    metavar="FILE.csv",
    group="output",
    help="Also write the predictions to this file; - writes them to stdout instead of the table.",
)
@setting(
    "--explain",
    type=PATH,
    metavar="FOLDER",
    group="output",
    unset="no pictures",
    help="Also write a picture of each image to this folder that shows where the network looked; needs an export with "
    "--cam.",
)
@setting(
    "--overwrite",
    is_flag=True,
    group="output",
    help="Replace the file of --csv, finished or interrupted, and pictures in the folder of --explain.",
)
@setting("--append", is_flag=True, group="output", help="Add the predictions to the file of --csv.")
@setting("--resume", is_flag=True, group="output", help="Continue the interrupted file of --csv.")
@setting("--json", "as_json", is_flag=True, group="output", help="Print one JSON list instead of a table.")
@setting("--jsonl", "as_lines", is_flag=True, group="output", help="Print one JSON object per line instead of a table.")
def predict(
    export: Path,
    paths: tuple[str, ...],
    *,
    lists: tuple[Path, ...],
    nul: bool,
    csv_file: Path | None,
    explain: Path | None,
    overwrite: bool,
    append: bool,
    resume: bool,
    as_json: bool,
    as_lines: bool,
    batch_size: int,
    threads: int,
    provider: str,
    allow_unverified: bool,
    min_confidence: float | None,
    key: Path | None,
) -> int:
    """Classify images with the model of the folder EXPORT, or with one of its model files.

    IMAGE is a file, a folder, a pattern ("scans/**/*.png") or - for a list of files on stdin. A file that cannot be
    read becomes a row with its error. The other files are still classified, and the exit code is 1.
    """
    from busi_tune import inference
    from busi_tune.cli.answer_table import answer_table
    from busi_tune.cli.overlay_files import OverlayFolder
    from busi_tune.inference.inputs import image_paths
    from busi_tune.inference.signature import read_public_key

    if not paths and not lists:
        raise click.UsageError("Missing argument 'IMAGE...': name images, or a list of them with --list.")
    form = _form(csv_file, as_json=as_json, as_lines=as_lines)
    if key is not None and allow_unverified:
        raise click.UsageError("--key requires a signature, and --allow-unverified no certificate; remove one of them.")
    existing = _existing(csv_file, overwrite=overwrite, append=append, resume=resume)
    with answer_table(csv_file, existing, resume=resume) if csv_file is not None else nullcontext() as table:
        found = image_paths(paths, lists, nul=nul)
        predictions = inference.predict(
            export,
            table.remaining(found) if table is not None and resume else found,
            batch_size=batch_size,
            threads=threads,
            provider=provider,
            allow_unverified=allow_unverified,
            min_confidence=min_confidence,
            key=read_public_key(key) if key else "",
            explain=explain is not None,
        )
        if explain is not None:
            overlays = OverlayFolder.of(explain, paths, again=overwrite or resume, more=append)
            predictions = replace(predictions, found=map(overlays.add, predictions.found))
        failed = _show(predictions, table, form, selective=min_confidence is not None, explained=explain is not None)
    if failed:
        _hint(paths[:MOST_HINTS])
    return int(failed)


def _existing(csv_file: Path | None, *, overwrite: bool, append: bool, resume: bool) -> "Existing":
    """What happens to an existing table. Options that contradict each other are refused."""
    from busi_tune.cli.answer_table import is_straight

    changes = [name for name, asked in (("--append", append), ("--resume", resume)) if asked]
    if overwrite and changes:
        raise click.UsageError(f"--overwrite and {changes[0]} contradict each other; remove one of them.")
    if changes and (csv_file is None or is_straight(csv_file)):
        raise click.UsageError(f"{changes[0]} needs a file; name it with --csv FILE.csv.")
    return "overwrite" if overwrite else "append" if append else "refuse"


def _hint(paths: Iterable[str]) -> None:
    """Name a similar file for each path that does not exist."""
    from busi_tune.cli.suggestions import nearest

    for path in paths:
        near = nearest(Path(path))
        if near is not None:
            click.echo(f"{printable(path)} does not exist; did you mean {printable(str(near))}?", err=True)


def _form(csv_file: Path | None, *, as_json: bool, as_lines: bool) -> str:
    """The option that decides the format on stdout, or "" for a table."""
    from busi_tune.cli.answer_table import is_stdout

    on_stdout = [name for name, asked in (("--json", as_json), ("--jsonl", as_lines)) if asked]
    if csv_file is not None and is_stdout(csv_file):
        on_stdout.append(f"--csv {csv_file}")
    if len(on_stdout) > 1:
        raise click.UsageError(f"{' and '.join(on_stdout)} would both print on stdout; remove one of them.")
    return "".join(on_stdout)


def _show(
    predictions: "Predictions", answers: "AnswerTable | None", form: str, *, selective: bool, explained: bool
) -> bool:
    """Print each prediction in the format `form`, and write it to the CSV; return whether a file could not be read.

    With `selective`, predictions may be marked as refer. With `explained`, they name their overlays.
    """
    from busi_tune import files
    from busi_tune.cli import prediction_formats
    from busi_tune.cli.screen import print_line

    model = predictions.classifier.metadata
    classes, flag = model.classes, model.flag
    names = prediction_formats.columns(
        classes, flag=flag, guarded=bool(model.guards), selective=selective, explained=explained
    )
    digest = ""
    if answers is not None:
        digest = files.sha256(predictions.classifier.path)[:16]
        answers.begin(names, digest)
    failed = answers is not None and answers.failed

    def noted(found: "Iterable[Prediction]") -> "Iterator[Prediction]":
        nonlocal failed
        for prediction in found:
            failed = failed or bool(prediction.error)
            if answers is not None:
                answers.write(prediction_formats.as_row(prediction, names, digest))
            yield prediction

    if form == "":
        lines = prediction_formats.table(noted(predictions), classes, flag=flag, selective=selective)
    elif form == "--json":
        lines = prediction_formats.json_list(noted(predictions), classes)
    elif form == "--jsonl":
        lines = prediction_formats.json_lines(noted(predictions), classes)
    else:
        # The CSV itself is printed on stdout.
        lines = iter(())
        deque(noted(predictions), maxlen=0)
    for line in lines:
        print_line(line)
    return failed
