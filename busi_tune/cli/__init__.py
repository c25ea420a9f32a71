"""The command line: it parses, calls and prints. Every error that a user can cause is printed here as one sentence."""

import errno
import gc
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from busi_tune import __version__
from busi_tune.cli.completion import completion
from busi_tune.cli.crossval import compare, crossval
from busi_tune.cli.data import data
from busi_tune.cli.evaluate import evaluate
from busi_tune.cli.export import export, verify
from busi_tune.cli.extras import EXTRAS, missing
from busi_tune.cli.listing import list_results
from busi_tune.cli.parameters import INTERRUPTED, examples
from busi_tune.cli.predict import predict
from busi_tune.cli.report import report
from busi_tune.cli.serve import serve
from busi_tune.cli.suggestions import did_you_mean
from busi_tune.cli.train import baseline, run, search
from busi_tune.errors import BusiTuneError, printable
from busi_tune.option import meant

# Other words for the commands.
SYNONYMS = {
    "audit": "data audit",
    "classify": "predict",
    "convert": "export",
    "cv": "crossval",
    "demo": "run --demo",
    "diff": "compare",
    "fit": "baseline",
    "infer": "predict",
    "optimise": "search",
    "optimize": "search",
    "split": "data split",
    "train": "baseline",
    "tune": "search",
}


class Commands(click.Group):
    """The commands. For an unknown command, the error suggests the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        found = meant(name, [*self.commands, *SYNONYMS.values()], SYNONYMS)
        found = f"run --data {name}" if "/" in name or Path(name).is_dir() else found
        raise click.UsageError(f"No such command, {name}.{f' Did you mean busi-tune {found}?' if found else ''}", ctx)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples("busi-tune run --demo", "busi-tune run --data data/busi"),
)
@click.version_option(__version__, prog_name="busi-tune")
def cli() -> None:
    """Turn a folder of breast-ultrasound images into a verified ONNX classifier.

    Start with `busi-tune run --demo`, which needs no data. It is not a medical device.
    """


for command in (
    run,
    data,
    baseline,
    search,
    crossval,
    compare,
    evaluate,
    export,
    verify,
    predict,
    serve,
    report,
    list_results,
    completion,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the command `busi-tune`; exits with 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    # File names may not be UTF-8, and the terminal may not be able to show them.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = exit_code(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        # A second Ctrl-C ends the process without waiting for threads and worker processes.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Python would look for garbage among PyTorch's 300,000 objects once more, which takes a second or two.
    gc.freeze()
    sys.exit(code)


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` default to those of the process."""
    try:
        # The command itself expands file patterns, in the same way on every system.
        result = cli.main(arguments, prog_name="busi-tune", standalone_mode=False, windows_expand_args=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted before anything began.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BusiTuneError as error:
        text = f"{error}{did_you_mean(sys.argv[1:] if arguments is None else arguments, str(error))}"
        click.echo(f"busi-tune: {printable(text)}", err=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        click.echo(
            f"busi-tune: {missing(error.name, sys.argv[1:] if arguments is None else list(arguments))}", err=True
        )
        return 1
    except OSError as error:
        if error.errno != errno.EPIPE:
            click.echo(f"busi-tune: {printable(str(error))}; fix that and run the same command again.", err=True)
        return 1
    return result if isinstance(result, int) else 0
