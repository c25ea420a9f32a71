"""Images on the device, and which of them a batch holds: flips, normalisation and the sampler's draws."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from busi_tune.config import Config
from busi_tune.data.dataset import Part, balanced_weights


def mixed_seed(seed: int, epoch: int) -> int:
    """A 63-bit seed that is a function of both; near seeds and epochs give unrelated streams."""
    low, high = np.random.SeedSequence((seed, epoch)).generate_state(2, dtype=np.uint32)
    return (int(high) << 31) ^ int(low)


@dataclass(frozen=True)
class DeviceImages:
    """Images (any, size, size, 3) uint8 on one device, and the n of them that are meant: `images[rows]`.

    `labels` (n,) int64 stand beside them; `host_labels` are the same in host memory, for drawing from them must
    not wait for a GPU.
    """

    images: Tensor
    rows: Tensor
    labels: Tensor
    host_labels: NDArray[np.int64]
    mean: Tensor
    deviation: Tensor

    def batch(self, chosen: Tensor, flipped: Tensor | None = None) -> Tensor:
        """Normalised float32 images (len(chosen), 3, size, size), channels last; some mirrored left to right."""
        pixels = self.images[self.rows[chosen]]
        if flipped is not None:
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(2), pixels)
        return ((pixels.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)


def to_device(part: Part, config: Config) -> DeviceImages:
    """Put one split's images on the device: copied to a GPU, on a CPU the memory map that all workers share."""
    on_cpu = config.device == "cpu"
    rows = part.rows if on_cpu else np.arange(len(part.rows))
    return DeviceImages(
        images=torch.from_numpy(part.images if on_cpu else part.pixels()).to(config.device),
        rows=torch.from_numpy(rows).to(config.device),
        labels=torch.from_numpy(part.labels).to(config.device),
        host_labels=part.labels,
        mean=torch.tensor(config.mean, device=config.device) * 255,
        deviation=torch.tensor(config.std, device=config.device) * 255,
    )


def class_weights(labels: NDArray[np.int64], config: Config, classes: int) -> Tensor:
    """The loss's weight of each class, (classes,) float32 on the device: balanced, or ones."""
    weights = balanced_weights(labels, classes) if config.class_weights else np.ones(classes)
    return torch.tensor(weights, dtype=torch.float32, device=config.device)


def training_batches(data: DeviceImages, config: Config, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch: (images, labels). Draws and flips are a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mixed_seed(config.seed, epoch))
    count = len(data.labels)
    sampler: Sampler[int] = RandomSampler(range(count), generator=generator)
    if config.weighted_sampler:
        share = balanced_weights(data.host_labels, int(data.host_labels.max()) + 1)[data.host_labels]
        sampler = WeightedRandomSampler(share.tolist(), count, replacement=True, generator=generator)
    order = torch.tensor(list(sampler), device=data.labels.device)
    chance = torch.rand(count, generator=generator)
    flipped = (chance < config.horizontal_flip).to(data.labels.device)
    sizes = [config.batch_size] * (count // config.batch_size)
    if count % config.batch_size:
        sizes.append(count % config.batch_size)
    if len(sizes) > 1 and sizes[-1] == 1:
        # A batch of one has no batch statistics: it joins the one before.
        sizes[-2:] = [sizes[-2] + 1]
    for rows, mirrored in zip(torch.split(order, sizes), torch.split(flipped, sizes), strict=True):
        yield data.batch(rows, mirrored), data.labels[rows]
