"""The training loop, a generator that yields one record for each epoch."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from busi_tune.errors import TrainingDiverged
from busi_tune.evaluation.metrics import accuracy, confusion_matrix, macro_f1
from busi_tune.training.batches import DeviceImages, batch_sizes, class_weights, mixed_seed, training_batches
from busi_tune.training.epochs import Epoch
from busi_tune.training.state import TrainingState

EVALUATION_BATCH = 64
# Called after each batch with the number of finished epochs and the finished share of the current epoch.
Within = Callable[[int, float], None]


def unheard(done: int, share: float) -> None:
    """Ignore the report on a batch."""


def fit(
    state: TrainingState, train: DeviceImages, validation: DeviceImages, until: int, within: Within = unheard
) -> Iterator[Epoch]:
    """Train `state` to epoch `until` or until it has a stop reason. Yields the record of each epoch.

    At each yield, `state` is the state after that epoch and can be saved. Another call of `fit` continues from it.

    Raises:
        TrainingDiverged: the training loss or the validation loss is not finite.
    """
    config = state.config
    weights = class_weights(train.host_labels, state.classes, config.device, balanced=config.class_weights)
    batches = len(batch_sizes(len(train.host_labels), config.batch_size))
    batches += math.ceil(len(validation.host_labels) / EVALUATION_BATCH)
    while state.epoch < until and not state.stop_reason:
        number = state.epoch + 1
        learning_rate = state.learning_rate
        numbers = count(1)

        def batch_done(done: int = state.epoch, numbers: Iterator[int] = numbers) -> None:
            within(done, next(numbers) / batches)

        started = time.perf_counter()
        train_loss = train_epoch(state, train, weights, number, batch_done)
        trained = time.perf_counter()
        logits = logits_of(state.model, validation, config.precision, batch_done)
        val_loss = weighted_loss(logits, validation.labels, weights)
        predicted = logits.argmax(dim=1).double()
        # The host waits for the device only here, once in each epoch.
        answer = torch.cat([torch.stack([train_loss, val_loss]), predicted]).cpu().numpy()
        losses = answer[:2].tolist()
        _check_finite(losses, number)
        matrix = confusion_matrix(validation.host_labels, answer[2:].astype(np.int64), state.classes)
        state.scheduler.step(losses[1])
        record = Epoch(
            epoch=number,
            train_loss=losses[0],
            val_loss=losses[1],
            val_accuracy=float(accuracy(matrix)),
            val_macro_f1=float(macro_f1(matrix)),
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
            images_per_second=len(train.host_labels) / (trained - started),
        )
        state.history.append(record)
        state.watcher.see(record)
        yield record


def train_epoch(
    state: TrainingState, data: DeviceImages, weights: Tensor, epoch: int, batch_done: Callable[[], None] | None = None
) -> Tensor:
    """Train for one epoch. Returns the weighted mean loss over all its images, a float64 scalar on the device."""
    config = state.config
    seed = mixed_seed(config.seed, epoch)
    # Dropout and stochastic depth draw from the global generator.
    torch.manual_seed(seed)
    state.model.train()
    total = torch.zeros(2, dtype=torch.float64, device=weights.device)
    batches = training_batches(
        data, seed, batch_size=config.batch_size, balanced=config.weighted_sampler, flip=config.horizontal_flip
    )
    for images, labels in batches:
        loss = train_step(state, images, labels, weights)
        share = weights[labels].sum()
        total += torch.stack([loss * share, share])
        if batch_done is not None:
            batch_done()
    return total[0] / total[1]


def train_step(state: TrainingState, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Take one optimiser step. Returns the weighted mean loss of the batch before the step, a scalar on the device."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=state.config.precision == "bfloat16"):
        logits = state.model(images)
    loss = cross_entropy(logits.float(), labels, weight=weights)
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    state.optimizer.step()
    return loss.detach()


@torch.inference_mode()
def logits_of(
    model: nn.Module, data: DeviceImages, precision: str, batch_done: Callable[[], None] | None = None
) -> Tensor:
    """The logits of all images, in order: float32 (n, classes) on the device. Sets the model to evaluation mode."""
    model.eval()
    parts = []
    for rows in torch.split(torch.arange(len(data.labels), device=data.labels.device), EVALUATION_BATCH):
        images = data.batch(rows)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            parts.append(model(images).float())
        if batch_done is not None:
            batch_done()
    return torch.cat(parts)


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The cross-entropy sum(w * loss) / sum(w) over all images: a float64 scalar on the device."""
    return cross_entropy(logits.double(), labels, weight=weights.double())


def _check_finite(losses: list[float], epoch: int) -> None:
    for name, value in zip(("training", "validation"), losses, strict=True):
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"The {name} loss of epoch {epoch} is {value}, which no further epoch can repair; lower the learning "
                "rate or use --precision float32."
            )


def float32_logits(model: nn.Module, data: DeviceImages) -> NDArray[np.float32]:
    """The logits for the final metrics: float32 (n, classes), computed in float32 after training in any precision."""
    return logits_of(model.to(device=data.labels.device), data, "float32").cpu().numpy()
