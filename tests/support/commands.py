"""Commands of busi-tune in child processes: any kind of end is recorded and judged."""

import json
import multiprocessing
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

# libtiff prints its own messages to stderr: `ZIPDecode: Decoding error at scanline 0.`
LIBTIFF = re.compile(r"[\w.]+: ")


@dataclass(frozen=True)
class Outcome:
    """The result of a command: exit code (below 0: minus the signal), output, processor seconds and peak memory."""

    code: int | None
    out: str
    error: str
    seconds: float
    memory: int


def _command(arguments: list[str], folder: str, report: str) -> None:
    """Runs a command in this process, in `folder`; output and measurements go to `report` and files next to it."""
    for number, name in ((1, ".out"), (2, ".error")):
        os.dup2(os.open(report + name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.chdir(folder)
    from busi_tune.cli import exit_code

    code = exit_code(arguments)
    sys.stdout.flush()
    unit = 1 if sys.platform == "darwin" else 1024
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # Processor time, because wall time on a busy machine could look like a hang.
    facts = [sum(who.ru_utime + who.ru_stime for who in used), max(who.ru_maxrss for who in used) * unit]
    Path(report).write_text(json.dumps(facts))
    sys.exit(code)


def outcome(arguments: list[str], folder: Path, report: Path, patience: float) -> Outcome:
    """Runs a command in a child process; `code` is None if it takes longer than `patience` seconds."""
    context = multiprocessing.get_context("forkserver")
    # The imports take longer than a command, so the server process imports once.
    context.set_forkserver_preload(
        ["__main__", "commands", "busi_tune.inference.inputs", "busi_tune.cli.prediction_formats"]
    )
    report.unlink(missing_ok=True)
    process = context.Process(target=_command, args=(arguments, str(folder), str(report)))
    process.start()
    process.join(patience)
    code = process.exitcode
    process.kill()
    process.join()
    seconds, memory = json.loads(report.read_text()) if report.exists() else (0.0, 0)
    out, error = (Path(f"{report}{name}").read_text(errors="replace") for name in (".out", ".error"))
    return Outcome(code, out, error, seconds, memory)


def judge(found: Outcome) -> str:
    """The kind of outcome in a word or two: an answer, a row with an error, or a refusal.

    Any other outcome is an error, described in full.
    """
    lines = [line for line in found.error.splitlines() if not LIBTIFF.match(line)]
    if found.code == 0 and not lines and "predicted" in json.loads(found.out):
        return "answer"
    if found.code == 1 and not lines and found.out and "error" in json.loads(found.out):
        return "row with an error"
    if found.code in {1, 2} and not found.out and len(lines) == 1 and lines[0].startswith("busi-tune: "):
        return "refusal"
    return f"exit code {found.code}: {found.out[-200:]} {found.error[-300:]}"
