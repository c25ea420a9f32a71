"""This machine's device, precision and threads, and memory that is kept between steps."""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import TypedDict, TypeVar

import torch

from busi_tune.errors import ConfigError, OutOfMemory
from busi_tune.results import Json

# glibc's mallopt parameters (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

# The share of its threads' processors under which a process is told of it, and the seconds before it is judged.
ENOUGH, LONG_ENOUGH = 0.8, 20.0

T = TypeVar("T")


class Computing(TypedDict):
    """What a run computes with: fields of its configuration."""

    device: str
    precision: str


def resolve(device: str, precision: str) -> Computing:
    """Replace `auto` by what this machine has, so that a run's config says what really computed it.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        _check_cuda(device)
    if precision == "auto":
        precision = "bfloat16" if native_bfloat16(device) else "float32"
    return {"device": device, "precision": precision}


def on_this_machine(device: str) -> str:
    """The device to evaluate a run that another machine has trained on `device`: the CPU where there is no GPU."""
    return device if torch.cuda.is_available() else "cpu"


def _check_cuda(device: str) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {device}, but PyTorch sees no CUDA GPU here; use --device cpu.")
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if not number.isdigit() or int(number) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device}, but this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")


def native_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware: a GPU from sm_80, AVX512-BF16 or AMX."""
    if device != "cpu":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def threads() -> int:
    """How many threads PyTorch computes with on a CPU."""
    return torch.get_num_threads()


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES knows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def confine(threads: int, gpu: str | None) -> None:
    """Let this process, which has computed nothing yet, use so many threads and this GPU alone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)


class Processors:
    """How many processors this process has while it trains, against the threads that it computes with."""

    def __init__(self) -> None:
        self.seconds, self.used, self.last = 0.0, 0.0, time.process_time()
        self.told = False

    def lacking(self, seconds: float) -> str:
        """A sentence, once, if threads had to wait for processors; `seconds` is what the last epoch took."""
        now = time.process_time()
        self.seconds, self.used, self.last = self.seconds + seconds, self.used + now - self.last, now
        had = self.used / max(self.seconds, 1e-9)
        if self.told or self.seconds < LONG_ENOUGH or not contended(had, threads(), os.getloadavg()[0]):
            return ""
        self.told = True
        return (
            f"This process has {had:.1f} of the {threads()} processors that its threads compute on, because others are "
            "busy; threads wait for each other, so fewer may be faster: OMP_NUM_THREADS=1 (last digits change)."
        )


def contended(had: float, count: int, load: float) -> bool:
    """Whether `count` threads that `had` so many processors had to wait for them, at this load of the machine.

    Threads that wait for each other take processor time as well, so less than that means other processes. A small
    network leaves some idle by itself, so the load has to exceed the machine, too.
    """
    return count > 1 and had < ENOUGH * count and load > (os.cpu_count() or 1) + 0.5


def environment() -> dict[str, Json]:
    """The versions and the machine, which beside the configuration decide the last bit of a result."""
    return {
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def abilities() -> list[str]:
    """The instructions that this machine's CPU has for fast arithmetic, as PyTorch names them."""
    return sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True)


def keep_memory() -> None:
    """Let glibc reuse freed activations instead of asking the kernel for zeroed pages in every step.

    Without it a fifth of a training step on a CPU goes into page faults. On systems without glibc it does nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_explained(work: Iterator[T], device: str, load: str) -> Iterator[T]:
    """Pass on what `work` yields, and turn its running out of memory into one sentence that names `load`.

    Raises:
        OutOfMemory: `device` has too little memory.
    """
    try:
        yield from work
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is too small for {load}; lower --batch-size or --image-size."
        ) from error
