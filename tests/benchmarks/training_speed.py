"""Training speed of ResNet50: compared with a usual notebook loop, and with the machine's matrix products.

    python tests/benchmarks/training_speed.py --data FOLDER [--rounds 3]

The three measurements take turns in each round, so a changing load affects all of them. Each loop has a process of its
own. Prints the ratios of each round, and their medians.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50

from busi_tune.config import IMAGENET_MEAN, IMAGENET_STD, Config
from busi_tune.data.dataset import balanced_weights, open_dataset
from busi_tune.progress import Silent
from busi_tune.training.batches import class_weights, to_device, training_batches
from busi_tune.training.fit import train_step
from busi_tune.training.hardware import keep_memory, resolve
from busi_tune.training.state import TrainingState

GFLOP_AN_IMAGE = 24.6
BATCHES = 6


def matrix_rate(dtype: torch.dtype) -> float:
    """The rate of a product of two 4096 x 4096 matrices, in GFLOP/s."""
    left, right = torch.randn(4096, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    left @ right
    started = time.perf_counter()
    for _ in range(4):
        left @ right
    return 4 * 2 * 4096**3 / (time.perf_counter() - started) / 1e9


class UsualLoop:
    """The loop of a usual notebook: ImageFolder, DataLoader with two workers, float32, NCHW."""

    def __init__(self, data: Path) -> None:
        steps = [
            transforms.Resize((224, 224)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
        images = ImageFolder(str(data), transforms.Compose(steps))
        labels = torch.tensor(images.targets).numpy()
        share = balanced_weights(labels, 3)
        sampler = WeightedRandomSampler(share[labels].tolist(), len(labels))
        self.loader = DataLoader(images, batch_size=32, sampler=sampler, num_workers=2)
        self.model = resnet50(num_classes=3)
        self.loss = nn.CrossEntropyLoss(weight=torch.tensor(share, dtype=torch.float32))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-2)

    def images_per_second(self) -> float:
        """The rate over some batches, without the first, in which workers start."""
        self.model.train()
        started, count = 0.0, 0
        for number, (images, labels) in enumerate(self.loader):
            if number == 1:
                started = time.perf_counter()
            if number == 1 + BATCHES // 2:
                break
            loss = self.loss(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            count += len(labels) if number >= 1 else 0
        return count / (time.perf_counter() - started)


class OurLoop:
    """The training step of busi-tune, with the settings of `baseline`."""

    def __init__(self, data: Path) -> None:
        keep_memory()
        config = Config(weights="none").replace(**resolve("auto", "auto"))
        dataset = open_dataset(data, config, Silent())
        part = dataset.part("train", config.image_size, Silent())
        self.images = to_device(part, config.device, mean=config.mean, std=config.std)
        self.state = TrainingState.start(config, 3)
        self.weights = class_weights(self.images.host_labels, 3, config.device, balanced=True)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return training_batches(self.images, 1, batch_size=self.state.config.batch_size, balanced=True, flip=0.5)

    def images_per_second(self) -> float:
        """The rate over some batches, without the first."""
        self.state.model.train()
        started, count = 0.0, 0
        for number, (images, labels) in enumerate(self._batches()):
            if number == 1:
                started = time.perf_counter()
            if number == 1 + BATCHES:
                break
            train_step(self.state, images, labels, self.weights)
            count += len(labels) if number >= 1 else 0
        return count / (time.perf_counter() - started)


def serve(kind: str, data: Path, pipe: Any) -> None:
    """A process that measures on each request; its last answer is its peak memory in GB."""
    loop = UsualLoop(data) if kind == "usual" else OurLoop(data)
    while pipe.recv():
        pipe.send(loop.images_per_second())
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for kind in ("usual", "ours"):
        here, there = context.Pipe()
        context.Process(target=serve, args=(kind, options.data, there)).start()
        pipes[kind] = here
    gains, shares = [], []
    for number in range(1, options.rounds + 1):
        speed = {}
        for kind, pipe in pipes.items():
            pipe.send(True)
            speed[kind] = pipe.recv()
        rate = matrix_rate(torch.bfloat16)
        gains.append(speed["ours"] / speed["usual"])
        shares.append(speed["ours"] * GFLOP_AN_IMAGE / rate)
        print(
            f"round {number}: usual {speed['usual']:.1f} images/s, ours {speed['ours']:.1f} ({gains[-1]:.2f} times); "
            f"matrix rate {rate:.0f} GFLOP/s, of which ours uses {shares[-1]:.2f}"
        )
    for pipe in pipes.values():
        pipe.send(False)
    memory = {kind: pipe.recv() for kind, pipe in pipes.items()}
    print(f"median: {statistics.median(gains):.2f} times the usual loop, {statistics.median(shares):.2f} of the rate")
    print(f"peak memory: ours {memory['ours']:.2f} GB, usual {memory['usual']:.2f} GB and its workers")


if __name__ == "__main__":
    main()
