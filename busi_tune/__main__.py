"""The command `busi-tune`, also as `python -m busi_tune`; Ctrl-C is answered before anything slow is imported."""

import os
import signal


def main() -> None:
    """Run the command line; until a command begins, Ctrl-C ends the process at once."""
    # A shell's background job ignores it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from busi_tune import cli

    cli.main()


def _end(*_: object) -> None:
    # An exception inside an import can be lost, or become another one.
    os.write(2, b"Interrupted before anything began.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
