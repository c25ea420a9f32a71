"""The command serve: a local web page that classifies the pictures dropped on it."""

import sys
from pathlib import Path

import click

from busi_tune.cli.parameters import PATH, Command, examples, json_option, setting, threads_option


@click.command(
    cls=Command,
    interrupted="The server has stopped, and nothing was stored.",
    epilog=examples("busi-tune serve exports/tuned", "busi-tune serve exports/tuned --port 9000 --threads 1"),
)
@click.argument("export", type=PATH, metavar="EXPORT")
@setting(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    group="machines",
    help="Address to listen on; any address but the loopback address opens the page to the network.",
)
@setting(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    metavar="INTEGER",
    group="machines",
    help="Port to listen on; 0 takes any free one.",
)
@threads_option
@json_option
def serve(export: Path, *, host: str, port: int, threads: int, as_json: bool) -> None:
    """Classify pictures with the model of the folder EXPORT on a local web page, until Ctrl-C.

    Drop pictures on the page to see their probabilities. Programs use POST /predict. Nothing is stored, and nothing
    leaves this machine.
    """
    from busi_tune.cli.screen import print_json, print_line
    from busi_tune.serve import server

    def ready(url: str, local: bool) -> None:
        if not local:
            click.echo(
                "Warning: everybody who reaches this machine over the network can use the page and see the model card; "
                "there is no password and no encryption.",
                # Also with -q.
                file=sys.__stderr__,
            )
        if as_json:
            print_json({"url": url})
        else:
            print_line(f"{url} classifies pictures with {export}; Ctrl-C stops it.")
        # The process that started this one may wait for the line.
        sys.stdout.flush()

    server.serve(export, ready, host=host, port=port, threads=threads)
