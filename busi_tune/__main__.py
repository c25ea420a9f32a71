"""The entry point of `busi-tune` and of `python -m busi_tune`. It handles Ctrl-C before any slow import."""

import os
import signal


def main() -> None:
    """Run the command line. Until a command starts, Ctrl-C ends the process at once."""
    # A background job of a shell ignores SIGINT. Keep that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from busi_tune import cli

    cli.main()


def _end(*_: object) -> None:
    # An exception raised during an import can be lost or replaced by another one.
    os.write(2, b"Interrupted before anything began.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
