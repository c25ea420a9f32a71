"""Speed of a network on this machine: eager PyTorch against ONNX Runtime in float32, int8 and float16.

    python tests/benchmarks/inference_speed.py [--arch resnet50] [--size 224] [--threads 2] [--rounds 15]

All forms run in one process and take turns in each round, so a changing load affects all of them. The threads of a
session sleep while another one is measured. The weights are random, because the time does not depend on them.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from busi_tune.config import Config
from busi_tune.export import quantisation
from busi_tune.export.gate import latency
from busi_tune.export.graphs import folded
from busi_tune.training.exportable import ExportableModel, to_onnx
from busi_tune.training.model import untrained

# isort: split
# After busi_tune, which disables ONNX Runtime's telemetry.
from onnxruntime import InferenceSession

BATCHES = (1, 32)
EAGER, CHANNELS_LAST = "PyTorch", "PyTorch channels_last"
FLOAT32, INT8, FLOAT16 = "ONNX Runtime float32", "ONNX Runtime int8", "ONNX Runtime float16"
RATIOS = ((FLOAT32, CHANNELS_LAST), (INT8, FLOAT32), (INT8, EAGER), (INT8, CHANNELS_LAST), (FLOAT16, FLOAT32))


Call = Callable[[torch.Tensor], object]


class Eager:
    """An exportable model in PyTorch, with one memory format."""

    def __init__(self, model: ExportableModel, memory_format: torch.memory_format) -> None:
        self.model, self.memory_format = model, memory_format

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> object:
        """The model's outputs for uint8 images (n, 3, size, size)."""
        return self.model(pixels.contiguous(memory_format=self.memory_format))


def exportable(config: Config) -> ExportableModel:
    """A model with the same random weights on each call."""
    torch.manual_seed(0)
    return ExportableModel(untrained(config, 3), config.mean, config.std).eval()


def calls(config: Config, threads: int) -> dict[str, Call]:
    """Each form of the network as a function of uint8 images (n, 3, size, size)."""
    size = config.image_size
    network = to_onnx(exportable(config), size)
    noise = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    forms = {
        FLOAT32: folded(network),
        INT8: quantisation.int8(network, noise),
        FLOAT16: quantisation.float16(network),
    }
    eager: dict[str, Call] = {
        EAGER: Eager(exportable(config), torch.contiguous_format),
        CHANNELS_LAST: Eager(exportable(config).to(memory_format=torch.channels_last), torch.channels_last),
    }
    sessions = {name: quantisation.session(data, threads) for name, data in forms.items()}
    return eager | {name: partial(answer, session) for name, session in sessions.items()}


def answer(session: InferenceSession, pixels: torch.Tensor) -> object:
    """ONNX Runtime's outputs for uint8 images (n, 3, size, size)."""
    return session.run(None, {"pixels": pixels.numpy()})


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    forms = calls(Config(arch=options.arch, weights="none", image_size=options.size), options.threads)
    for batch in BATCHES:
        pixels = torch.randint(0, 256, (batch, 3, options.size, options.size), dtype=torch.uint8)
        rounds = options.rounds if batch == 1 else max(3, options.rounds // 5)
        times = latency({name: partial(call, pixels) for name, call in forms.items()}, rounds)
        print(f"batch {batch}, {options.threads} threads, {options.arch} at {options.size}, median of {rounds} rounds:")
        for name, milliseconds in times.items():
            print(f"  {name:24} {milliseconds:8.1f} ms {1000 * batch / milliseconds:8.1f} images/s")
        for fast, slow in RATIOS:
            print(f"  {fast} is {times[slow] / times[fast]:.2f} times {slow}")


if __name__ == "__main__":
    main()
