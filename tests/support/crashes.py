"""Commands in processes that are killed at a chosen moment, with a real SIGKILL.

Processes are forked from a server that has imported PyTorch, so that a kill costs one second instead of ten.
The server has imported all of busi-tune, too.
A moment is just before the n-th operation that renames or deletes a file, makes a folder, or commits to the study's
database. Between two moments, no change on disk matters to a restart, except for partly written files:
`Crash.at_bytes` makes those.
"""

import multiprocessing
import os
import pkgutil
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

import busi_tune
from busi_tune.cli import exit_code

# What commands import only when they need it.
LATE = (
    "alembic.command",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "onnxscript.optimizer",
    "optuna.importance",
    "optuna.storages",
    "pandas",
    "plotly.graph_objects",
    "rich.live",
    "rich.progress",
    "rich.table",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.ensemble",
    "sklearn.metrics",
    "sklearn.utils.class_weight",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "torchvision",
)
MOMENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"})


@dataclass(frozen=True)
class Crash:
    """The time of the kill: at the n-th moment, or when a file exceeds some bytes; 0 means never."""

    at_moment: int = 0
    at_bytes: int = 0


def server() -> ForkServerContext:
    """The context that forks from a process with finished imports."""
    context = multiprocessing.get_context("forkserver")
    own = [module.name for module in pkgutil.walk_packages(busi_tune.__path__, "busi_tune.")]
    context.set_forkserver_preload([name for name in own if name != "busi_tune.__main__"] + list(LATE))
    return context


def run(arguments: list[str], folder: Path, crash: Crash = Crash()) -> tuple[int, int]:
    """Runs busi-tune in `folder`; returns its exit code (-9 when killed) and the number of moments that passed."""
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
    """Starts busi-tune in `folder`, so that the caller can kill it at any time."""
    process = server().Process(target=_child, args=(arguments, str(folder), Crash(), None))
    process.start()
    return process


def enter(folder: str) -> None:
    """Makes this process run in `folder`, with its cache and its output there."""
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
    torch.set_num_threads(1)
    with Path("output.txt").open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _child(arguments: list[str], folder: str, crash: Crash, sender: Connection | None) -> None:
    enter(folder)
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
