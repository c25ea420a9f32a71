"""Run a command in a process that is killed at a chosen moment; real processes, real SIGKILL.

Processes are forked from a server that has imported PyTorch once, so that a kill costs a second and not ten.
A moment is the n-th time that the process is about to rename a file, delete one, make a folder, or commit to the
study's database: between two of these nothing on disk changes what a restart sees, but for a file that is half written,
which `Crash.at_bytes` makes.
"""

import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from sqlalchemy import Engine
from sqlalchemy.event import listen

from busi_tune.cli import exit_code

MOMENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"})


@dataclass(frozen=True)
class Crash:
    """When to die: at the n-th moment, or while a file grows beyond some bytes; 0 is never."""

    at_moment: int = 0
    at_bytes: int = 0


def server() -> ForkServerContext:
    """The context that forks from a warm interpreter."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "optuna", "busi_tune.pipeline", "busi_tune.cli"])
    return context


def run(arguments: list[str], folder: Path, crash: Crash = Crash()) -> tuple[int, int]:
    """Run busi-tune in `folder`; its exit code (-9 when it was killed) and how many moments it came by."""
    context = server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(arguments, str(folder), crash, sender))
    process.start()
    sender.close()
    moments = 0
    try:
        while True:
            moments = receiver.recv()
    except EOFError:
        process.join()
    assert process.exitcode is not None
    return process.exitcode, moments


def begin(arguments: list[str], folder: Path) -> BaseProcess:
    """Start busi-tune in `folder`, to be killed from outside at any time."""
    process = server().Process(target=_child, args=(arguments, str(folder), Crash(), None))
    process.start()
    return process


def _child(arguments: list[str], folder: str, crash: Crash, sender: Connection | None) -> None:
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
    torch.set_num_threads(1)
    with Path("output.txt").open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    count = 0

    def moment(*_: object) -> None:
        nonlocal count
        count += 1
        if count == crash.at_moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, _: moment() if event in MOMENTS else None)
    listen(Engine, "commit", moment)
    if crash.at_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (crash.at_bytes, resource.RLIM_INFINITY))
    code = exit_code(arguments)
    if sender is not None:
        sender.send(count)
    sys.stdout.flush()
    os._exit(code)
