"""The CUDA branches on fake tensors: all tensors are on the device, and no step waits for the device.

PyTorch's fake tensors have shapes, types and devices, but no values. Reading a value, or an operation on two
devices, raises an error. They support batches, the forward pass, the loss and the evaluation in float32.
Autocast to bfloat16, the backward pass, the optimiser and checkpoints need a real GPU.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import cross_entropy

from busi_tune.config import Config
from busi_tune.data.dataset import Part
from busi_tune.training.batches import DeviceImages, class_weights, to_device
from busi_tune.training.fit import EVALUATION_BATCH, logits_of, weighted_loss
from busi_tune.training.model import untrained

CUDA = torch.device("cuda", 0)
COUNT, SIZE, CLASSES = EVALUATION_BATCH + 3, 32, 3
CONFIG = Config(arch="resnet18", weights="none", image_size=SIZE)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def images() -> DeviceImages:
    """Images on the fake GPU, moved there in the same way as in a run."""
    labels = np.arange(COUNT, dtype=np.int64) % CLASSES
    pixels = np.zeros((COUNT, SIZE, SIZE, 3), np.uint8)
    part = Part(images=pixels, rows=np.arange(COUNT), labels=labels, paths=tuple(f"{row}.png" for row in labels))
    return to_device(part, "cuda", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def model_there() -> torch.nn.Module:
    """A model created on the fake GPU. A model cannot be moved there, because fake parameters have no storage."""
    with CUDA:
        return untrained(CONFIG, CLASSES)


@pytest.mark.usefixtures("fake")
def test_all_of_a_split_lies_on_the_device() -> None:
    data = images()
    tensors = [data.images, data.rows, data.labels, data.mean, data.deviation]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert isinstance(data.host_labels, np.ndarray), "draws must not wait for the GPU"


@pytest.mark.usefixtures("fake")
def test_a_batch_and_its_loss_are_computed_on_the_device() -> None:
    data = images()
    chosen = torch.arange(16, device=CUDA)
    batch = data.batch(chosen, torch.ones(16, dtype=torch.bool, device=CUDA))
    assert (batch.device, batch.shape, batch.dtype) == (CUDA, (16, 3, SIZE, SIZE), torch.float32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    model = model_there()
    logits = model(batch)
    assert (logits.device, logits.dtype) == (CUDA, torch.float32)
    weights = class_weights(data.host_labels, CLASSES, "cuda", balanced=True)
    loss = cross_entropy(logits.float(), data.labels[chosen], weight=weights)
    assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())


@pytest.mark.usefixtures("fake")
def test_the_evaluation_stays_on_the_device() -> None:
    data = images()
    model = model_there()
    logits = logits_of(model, data, "float32")
    assert (logits.device, logits.shape, logits.dtype) == (CUDA, (COUNT, CLASSES), torch.float32)
    weights = class_weights(data.host_labels, CLASSES, "cuda", balanced=False)
    loss = weighted_loss(logits, data.labels, weights)
    assert (loss.device, loss.dtype) == (CUDA, torch.float64)


@pytest.mark.usefixtures("fake")
def test_what_waits_for_the_device_raises_here() -> None:
    """A read of a value raises an error, so the tests above can fail."""
    with pytest.raises(DataDependentOutputException):
        images().mean.sum().item()


@pytest.mark.usefixtures("fake")
def test_a_tensor_on_another_device_raises_here() -> None:
    data = images()
    with pytest.raises(RuntimeError, match="on the same device"):
        data.batch(torch.arange(4, device=CUDA), None) + torch.ones(4, 1, 1, 1)
