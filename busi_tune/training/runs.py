"""A run: the training of a configuration in a folder, epoch by epoch, and its final metrics."""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from busi_tune import __version__, files, results
from busi_tune.config import Config
from busi_tune.data.class_folders import SPLITS
from busi_tune.data.dataset import Dataset, Part, effective_prior, open_dataset
from busi_tune.data.split import Split
from busi_tune.errors import DataError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, Floats, softmax, summarise
from busi_tune.names import composed
from busi_tune.progress import Progress
from busi_tune.results import IDENTITY, Json, MetricsFile, TestFigures, TestSummary, TrainingValues
from busi_tune.training import run_folder
from busi_tune.training.batches import to_device
from busi_tune.training.epochs import Epoch
from busi_tune.training.exportable import best_model, checkpoint_explained
from busi_tune.training.fit import Within, fit, float32_logits, unheard
from busi_tune.training.hardware import environment, keep_memory, memory_explained, on_this_machine, resolve, threads
from busi_tune.training.run_folder import Identity
from busi_tune.training.state import TrainingState


@dataclass(frozen=True)
class Run:
    """A run folder that is open for writing: its resolved configuration and its data."""

    folder: Path
    config: Config
    dataset: Dataset

    def part(self, name: str, progress: Progress) -> Part:
        """The images of one split, in the size that the run uses."""
        return self.dataset.part(name, self.config.image_size, progress)


def open_run(folder: Path, config: Config, root: Path, progress: Progress, split_file: Path | None = None) -> Run:
    """Open the run of `config` on the images in `root`, or begin it in `folder`. The caller holds the folder's lock.

    Raises:
        RunError: the folder holds another run.
        DataError: the data cannot be used, or has changed since the run began.
        ConfigError: this machine does not have the device.
    """
    resolved = config.replace(**resolve(config.device, config.precision))
    saved = run_folder.saved_split(folder, resolved)
    place = folder / results.SPLIT
    dataset = open_dataset(root, resolved, progress, saved=saved, split_file=split_file, written_to=place)
    return begin(folder, resolved, dataset, progress)


def begin(
    folder: Path, config: Config, dataset: Dataset, progress: Progress, here: Mapping[str, Json] | None = None
) -> Run:
    """Open the run of a resolved `config` on `dataset` in `folder`. For a new run, nothing is written yet.

    `here` is the environment that trains the run, by default that of this process. A run of fewer epochs is extended
    to the epochs of `config`.

    Raises:
        DataError: the run in the folder was trained on another split.
        RunError: the run in the folder has another configuration.
        FileError: files of the run are missing or have changed.
    """
    keep_memory()
    run = Run(folder, config, dataset)
    if not (folder / IDENTITY).exists():
        return run
    known, here = _same_run(folder, config, dataset), here or environment()
    run_folder.plan_epochs(folder, known, config.epochs)
    moved = [
        f"{key} {known.environment.get(key)} -> {here[key]}" for key in here if known.environment.get(key) != here[key]
    ]
    if moved:
        progress.notice(f"{folder} began in another environment ({', '.join(moved)}): last digits may differ.")
    run_folder.settle(folder)
    run_folder.remember_data(folder, dataset.listing.root)
    return run


def _same_run(folder: Path, config: Config, dataset: Dataset) -> Identity:
    """The identity of the run in `folder`, which must be that of `config` on `dataset`."""
    known = run_folder.read_identity(folder)
    if known.split != dataset.split.fingerprint():
        raise DataError(f"The run in {folder} was made on another split of {dataset.listing.root}; use --overwrite.")
    run_folder.refuse_other(folder, known, config)
    run_folder.own_split(folder, known)
    run_folder.check_classes(folder, known, dataset.classes)
    return known


def epochs_left(folder: Path, config: Config, dataset: Dataset) -> int:
    """The number of epochs that the run of `config` in `folder` lacks at most. Nothing is written.

    Raises:
        BusiTuneError: `begin` or the resumed training would raise it.
    """
    if not (folder / IDENTITY).exists():
        return config.epochs
    _same_run(folder, config, dataset)
    state = run_folder.read_state(folder)
    if state is None or not state["checkpoints"]:
        return config.epochs
    done = len(state["history"])
    if state["stop_reason"] == run_folder.EARLY or done >= config.epochs:
        run_folder.checkpoint(folder, "best")
        return 0
    state_from(config, len(dataset.classes), saved_state(folder))
    return config.epochs - done


def introduce(config: Config, dataset: Dataset, folder: Path, progress: Progress, what: str = "Images") -> None:
    """Report the model, the device, the images and the result folder before training begins."""
    start = {"none": "random weights", "imagenet": "ImageNet weights"}.get(config.weights, f"weights {config.weights}")
    size, count = config.image_size, threads()
    progress.notice(
        f"busi-tune {__version__} trains {config.arch} ({start}, {size} x {size} pixels) on {config.device} in "
        f"{config.precision}" + (f", {count} thread{'s' * (count > 1)}." if config.device == "cpu" else ".")
    )
    parts = ", ".join(f"{part} {len(dataset.split.rows(part))}" for part in SPLITS)
    progress.notice(f"{what}: {parts}. Results go to {folder}.")


def identify(run: Run, here: Mapping[str, Json]) -> None:
    """Write the identity of a new run. config.json is written last, because its presence makes the folder a run."""
    if (run.folder / IDENTITY).exists():
        return
    config, split = run.config, run.dataset.split
    weights = run_folder.weights_sha256(config.weights)
    run_folder.remember_data(run.folder, run.dataset.listing.root)
    split.write(run.folder / results.SPLIT)
    Identity(config, run.dataset.classes, split.fingerprint(), weights, dict(here)).write(run.folder)


# The plain values of a training state, and its tensors as the content of a safetensors file.
Checkpoint = tuple[TrainingValues, bytes]


@dataclass(frozen=True)
class Saved:
    """The results of one epoch: its record, the plain values of the state, and checkpoints in safetensors format."""

    record: Epoch
    values: TrainingValues
    last: bytes
    best: bytes | None


def saved_state(folder: Path) -> Checkpoint | None:
    """The values and the checkpoint of the last committed epoch, or None if no such checkpoint is kept."""
    state = run_folder.read_state(folder)
    return (state, run_folder.checkpoint(folder, "last")) if state and "last" in state["checkpoints"] else None


def state_from(config: Config, classes: int, saved: Checkpoint | None) -> TrainingState:
    """The training state in `saved`, or the state before the first epoch if `saved` is None."""
    if saved is None:
        return TrainingState.start(config, classes)
    values, tensors = saved
    with checkpoint_explained("last"):
        return TrainingState.restore(config, classes, load(tensors), values)


def epochs(
    state: TrainingState, train_part: Part, validation: Part, until: int, within: Within = unheard
) -> Iterator[Saved]:
    """Train `state` to epoch `until` or until it has a stop reason. Yields the results of each epoch; writes no files.

    Raises:
        TrainingDiverged: a loss is not finite.
        OutOfMemory: the device has too little memory.
    """
    config = state.config
    keep_memory()
    train_images, validation_images = (
        to_device(part, config.device, mean=config.mean, std=config.std) for part in (train_part, validation)
    )
    needs = f"{config.arch} with batches of {config.batch_size} images of {config.image_size} pixels"
    for record in memory_explained(fit(state, train_images, validation_images, until, within), config.device, needs):
        best = save(state.weights()) if state.watcher.best_epoch == record.epoch else None
        yield Saved(record, state.values(), save(state.tensors()), best)


def train(run: Run, until: int, progress: Progress, task: str = "training") -> Generator[Epoch, None, None]:
    """Train to epoch `until` or to the end of the run. Yields the record of each new epoch.

    Each epoch is saved while the next one is trained. When the generator has ended or was closed, all epochs are
    saved. Batches are reported to `progress` as parts of the steps of `task`.

    Raises:
        TrainingDiverged: a loss is not finite.
        FileError: an epoch cannot be saved.
    """
    if run_folder.has_ended(run.folder):
        # The last checkpoint is not needed. It is large, and after early stopping it does not exist.
        return
    state = state_from(run.config, len(run.dataset.classes), saved_state(run.folder))
    # This comes after the initial weights, so that weights that cannot be loaded leave no run behind.
    identify(run, environment())
    parts = run.part("train", progress), run.part("validation", progress)

    def within(done: int, share: float) -> None:
        progress.within(task, done, until, share)

    yield from save_behind(run.folder, epochs(state, *parts, until, within))


class _Saver:
    """Saves one epoch at a time in the background.

    Once a save has taken longer than an epoch, `save` waits until its epoch is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread = ThreadPoolExecutor(1)
        self.saving: Future[None] | None = None
        self.slow = False

    def save(self, saved: Saved) -> None:
        """Wait until the previous epoch is saved, then begin to save this one."""
        self.slow = self.slow or (self.saving is not None and not self.saving.done())
        self.finish()
        self.saving = self.thread.submit(run_folder.commit, self.folder, saved.values, last=saved.last, best=saved.best)
        if self.slow:
            self.finish()

    def finish(self) -> None:
        """Wait until the last epoch is saved.

        Raises:
            FileError: the epoch cannot be saved.
        """
        if self.saving is not None:
            self.saving.result()


def save_behind(folder: Path, epochs: Iterator[Saved]) -> Generator[Epoch, None, None]:
    """Save each of `epochs` while the next one is trained. Yields their records.

    A kill loses at most one epoch, or two during the first save that takes longer than an epoch.
    """
    saver = _Saver(folder)
    with saver.thread:
        try:
            for saved in epochs:
                saver.save(saved)
                yield saved.record
        finally:
            saver.finish()


def evaluate(run: Run, progress: Progress) -> MetricsFile:
    """Evaluate the best checkpoint of a run in float32, write metrics.json and predictions.csv, and return the metrics.

    Files that exist and have not changed are not written again. Only this function opens the test split, and only
    after training has ended.

    Raises:
        FileError: the best checkpoint or the state is missing or has changed.
    """
    path = run.folder / results.METRICS
    state = run_folder.read_state(run.folder)
    assert state is not None, f"{run.folder} has no epoch"
    assert state["stop_reason"], f"{run.folder} has not ended"
    changed = run_folder.changed_results(run.folder)
    if not changed:
        return results.read(path, MetricsFile)
    if path.exists():
        progress.notice(f"{run.folder / changed[0]} is missing or has changed; the figures are made again.")
    model = best_model(run.folder, run.config, len(run.dataset.classes))
    validation = _answers(run, model, run.part("validation", progress))
    part = run.part("test", progress)
    test = _answers(run, model, part)
    rows = prediction_rows(part, test.probabilities, test.classes)
    files.write_csv(run.folder / results.PREDICTIONS, rows)
    figures: MetricsFile = {
        "schema": results.SCHEMAS[MetricsFile],
        "validation": summarise(validation),
        **test_figures(test, run.dataset.split),
        "best_epoch": state["watcher"]["best_epoch"],
        "tied_epochs": state["watcher"]["tied_epochs"],
        "lowest_loss_epoch": state["watcher"]["lowest_loss_epoch"],
        "epochs_run": len(state["history"]),
        "stop_reason": state["stop_reason"],
        "leaked_test_images": float(run.dataset.split.has_twin_in_training("test").mean()),
        "effective_prior": _prior(run),
        "model_sha256": state["checkpoints"]["best"]["sha256"],
        "files": {results.PREDICTIONS: files.sha256(run.folder / results.PREDICTIONS)},
    }
    results.write(path, figures)
    return figures


def evaluate_here(folder: Path, dataset: Dataset, progress: Progress) -> MetricsFile:
    """Evaluate the trained run in `folder` on a device of this machine; see `evaluate`. The caller holds the lock."""
    run_folder.restore_history(folder, progress)
    config = run_folder.read_identity(folder).config
    here = config.replace(device=on_this_machine(config.device))
    if here != config and run_folder.changed_results(folder):
        progress.notice(f"{folder} was trained on {config.device}; here it is evaluated on {here.device}.")
    return evaluate(Run(folder, here, dataset), progress)


def _answers(run: Run, model: nn.Module, part: Part) -> Answers:
    data = to_device(part, run.config.device, mean=run.config.mean, std=run.config.std)
    return Answers(part.labels, softmax(float32_logits(model, data)), run.dataset.classes, run.config.positive)


def _prior(run: Run) -> dict[str, float]:
    classes, config = run.dataset.classes, run.config
    prior = effective_prior(
        run.dataset.labels("train"),
        len(classes),
        weighted_sampler=config.weighted_sampler,
        class_weights=config.class_weights,
    )
    return dict(zip(classes, prior.tolist(), strict=True))


def test_figures(answers: Answers, split: Split) -> TestFigures:
    """The metrics of the test split with intervals.

    If some test images have twins in training, the metrics of the images with and without twins are added.
    """
    groups = split.rows("test")["group"].to_numpy()
    leaked = split.has_twin_in_training("test").to_numpy()

    def summary(kept: NDArray[np.bool_]) -> TestSummary:
        some = answers.subset(kept)
        return {**summarise(some), **with_intervals(some, groups[kept])}

    figures: TestFigures = {"test": summary(np.ones(len(leaked), dtype=bool))}
    if leaked.any():
        figures["test_leaked"] = summary(leaked)
    if leaked.any() and not leaked.all():
        figures["test_clean"] = summary(~leaked)
    return figures


def prediction_rows(part: Part, probabilities: Floats, classes: tuple[str, ...]) -> list[dict[str, object]]:
    """The rows of predictions.csv for probabilities of shape (images, classes)."""
    return [
        {"path": composed(path), "class": classes[label], "predicted": classes[int(row.argmax())]}
        | {f"p_{name}": float(p) for name, p in zip(classes, row, strict=True)}
        for path, label, row in zip(part.paths, part.labels, probabilities, strict=True)
    ]
