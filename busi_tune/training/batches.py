"""Batches of images on the device: sampling, flips and normalisation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from busi_tune.data.dataset import Part, balanced_weights


def mixed_seed(seed: int, epoch: int) -> int:
    """A 63-bit seed that depends on `seed` and `epoch`. Similar seeds and epochs give unrelated streams."""
    low, high = np.random.SeedSequence((seed, epoch)).generate_state(2, dtype=np.uint32)
    return (int(high) << 31) ^ int(low)


@dataclass(frozen=True)
class DeviceImages:
    """The n images `images[rows]` on one device.

    `images` is uint8 (any, size, size, 3); `rows` and `labels` are int64 (n,). `host_labels` are the same labels in
    host memory, so that sampling does not wait for a GPU. `mean` and `deviation` (3,) are on the scale of the pixels.
    """

    images: Tensor
    rows: Tensor
    labels: Tensor
    host_labels: NDArray[np.int64]
    mean: Tensor
    deviation: Tensor

    def batch(self, chosen: Tensor, flipped: Tensor | None = None) -> Tensor:
        """Normalised float32 images (len(chosen), 3, size, size), channels last. `flipped` marks images to mirror."""
        pixels = self.images[self.rows[chosen]]
        if flipped is not None:
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(2), pixels)
        return ((pixels.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)


def to_device(part: Part, device: str, *, mean: Sequence[float], std: Sequence[float]) -> DeviceImages:
    """Put the images of one split on the device.

    A GPU gets a copy. A CPU uses the memory map that all workers share. `mean` and `std` hold one value for each
    colour channel, in 0..1.
    """
    on_cpu = device == "cpu"
    rows = part.rows if on_cpu else np.arange(len(part.rows))
    return DeviceImages(
        images=torch.from_numpy(part.images if on_cpu else part.pixels()).to(device),
        rows=torch.from_numpy(rows).to(device),
        labels=torch.from_numpy(part.labels).to(device),
        host_labels=part.labels,
        mean=torch.tensor(mean, device=device) * 255,
        deviation=torch.tensor(std, device=device) * 255,
    )


def class_weights(labels: NDArray[np.int64], classes: int, device: str, *, balanced: bool) -> Tensor:
    """The weight of each class in the loss: float32 (classes,) on the device, all 1 unless `balanced`."""
    weights = balanced_weights(labels, classes) if balanced else np.ones(classes)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def training_batches(
    data: DeviceImages, seed: int, *, batch_size: int, balanced: bool, flip: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, each as (images, labels). Draws and flips depend only on `seed`.

    With `balanced`, classes are drawn equally often. `flip` is the probability that an image is mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(data.labels)
    order = torch.tensor(list(_sampler(data.host_labels, generator, balanced=balanced)), device=data.labels.device)
    flipped = (torch.rand(count, generator=generator) < flip).to(data.labels.device)
    sizes = batch_sizes(count, batch_size)
    for rows, mirrored in zip(torch.split(order, sizes), torch.split(flipped, sizes), strict=True):
        yield data.batch(rows, mirrored), data.labels[rows]


def _sampler(labels: NDArray[np.int64], generator: torch.Generator, *, balanced: bool) -> Sampler[int]:
    if not balanced:
        return RandomSampler(range(len(labels)), generator=generator)
    share = balanced_weights(labels, int(labels.max()) + 1)[labels]
    return WeightedRandomSampler(share.tolist(), len(labels), replacement=True, generator=generator)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """The sizes of the batches of `count` images. The last batch may be smaller, or larger by one."""
    sizes = [batch_size] * (count // batch_size)
    if count % batch_size:
        sizes.append(count % batch_size)
    if len(sizes) > 1 and sizes[-1] == 1:
        # Batch normalisation needs more than one image, so a last batch of one joins the batch before it.
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
