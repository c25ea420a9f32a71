"""The device, precision, threads and memory settings of this machine."""

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

# A process is short of processors if it uses fewer than ENOUGH for each thread. It is judged after LONG_ENOUGH seconds.
ENOUGH, LONG_ENOUGH = 0.8, 20.0

T = TypeVar("T")


class Computing(TypedDict):
    """The device and the precision of a run, as in its configuration."""

    device: str
    precision: str


def resolve(device: str, precision: str) -> Computing:
    """Replace `auto` with the device and the precision of this machine, so that a run's configuration records them.

    Raises:
        ConfigError: `device` is a GPU that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        _check_cuda(device)
    if precision == "auto":
        precision = "bfloat16" if native_bfloat16(device) else "float32"
    return {"device": device, "precision": precision}


def on_this_machine(device: str) -> str:
    """The device on which to evaluate a run that was trained on `device`: the CPU if this machine has no GPU."""
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
    """The number of threads that PyTorch uses on a CPU."""
    return torch.get_num_threads()


def gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def confine(threads: int, gpu: str | None) -> None:
    """Limit this process to `threads` threads and to one GPU. Call it before the first computation."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)


class Processors:
    """Compares the number of processors that this process uses in training with its number of threads."""

    def __init__(self) -> None:
        self.seconds, self.used, self.last = 0.0, 0.0, time.process_time()
        self.told = False

    def lacking(self, seconds: float) -> str:
        """A notice, given only once, if threads had to wait for processors. `seconds` is the time of the last epoch."""
        now = time.process_time()
        self.seconds, self.used, self.last = self.seconds + seconds, self.used + now - self.last, now
        had = self.used / max(self.seconds, 1e-9)
        if self.told or self.seconds < LONG_ENOUGH or not contended(had, threads(), os.getloadavg()[0]):
            return ""
        self.told = True
        return (
            f"This process gets only {had:.1f} of {threads()} processors, because other processes are busy. Its "
            "threads wait for each other, so fewer threads may be faster: set OMP_NUM_THREADS=1 (last digits change)."
        )


def contended(had: float, count: int, load: float) -> bool:
    """Whether `count` threads that used `had` processors had to wait for other processes, at this load of the machine.

    Threads that wait for each other also use processor time. Fewer processors than threads therefore point to other
    processes. A small network leaves some processors idle, so the load must exceed the number of processors, too.
    """
    return count > 1 and had < ENOUGH * count and load > (os.cpu_count() or 1) + 0.5


def environment() -> dict[str, Json]:
    """The versions and facts of the machine that, with the configuration, determine the last bits of results."""
    return {
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def abilities() -> list[str]:
    """The instruction sets for fast arithmetic of this machine's CPU, by their names in PyTorch."""
    return sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True)


def keep_memory() -> None:
    """Let glibc reuse freed activations instead of asking the kernel for zeroed pages in every step.

    Without this call, page faults take a fifth of a training step on a CPU. Does nothing on systems without glibc.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_explained(work: Iterator[T], device: str, load: str) -> Iterator[T]:
    """Yield from `work`, and turn an out-of-memory error into one sentence that names `load`.

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
