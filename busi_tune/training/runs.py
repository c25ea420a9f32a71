"""One run: a configuration trained in a folder, epoch by epoch, and its figures once it has ended."""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save

from busi_tune import files, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, Part, effective_prior, open_dataset
from busi_tune.data.split import Split
from busi_tune.errors import DataError
from busi_tune.evaluation.intervals import with_intervals
from busi_tune.evaluation.metrics import Answers, softmax, summarise
from busi_tune.progress import Progress
from busi_tune.results import MetricsFile
from busi_tune.training import run_folder
from busi_tune.training.batches import to_device
from busi_tune.training.exportable import best_model
from busi_tune.training.fit import fit, float32_logits
from busi_tune.training.hardware import environment, keep_memory, memory_explained, resolve
from busi_tune.training.run_folder import Identity
from busi_tune.training.state import Epoch, TrainingState


@dataclass(frozen=True)
class Run:
    """A run folder that is open for writing: its resolved configuration and its data."""

    folder: Path
    config: Config
    dataset: Dataset

    def part(self, name: str, progress: Progress) -> Part:
        """One split's images at the run's size."""
        return self.dataset.part(name, self.config.image_size, progress)


def open_run(folder: Path, config: Config, root: Path, progress: Progress, split_file: Path | None = None) -> Run:
    """Open the run of `config` on `root` in `folder`, or begin it; the caller holds the folder's lock.

    Raises:
        RunError: the folder holds something else.
        DataError: the data cannot be used, or has changed since the run began.
        ConfigError: the device is not there.
    """
    resolved = resolve(config)
    saved = run_folder.saved_split(folder, resolved)
    dataset = open_dataset(root, resolved, progress, saved=saved, split_file=split_file)
    return begin(folder, resolved, dataset, progress)


def begin(
    folder: Path, config: Config, dataset: Dataset, progress: Progress, here: Mapping[str, Any] | None = None
) -> Run:
    """Open the run of a resolved `config` on `dataset` in `folder`; a new one is written there by `train`.

    `here` is the environment that trains it, by default this process's own.

    Raises:
        DataError: the folder's run was made on another split.
        RunError: it is of another configuration.
    """
    keep_memory()
    run = Run(folder, config, dataset)
    if not (folder / run_folder.IDENTITY).exists():
        return run
    known, here = run_folder.read_identity(folder), here or environment()
    if known.split != dataset.split.fingerprint():
        raise DataError(f"The run in {folder} was made on another split of {dataset.listing.root}; use --overwrite.")
    run_folder.refuse_other(folder, known, config)
    moved = [
        f"{key} {known.environment.get(key)} -> {here[key]}" for key in here if known.environment.get(key) != here[key]
    ]
    if moved:
        progress.notice(f"{folder} began in another environment ({', '.join(moved)}): last digits may differ.")
    run_folder.settle(folder)
    run_folder.remember_data(folder, dataset.listing.root)
    return run


def identify(run: Run, here: Mapping[str, Any]) -> None:
    """Write what a new run is of: its split, and config.json last, whose presence makes the folder a run."""
    if (run.folder / run_folder.IDENTITY).exists():
        return
    config, split = run.config, run.dataset.split
    weights = "" if config.weights in ("imagenet", "none") else files.sha256(Path(config.weights))
    run_folder.remember_data(run.folder, run.dataset.listing.root)
    split.write(run.folder / run_folder.SPLIT)
    Identity(config, run.dataset.classes, split.fingerprint(), weights, dict(here)).write(run.folder)


@dataclass(frozen=True)
class Saved:
    """All that an epoch leaves: its record, the state's plain values, and checkpoints as safetensors files."""

    record: Epoch
    values: dict[str, Any]
    last: bytes
    best: bytes | None


def saved_state(folder: Path) -> tuple[dict[str, Any], bytes] | None:
    """The values and the checkpoint of the last committed epoch, or None where none is kept."""
    if not (folder / run_folder.STATE).exists():
        return None
    values = files.read_json(folder / run_folder.STATE)
    return (values, run_folder.checkpoint(folder, "last")) if values["checkpoints"] else None


def state_from(config: Config, classes: int, saved: tuple[dict[str, Any], bytes] | None) -> TrainingState:
    """The state that was `saved`, or the one before the first epoch."""
    if saved is None:
        return TrainingState.start(config, classes)
    return TrainingState.restore(config, classes, load(saved[1]), saved[0])


def epochs(state: TrainingState, train_part: Part, validation: Part, until: int) -> Iterator[Saved]:
    """Train `state` to epoch `until` or its own end, writing nothing; yield all that each epoch leaves.

    Raises:
        TrainingDiverged: the loss is no longer finite.
        OutOfMemory: the device is too small.
    """
    config = state.config
    keep_memory()
    parts = to_device(train_part, config), to_device(validation, config)
    for record in memory_explained(config, fit(state, *parts, until)):
        best = save(state.weights()) if state.watcher.best_epoch == record.epoch else None
        values = state.values() | {"stop_reason": state.stop_reason}
        yield Saved(record, values, save(state.tensors()), best)


def train(run: Run, until: int, progress: Progress) -> Generator[Epoch, None, None]:
    """Train to epoch `until` or the run's own end; yield each new epoch's record, while it is being saved.

    An epoch is saved while the next one is trained, and all are once this has ended or was closed.

    Raises:
        TrainingDiverged: the loss is no longer finite.
        FileError: an epoch cannot be saved.
    """
    state = state_from(run.config, len(run.dataset.classes), saved_state(run.folder))
    # Weights that cannot be had must not leave a run behind, so this comes after them.
    identify(run, environment())
    parts = run.part("train", progress), run.part("validation", progress)
    yield from save_behind(run.folder, epochs(state, *parts, until))


def save_behind(folder: Path, epochs: Iterator[Saved]) -> Generator[Epoch, None, None]:
    """Save each of `epochs` while the next one is trained; yield their records.

    Where saving has once taken longer than an epoch, it is waited for, so that a kill costs no more than one epoch.
    """
    saving: Future[None] | None = None
    slow = False
    with ThreadPoolExecutor(1) as saver:
        try:
            for saved in epochs:
                if saving is not None:
                    slow = slow or not saving.done()
                    saving.result()
                saving = saver.submit(run_folder.commit, folder, saved.values, last=saved.last, best=saved.best)
                if slow:
                    saving.result()
                yield saved.record
        finally:
            if saving is not None:
                saving.result()


def history(folder: Path) -> list[Epoch]:
    """The records of all committed epochs."""
    if not (folder / run_folder.STATE).exists():
        return []
    return [Epoch(**record) for record in files.read_json(folder / run_folder.STATE)["history"]]


def stop_reason(folder: Path) -> str:
    """Why training ended, or "" while it has not."""
    return (
        str(files.read_json(folder / run_folder.STATE)["stop_reason"]) if (folder / run_folder.STATE).exists() else ""
    )


def evaluate(run: Run, progress: Progress) -> dict[str, Any]:
    """The run's figures, from its best checkpoint in float32: metrics.json and predictions.csv.

    This is the only place that opens the test split, and it does so only when training has ended.
    """
    path = run.folder / run_folder.METRICS
    if path.exists():
        return files.read_json(path)
    reason = stop_reason(run.folder)
    assert reason, f"{run.folder} has not ended"
    classes = run.dataset.classes
    model = best_model(run.folder, run.config, len(classes))
    figures: dict[str, Any] = {"schema": results.SCHEMAS[MetricsFile]}
    for name in ("validation", "test"):
        part = run.part(name, progress)
        logits = float32_logits(model, to_device(part, run.config), run.config)
        answers = Answers(part.labels, softmax(logits), classes)
        figures[name] = summarise(answers)
        if name == "test":
            files.write_csv(run.folder / "predictions.csv", prediction_rows(part, answers.probabilities, classes))
            figures |= test_figures(answers, run.dataset.split)
    state = files.read_json(run.folder / run_folder.STATE)
    watcher = state["watcher"]
    prior = effective_prior(run.dataset.labels("train"), run.config, len(classes))
    figures |= {
        "best_epoch": watcher["best_epoch"],
        "tied_epochs": watcher["tied_epochs"],
        "lowest_loss_epoch": watcher["lowest_loss_epoch"],
        "epochs_run": len(state["history"]),
        "stop_reason": reason,
        "leaked_test_images": float(run.dataset.split.has_twin_in_training("test").mean()),
        "effective_prior": dict(zip(classes, prior.tolist(), strict=True)),
        "model_sha256": state["checkpoints"]["best"]["sha256"],
    }
    files.write_json(path, figures)
    return figures


def test_figures(answers: Answers, split: Split) -> dict[str, Any]:
    """The figures of the test split with intervals; where twins of it are in training, with and without these."""
    groups = split.rows("test")["group"].to_numpy()
    leaked = split.has_twin_in_training("test").to_numpy()
    parts = {"test": np.ones(len(leaked), dtype=bool)}
    if leaked.any():
        parts |= {"test_leaked": leaked, "test_clean": ~leaked}
    figures = {}
    for name, kept in parts.items():
        if kept.any():
            some = answers.subset(kept)
            figures[name] = summarise(some) | with_intervals(some, groups[kept])
    return figures


def prediction_rows(part: Part, probabilities: Any, classes: tuple[str, ...]) -> list[dict[str, object]]:
    """The rows of predictions.csv for probabilities of shape (images, classes)."""
    return [
        {"path": path, "class": classes[label], "predicted": classes[int(row.argmax())]}
        | {f"p_{name}": float(p) for name, p in zip(classes, row, strict=True)}
        for path, label, row in zip(part.paths, part.labels, probabilities, strict=True)
    ]
