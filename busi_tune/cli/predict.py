"""The command predict, which needs ONNX Runtime alone."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from busi_tune.cli.parameters import PATH, Command, examples, setting
from busi_tune.errors import printable

if TYPE_CHECKING:
    from busi_tune.inference import Prediction, Predictions

# Of the arguments that name no file.
MOST_HINTS = 20


@click.command(
    cls=Command,
    interrupted="Each line that was printed is a whole answer; the file of --csv is not written.",
    epilog=examples(
        "busi-tune predict exports/tuned scan.png",
        "find scans -name '*.png' | busi-tune predict exports/tuned - --csv answers.csv",
    ),
)
@click.argument("export", type=PATH, metavar="EXPORT")
@click.argument("paths", nargs=-1, required=True, metavar="IMAGE...")
@setting(
    "--allow-unverified",
    is_flag=True,
    group="model",
    help="Use a model without a certificate, after it has been tried in a process of its own.",
)
@setting(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    metavar="INTEGER",
    group="machines",
    help="Images that the model answers at once, at most.",
)
@setting(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    metavar="INTEGER",
    group="machines",
    help="Threads to compute with; 0 takes one for each core.",
)
@setting(
    "--provider",
    default="cpu",
    metavar="NAME",
    group="machines",
    help="Execution provider of ONNX Runtime: cpu, cuda, ...",
)
@setting(
    "--csv", "csv_file", type=PATH, metavar="FILE.csv", group="output", help="Also write the answers to this file."
)
@setting("--json", "as_json", is_flag=True, group="output", help="Print one JSON list instead of a table.")
@setting("--jsonl", "as_lines", is_flag=True, group="output", help="Print one JSON object per line instead of a table.")
def predict(
    export: Path,
    paths: tuple[str, ...],
    *,
    csv_file: Path | None,
    as_json: bool,
    as_lines: bool,
    batch_size: int,
    threads: int,
    provider: str,
    allow_unverified: bool,
) -> int:
    """Classify images with the model of the folder EXPORT, or with one of its model files.

    IMAGE is a file, a folder, a pattern ("scans/**/*.png") or - for a list of files on stdin. A file that cannot be
    read becomes a row with its error; the others are still answered, and the exit code is 1.
    """
    from busi_tune import files, inference
    from busi_tune.cli.suggestions import nearest
    from busi_tune.inference.inputs import image_paths

    on_stdout = [name for name, asked in (("--json", as_json), ("--jsonl", as_lines)) if asked]
    if csv_file is not None and files.is_stdout(csv_file):
        on_stdout.append(f"--csv {csv_file}")
    if len(on_stdout) > 1:
        raise click.UsageError(f"{' and '.join(on_stdout)} would both print on stdout; drop one.")
    predictions = inference.predict(
        export,
        image_paths(paths),
        batch_size=batch_size,
        threads=threads,
        provider=provider,
        allow_unverified=allow_unverified,
    )
    failed = _show(predictions, csv_file, "".join(on_stdout))
    if failed:
        missing = [(path, nearest(Path(path))) for path in paths[:MOST_HINTS]]
        for path, found in missing:
            if found is not None:
                click.echo(f"{printable(path)} does not exist; did you mean {printable(str(found))}?", err=True)
    return int(failed)


def _show(predictions: "Predictions", csv_file: Path | None, form: str) -> bool:
    """Print each prediction as it comes, and write it to the CSV; whether a file could not be read.

    `form` is the option whose form is printed, or "" for a table.
    """
    from busi_tune import files
    from busi_tune.cli import prediction_formats
    from busi_tune.cli.screen import print_line

    model = predictions.classifier.metadata
    classes, flag = model.classes, model.flag
    names = prediction_formats.columns(classes, flag=flag, guarded=bool(model.guards))
    failed = False

    def noted(found: "Iterable[Prediction]") -> "Iterator[Prediction]":
        nonlocal failed
        for prediction in found:
            failed = failed or bool(prediction.error)
            if write is not None:
                write(prediction_formats.as_row(prediction, names))
            yield prediction

    with ExitStack() as stack:
        write = stack.enter_context(files.csv_stream(csv_file, names)) if csv_file is not None else None
        if form == "":
            lines = prediction_formats.table(noted(predictions), classes, flag=flag)
        elif form == "--json":
            lines = prediction_formats.json_list(noted(predictions), classes)
        elif form == "--jsonl":
            lines = prediction_formats.json_lines(noted(predictions), classes)
        else:
            # The CSV itself is what is printed.
            lines = iter(())
            deque(noted(predictions), maxlen=0)
        for line in lines:
            print_line(line)
    return failed
