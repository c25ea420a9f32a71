"""Commands of busi-tune in processes of their own, which may end in any way: what each did, and how to judge it."""

import json
import multiprocessing
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

# The library behind Pillow names on stderr itself what it does not like: `ZIPDecode: Decoding error at scanline 0.`
LIBTIFF = re.compile(r"[\w.]+: ")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code (below 0: the signal that ended it), what it printed, and what it took."""

    code: int | None
    out: str
    error: str
    seconds: float
    memory: int


def _command(arguments: list[str], folder: str, report: str) -> None:
    """In a process of its own: run a command in `folder`, its output going to files beside `report`."""
    for number, name in ((1, ".out"), (2, ".error")):
        os.dup2(os.open(report + name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.chdir(folder)
    from busi_tune.cli import exit_code

    code = exit_code(arguments)
    sys.stdout.flush()
    unit = 1 if sys.platform == "darwin" else 1024
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # Processor time, so that a busy machine cannot make it look like a hang.
    facts = [sum(who.ru_utime + who.ru_stime for who in used), max(who.ru_maxrss for who in used) * unit]
    Path(report).write_text(json.dumps(facts))
    sys.exit(code)


def outcome(arguments: list[str], folder: Path, report: Path, patience: float) -> Outcome:
    """Run a command in a process of its own; `code` is None where it did not end within `patience` seconds."""
    context = multiprocessing.get_context("forkserver")
    # Imported once: what is to be judged takes less time than the imports.
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
    """In a word what came of it: an answer, a row with an error, a refusal; or in a sentence what must not be."""
    lines = [line for line in found.error.splitlines() if not LIBTIFF.match(line)]
    if found.code == 0 and not lines and "class" in json.loads(found.out):
        return "answer"
    if found.code == 1 and not lines and found.out and "error" in json.loads(found.out):
        return "row with an error"
    if found.code in {1, 2} and not found.out and len(lines) == 1 and lines[0].startswith("busi-tune: "):
        return "refusal"
    return f"exit code {found.code}: {found.out[-200:]} {found.error[-300:]}"
