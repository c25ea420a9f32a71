"""The command completion: the script with which a shell completes options and arguments of busi-tune."""

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from busi_tune.cli.parameters import Command, examples, json_option

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
# The environment variable that click reads for a program of this name.
VARIABLE = "_BUSI_TUNE_COMPLETE"


@click.command(
    cls=Command,
    epilog=examples("busi-tune completion bash", "busi-tune completion fish --json"),
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@json_option
@click.pass_context
def completion(context: click.Context, *, shell: str, as_json: bool) -> None:
    """Print the script that makes SHELL complete commands, options, choices and files of busi-tune.

    Write it to a file that the shell reads: append it to ~/.bash_completion, or write it to _busi-tune in a folder of
    zsh's $fpath, or to ~/.config/fish/completions/busi-tune.fish.
    """
    from busi_tune.cli.screen import print_json

    root = context.find_root()
    script = SHELLS[shell](root.command, {}, "busi-tune", VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
