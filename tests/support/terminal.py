"""A pseudo-terminal of a given width for a command, and the text on its screen at the end."""

import os
import re
import struct
from pathlib import Path

PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def in_a_terminal(command: list[str], folder: Path, columns: int) -> tuple[int, str]:
    """Runs a command in `folder`, in a terminal of `columns` columns; returns its exit code and all its output."""
    # These modules do not exist on Windows.
    import fcntl
    import pty
    import termios

    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.chdir(folder)
        os.environ.pop("COLUMNS", None)
        os.environ |= {"TERM": "xterm-256color", "XDG_CACHE_HOME": str(folder / "cache")}
        os.execv(command[0], command)  # noqa: S606 - the command is the test's own
    written = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            # Linux raises this error when the program in the terminal has ended.
            break
        if not data:
            break
        written += data
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written.decode(errors="replace")


def shown(written: str) -> list[str]:
    """The lines on the screen at the end, after carriage returns, cursor movements and deletions."""
    rows, row, column = [""], 0, 0
    for piece in PIECE.finditer(written):
        text = piece[0]
        if text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif piece[2] == "A":
            row = max(0, row - int(piece[1] or 1))
        elif piece[2] == "K":
            rows[row] = "" if piece[1] == "2" else rows[row][:column]
        elif piece[2] is None:
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in rows if line.strip()]
