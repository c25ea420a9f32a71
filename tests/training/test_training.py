"""The training loop, compared with PyTorch, scikit-learn and plain training without early stopping."""

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision import transforms

from busi_tune.config import Config
from busi_tune.data.dataset import Part, balanced_weights
from busi_tune.data.split import Split
from busi_tune.errors import TrainingDiverged
from busi_tune.evaluation.intervals import exact
from busi_tune.evaluation.metrics import Answers, edges, numbers
from busi_tune.training import hardware, runs
from busi_tune.training.batches import DeviceImages, class_weights, mixed_seed, to_device, training_batches
from busi_tune.training.epochs import Epoch, Watcher
from busi_tune.training.fit import fit, logits_of, train_epoch, weighted_loss
from busi_tune.training.state import TrainingState


def part(count: int, seed: int, size: int = 32) -> Part:
    """Noisy images whose brightness depends on the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    level = 60 + 60 * labels[:, None, None, None]
    images = np.clip(level + generator.normal(0, 25, (count, size, size, 3)), 0, 255).astype(np.uint8)
    return Part(images, np.arange(count), labels.astype(np.int64), tuple(map(str, range(count))))


def on_device(given: Part, config: Config) -> DeviceImages:
    """The images of a split, on the configuration's device."""
    return to_device(given, config.device, mean=config.mean, std=config.std)


def batches(data: DeviceImages, config: Config, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The training batches of an epoch with this configuration."""
    return training_batches(
        data,
        mixed_seed(config.seed, epoch),
        batch_size=config.batch_size,
        balanced=config.weighted_sampler,
        flip=config.horizontal_flip,
    )


def record(epoch: int, accuracy: float, loss: float) -> Epoch:
    return Epoch(epoch, 1.0, loss, accuracy, 0.5, 1e-3, 1.0, 1.0)


@pytest.mark.parametrize(
    ("curve", "best", "tied", "lowest"),
    [
        ([(0.5, 1.0), (0.6, 2.0), (0.4, 0.5)], 2, [2], 3),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 2, [1, 2, 3], 2),
        ([(0.5, 0.9), (0.5, 0.9)], 1, [1, 2], 1),
        ([(0.5, 0.9), (0.7, 0.8), (0.6, 0.1), (0.7, 0.7)], 4, [2, 4], 3),
        ([(0.0, 5.0)], 1, [1], 1),
    ],
)
def test_the_best_epoch(curve: list[tuple[float, float]], best: int, tied: list[int], lowest: int) -> None:
    watcher = Watcher(patience=10)
    for epoch, (accuracy, loss) in enumerate(curve, start=1):
        watcher.see(record(epoch, accuracy, loss))
    assert (watcher.best_epoch, watcher.tied_epochs, watcher.lowest_loss_epoch) == (best, tied, lowest)


@pytest.mark.parametrize(
    ("losses", "patience", "stop"),
    [([3, 2, 1, 2, 2, 2], 3, 6), ([1, 1, 1, 1], 3, 4), ([3, 2.9, 2.8, 2.7], 1, None), ([1, 2, 0.5, 2, 2], 2, 5)],
)
def test_when_to_stop(losses: list[float], patience: int, stop: int | None) -> None:
    watcher = Watcher(patience)
    stopped = []
    for epoch, loss in enumerate(losses, start=1):
        watcher.see(record(epoch, 0.5, loss))
        stopped.append(watcher.should_stop(epoch))
    assert stopped == [epoch == stop for epoch in range(1, len(losses) + 1)]


def test_normalisation_is_torchvisions(tiny: Config) -> None:
    data = part(5, 0)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(tiny.mean, tiny.std)])
    expected = torch.stack([usual(Image.fromarray(image)) for image in data.images])
    given = on_device(data, tiny).batch(torch.arange(5))
    assert given.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-6)


def test_draws_and_flips_are_a_function_of_seed_and_epoch(tiny: Config) -> None:
    data = on_device(part(50, 0), tiny)

    def drawn(config: Config, epoch: int) -> torch.Tensor:
        return torch.cat([images for images, _ in batches(data, config, epoch)])

    first = drawn(tiny, 1)
    assert torch.equal(first, drawn(tiny, 1))
    assert not torch.equal(first, drawn(tiny, 2))
    assert not torch.equal(first, drawn(tiny.replace(seed=1), 1))
    assert len(first) == 50


def test_flips_mirror_half_of_the_images_left_to_right(tiny: Config) -> None:
    data = part(400, 0)
    data.images[:] = np.linspace(0, 255, 32).astype(np.uint8)[None, None, :, None]
    images = torch.cat([batch for batch, _ in batches(on_device(data, tiny), tiny, 1)])
    rising = (images[:, 0, 0, -1] > images[:, 0, 0, 0]).float().mean().item()
    assert 0.4 < rising < 0.6
    assert not torch.equal(images[0, 0], images[0, 0].T)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_sampler_draws_classes_equally_often_or_every_image_once(weighted: bool, tiny: Config) -> None:
    labels = np.repeat([0, 1, 2], [300, 60, 40])
    data = part(400, 0, size=2)
    unbalanced = Part(data.images, data.rows, labels, data.paths)
    config = tiny.replace(weighted_sampler=weighted)
    counts = np.zeros(3)
    for epoch in range(20):
        for _, drawn in batches(on_device(unbalanced, config), config, epoch):
            counts += np.bincount(drawn.numpy(), minlength=3)
    expected = [1 / 3, 1 / 3, 1 / 3] if weighted else [0.75, 0.15, 0.10]
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.02 if weighted else 0)


@pytest.mark.parametrize(
    ("count", "sizes"), [(32, [16, 16]), (33, [16, 17]), (34, [16, 16, 2]), (15, [15]), (17, [17])]
)
def test_no_batch_of_one(count: int, sizes: list[int], tiny: Config) -> None:
    drawn = batches(on_device(part(count, 0), tiny), tiny, 1)
    assert [len(labels) for _, labels in drawn] == sizes


def test_figures_of_two_leaked_groups_and_of_the_rest() -> None:
    """One leaked group has two images, and no leaked image is normal, so metrics that need that class are empty."""
    group = [0, 0, 1, *range(10, 22)]
    labels = np.array([0, 0, 1] + [0, 1, 2] * 4)
    names = ("benign", "malignant", "normal")
    rows = [("test", g) for g in group] + [("train", g) for g in (0, 1, 2, 3)]
    split = Split(pd.DataFrame(rows, columns=["split", "group"]), pd.DataFrame())
    predicted = np.array([0, 1, 1] + [0, 1, 2] * 3 + [2, 0, 1])
    figures = runs.test_figures(Answers(labels, np.eye(3)[predicted], names), split)
    whole, leaked, clean = figures["test"], figures["test_leaked"], figures["test_clean"]
    assert [(part["images"], part["groups"]) for part in (whole, leaked, clean)] == [(15, 14), (3, 2), (12, 12)]
    assert leaked["accuracy"] == pytest.approx(2 / 3)
    low, high = leaked["intervals"]["accuracy"]
    assert 0 <= low < 2 / 3 < high <= 1
    # Two of the three images are one group, so the interval is wider than that of three independent images.
    assert high - low > exact(2 / 3, 3)[1] - exact(2 / 3, 3)[0]
    assert leaked["per_class"]["normal"] == dict.fromkeys(
        ("precision", "recall", "f1", "roc_auc", "average_precision")
    ) | {"images": 0}
    assert "normal" not in leaked["intervals"]["per_class"]
    macro = {("macro_precision",), ("macro_recall",), ("macro_f1",), ("macro_roc_auc",)}
    assert not macro & set(numbers(leaked))
    assert not macro & set(edges(leaked["intervals"]))
    assert macro <= set(numbers(whole)) & set(numbers(clean))


def test_the_loss_of_an_epoch_is_the_weighted_mean_over_all_images(tiny: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.arange(50) % 3
    weights = torch.tensor([0.5, 1.0, 3.0])
    single = cross_entropy(logits.double(), labels, reduction="none")
    expected = (weights[labels] * single).sum() / weights[labels].sum()
    torch.testing.assert_close(weighted_loss(logits, labels, weights), expected)
    # With a learning rate near zero, the training loss equals that of an evaluation in training mode.
    config = tiny.replace(
        learning_rate=1e-8, weight_decay=0.0, weighted_sampler=False, horizontal_flip=0.0, arch="alexnet"
    )
    config = config.replace(image_size=64)
    data = on_device(part(50, 1, size=64), config)
    state = TrainingState.start(config, 3)
    for module in state.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reported = train_epoch(state, data, weights, 1)
    expected = weighted_loss(logits_of(state.model, data, "float32"), data.labels, weights)
    torch.testing.assert_close(reported, expected, rtol=1e-4, atol=0)


def test_class_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    expected = [60 / (3 * 30), 60 / (3 * 20), 60 / (3 * 10)]
    np.testing.assert_allclose(balanced_weights(labels, 3), expected)
    np.testing.assert_allclose(class_weights(labels, 3, "cpu", balanced=True).numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(class_weights(labels, 3, "cpu", balanced=False).numpy(), [1, 1, 1])


@pytest.mark.slow
def test_stopping_early_is_plain_training_for_as_many_epochs(tiny: Config) -> None:
    config = tiny.replace(epochs=60, early_stopping_patience=2, learning_rate=0.02, scheduler_patience=0)
    train, validation = on_device(part(60, 0), config), on_device(part(30, 1), config)
    early = TrainingState.start(config, 3)
    records = list(fit(early, train, validation, until=60))
    assert early.stop_reason == "early stopping"
    assert 2 < len(records) < 60
    assert len({r.learning_rate for r in records}) > 1
    plain = TrainingState.start(config.replace(epochs=len(records), early_stopping_patience=1000), 3)
    list(fit(plain, train, validation, until=60))
    expected = plain.weights()
    for name, value in early.weights().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_saved_and_restored_after_every_epoch_is_bit_equal(arch: str, precision: str, tiny: Config) -> None:
    config = tiny.replace(arch=arch, precision=precision, scheduler_patience=0, epochs=4, image_size=64)
    train, validation = on_device(part(40, 0, size=64), config), on_device(part(20, 1, size=64), config)
    whole = TrainingState.start(config, 3)
    expected = [(r.train_loss, r.val_loss, r.learning_rate) for r in fit(whole, train, validation, until=4)]
    state = TrainingState.start(config, 3)
    given = []
    for epoch in range(1, 5):
        given += [(r.train_loss, r.val_loss, r.learning_rate) for r in fit(state, train, validation, until=epoch)]
        state = TrainingState.restore(config, 3, state.tensors(), state.values())
    assert given == expected
    restored = state.tensors()
    for name, value in whole.tensors().items():
        assert torch.equal(value, restored[name]), name


def test_a_loss_that_is_not_finite_stops_training(tiny: Config) -> None:
    data = on_device(part(40, 0), tiny)
    state = TrainingState.start(tiny, 3)
    with torch.no_grad():
        next(state.model.parameters())[0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"The training loss of epoch 1 is nan.*lower the learning rate"):
        list(fit(state, data, data, until=2))
    assert state.epoch == 0


@pytest.mark.parametrize(
    ("had", "count", "load", "expected"),
    [(1.2, 2, 3.0, True), (1.7, 2, 3.0, False), (0.5, 1, 3.0, False), (1.2, 2, 0.9, False)],
    ids=["others are busy", "it has enough", "one thread waits for none", "a small network on an idle machine"],
)
def test_whether_threads_wait_for_processors(had: float, count: int, load: float, expected: bool) -> None:
    """`load` is a multiple of the number of cores."""
    assert hardware.contended(had, count, load * (os.cpu_count() or 1)) == expected


def test_processors_that_are_lacking_are_told_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        processors = hardware.Processors()
        busy = os.getloadavg()[0] > (os.cpu_count() or 1) + 0.5
        told = [processors.lacking(seconds) for seconds in (hardware.LONG_ENOUGH / 2, hardware.LONG_ENOUGH, 9.0)]
    finally:
        torch.set_num_threads(before)
    assert [bool(text) for text in told] == [False, busy, False]
    assert not busy or told[1].startswith("This process gets only 0.0 of 2 processors, ")
