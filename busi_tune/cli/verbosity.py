"""The options of every command that decide how much it prints on stderr."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator

import click

QUIET, VERBOSE = "quiet", "verbose"


def verbosity_options() -> list[click.Parameter]:
    """The options -q and -v. Commands do not receive them; `spoken` reads them."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_noted,
            help="Print only results and errors, no progress and no notices.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_noted,
            help="Also print the log messages of libraries, and the traceback of an error.",
        ),
    ]


def _noted(context: click.Context, parameter: click.Parameter, given: bool) -> bool:
    context.meta[f"busi_tune.{parameter.name}"] = given
    both = [f"busi_tune.{QUIET}", f"busi_tune.{VERBOSE}"]
    if all(context.meta.get(name) for name in both):
        raise click.UsageError("-q and -v contradict each other; remove one of them.", context)
    return given


@contextlib.contextmanager
def spoken(context: click.Context) -> Iterator[None]:
    """Run a command with the requested verbosity; its exceptions pass through."""
    if context.meta.get(f"busi_tune.{VERBOSE}"):
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    with contextlib.ExitStack() as stack:
        if context.meta.get(f"busi_tune.{QUIET}"):
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - it is no file
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except Exception:
            if context.meta.get(f"busi_tune.{VERBOSE}"):
                traceback.print_exc()
            raise
