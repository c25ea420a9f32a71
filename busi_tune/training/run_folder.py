"""The folder of a run: its identity, its last and best checkpoints, and state.json, which commits each epoch."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from busi_tune import __version__, files, results
from busi_tune.config import Config, differences
from busi_tune.data.digests import digest
from busi_tune.data.split import Split, excluded_file, read_split
from busi_tune.errors import FileError, RunError, WeightsError
from busi_tune.progress import Progress
from busi_tune.results import (
    CONFUSION,
    CURVES,
    HISTORY,
    IDENTITY,
    METRICS,
    OPTIONS,
    PREDICTIONS,
    SOURCE,
    SPLIT,
    STATE,
    DataFile,
    Json,
    MetricsFile,
    OptionsFile,
    RunIdentityFile,
    StateFile,
    TrainingValues,
)
from busi_tune.training.epochs import Epoch

# The reasons why training ended.
EARLY, COMPLETE = "early stopping", "all epochs done"
FIRST_FILES = frozenset({SPLIT, excluded_file(Path(SPLIT)).name, SOURCE, OPTIONS})


@dataclass(frozen=True)
class Identity:
    """The identity of a run: its configuration, its classes, and the fingerprint of its split.

    A file of initial weights is identified by its SHA-256, not by its path; other weights have "". The `environment`
    affects only the last bits of results. The version of busi-tune is written, too, but is not part of the identity.
    """

    config: Config
    classes: tuple[str, ...]
    split: str
    weights_sha256: str
    environment: Mapping[str, Json]

    def write(self, folder: Path) -> None:
        """Write config.json."""
        document: RunIdentityFile = {
            "schema": results.SCHEMAS[RunIdentityFile],
            "version": __version__,
            "config": self.config.to_dict(),
            "classes": list(self.classes),
            "split": self.split,
            "weights_sha256": self.weights_sha256,
            "environment": dict(self.environment),
        }
        results.write(folder / IDENTITY, document)


def read_identity(folder: Path) -> Identity:
    """Read config.json.

    Raises:
        FileError: the file is missing, damaged, changed or of another version.
        ConfigError: the configuration breaks a rule.
    """
    path = folder / IDENTITY
    found = results.read(path, RunIdentityFile)
    if not found["classes"] or len(set(found["classes"])) < len(found["classes"]):
        raise FileError(f"{path} is damaged (its classes are {found['classes']}); restore it or start over.")
    return Identity(
        config=Config.from_dict(found["config"], source=str(path)),
        classes=tuple(found["classes"]),
        split=found["split"],
        weights_sha256=found["weights_sha256"],
        environment=found["environment"],
    )


def weights_sha256(weights: str) -> str:
    """The SHA-256 of the initial weights if they are a file, else "".

    Raises:
        WeightsError: the file cannot be read.
    """
    if weights in ("imagenet", "none"):
        return ""
    try:
        return digest(Path(weights))
    except OSError as error:
        raise WeightsError(
            f"The weights in {weights} could not be read ({error.strerror}), but they identify the run; "
            "restore the file or name its new place with --weights."
        ) from error


def identified(config: Mapping[str, Json], sha256: str) -> dict[str, Json]:
    """The values of a configuration for comparing runs. A file of weights is replaced by its SHA-256."""
    return {**config, "weights": f"file of SHA-256 {sha256[:16]}"} if sha256 else dict(config)


def saved_split(folder: Path, config: Config) -> Split | None:
    """The split of the run in `folder`, or None if the folder holds no run.

    `auto` in `config` matches any value of the run.

    Raises:
        RunError: the folder holds a run of another configuration.
    """
    if not (folder / IDENTITY).exists():
        return None
    known = read_identity(folder)
    refuse_other(folder, known, config)
    return own_split(folder, known)


def own_split(folder: Path, known: Identity) -> Split:
    """The split of the run in `folder`, whose identity is `known`.

    Raises:
        FileError: the files of the split cannot be read, or are not those that the run was trained on.
    """
    split = read_split(folder / SPLIT)
    if split.fingerprint() != known.split:
        raise FileError(
            f"{folder / SPLIT} is not the split that the run was made on, or {excluded_file(folder / SPLIT).name} "
            "beside it is not (their fingerprint differs); restore both, or start over with --overwrite."
        )
    return split


def check_classes(folder: Path, known: Identity, classes: tuple[str, ...]) -> None:
    """Refuse a run whose classes, or their order, differ from those of the data.

    Raises:
        FileError: the classes differ.
    """
    if known.classes != classes:
        raise FileError(
            f"{folder / IDENTITY} names the classes {', '.join(known.classes)}, and the images have "
            f"{', '.join(classes)}; restore it, or name the folder of the run's images with --data."
        )


def refuse_other(folder: Path, known: Identity, config: Config) -> None:
    """Refuse the run in `folder`, whose identity is `known`, if its configuration is not `config`.

    A run of fewer epochs is accepted, because it can be extended.

    Raises:
        RunError: the configurations differ.
        WeightsError: the file of weights of `config` cannot be read.
    """
    old = identified(known.config.identity(), known.weights_sha256)
    asked = identified(config.identity(), weights_sha256(config.weights))
    new = {name: old[name] if value == "auto" else value for name, value in asked.items()}
    if known.config.epochs < config.epochs:
        new["epochs"] = known.config.epochs
    different = differences(old, new)
    if different:
        raise RunError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}); "
            "name another --out, or start over with --overwrite."
        )


def plan_epochs(folder: Path, known: Identity, epochs: int) -> None:
    """Extend the run in `folder`, whose identity is `known`, to `epochs`, which must not be fewer than before.

    Raises:
        FileError: the last checkpoint, from which training would resume, is missing or has changed.
    """
    state = read_state(folder)
    if known.config.epochs < epochs:
        if state and "last" in state["checkpoints"]:
            checkpoint(folder, "last")
        # Metrics are deleted first, so that a kill leaves no metrics of fewer epochs.
        with files.explained(folder / METRICS, "deleted"):
            (folder / METRICS).unlink(missing_ok=True)
        replace(known, config=known.config.replace(epochs=epochs)).write(folder)
    if state and state["stop_reason"] == COMPLETE and len(state["history"]) < epochs:
        _write_state(folder, {**state, "stop_reason": ""})


def remember_data(folder: Path, root: Path) -> None:
    """Write the folder of the images to data.json. It is not part of the identity of the run."""
    document: DataFile = {"schema": results.SCHEMAS[DataFile], "folder": str(root.resolve())}
    files.write_if_new(folder / SOURCE, files.json_text(document))


def remember_options(folder: Path, options: Mapping[str, Json]) -> None:
    """Write the options of the running command to options.json, if they are others than before."""
    document: OptionsFile = {"schema": results.SCHEMAS[OptionsFile], "options": dict(options)}
    if options or (folder / OPTIONS).exists():
        files.write_if_new(folder / OPTIONS, files.json_text(document))


def remembered_data(folder: Path, option: str = "--data") -> Path:
    """The folder of the images when the run was last opened, from data.json.

    `option` is the command-line option that names another folder; the error message recommends it.

    Raises:
        FileError: data.json is missing, damaged or of another version.
        RunError: the folder of the images no longer exists.
    """
    root = Path(results.read(folder / SOURCE, DataFile)["folder"])
    if not root.is_dir():
        raise RunError(f"The images of {folder} are no longer in {root}; name their folder with {option}.")
    return root


def has_ended(folder: Path) -> bool:
    """Whether training of the run in `folder` has ended and its checkpoints are kept."""
    state = read_state(folder)
    return state is not None and bool(state["stop_reason"] and state["checkpoints"])


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the run in `folder` has ended, has metrics (valid or not), and has `epochs` as its maximum."""
    ended = (folder / METRICS).exists() and stop_reason(folder)
    return bool(ended) and read_identity(folder).config.epochs == epochs


def clear(folder: Path) -> None:
    """Delete the run in `folder`, so that training can start again. A folder without a run is not changed."""
    files.clear_folder(folder, IDENTITY)


def read_state(folder: Path) -> StateFile | None:
    """Read state.json. Returns None if no epoch is committed.

    Raises:
        FileError: the file is damaged, changed, of another version, or missing although a later epoch was committed.
    """
    path = folder / STATE
    if not path.exists():
        # A run that was killed while it saved its first epoch may have checkpoints of that epoch.
        later = sorted(p.name for p in (folder / "checkpoints").glob("*.safetensors") if not p.stem.endswith("-0001"))
        if later or (folder / METRICS).exists():
            raise FileError(f"{path} is missing, and the run cannot be read without it; restore it or start over.")
        return None
    state = results.read(path, StateFile)
    problem = _contradiction(state)
    if problem:
        raise FileError(f"{path} is damaged ({problem}); restore it or start over.")
    return state


def _contradiction(state: StateFile) -> str:
    """The reason why a state cannot have been written by training, or ""."""
    epochs, kept = [record["epoch"] for record in state["history"]], state["checkpoints"]
    if not epochs or epochs != list(range(1, len(epochs) + 1)):
        return f"its history has the epochs {epochs[:3]}" if epochs else "its history is empty"
    if not 1 <= state["watcher"]["best_epoch"] <= len(epochs):
        return f"its best epoch is {state['watcher']['best_epoch']} of {len(epochs)}"
    needed = {"best"} if state["stop_reason"] == EARLY else {"last", "best"}
    if kept and not needed <= set(kept) <= {"last", "best"}:
        return f"it names the checkpoints {', '.join(kept)}"
    odd = [entry["file"] for entry in kept.values() if Path(entry["file"]).name != entry["file"]]
    if odd:
        return f"it names the checkpoint {odd[0]!r}"
    if state["stop_reason"] not in ("", EARLY, COMPLETE):
        return f"its stop reason is {state['stop_reason']!r}"
    return ""


def history(folder: Path) -> list[Epoch]:
    """The records of all committed epochs."""
    state = read_state(folder)
    return [Epoch.from_record(record) for record in state["history"]] if state else []


def stop_reason(folder: Path) -> str:
    """The reason why training ended, or "" while it has not."""
    state = read_state(folder)
    return state["stop_reason"] if state else ""


def commit(folder: Path, values: TrainingValues, *, last: bytes, best: bytes | None) -> None:
    """Save an epoch: first its checkpoints, then state.json, which names them and commits the epoch.

    `last` and `best` are the contents of safetensors files. `best` is None if the epoch is not the best so far.
    Training never resumes after early stopping, so the last checkpoint is then deleted. It is three times as large as
    the best checkpoint.
    """
    checkpoints = files.make_folder(folder / "checkpoints")
    epoch = len(values["history"])
    before = read_state(folder)
    named = dict(before["checkpoints"]) if before else {}
    ended = values["stop_reason"] == EARLY
    if ended:
        named.pop("last", None)
    for kind, data in (("last", None if ended else last), ("best", best)):
        if data is not None:
            name = f"{kind}-{epoch:04d}.safetensors"
            files.write_bytes(checkpoints / name, data)
            named[kind] = {"file": name, "sha256": files.sha256_bytes(data)}
    _write_state(folder, {"schema": results.SCHEMAS[StateFile], **values, "checkpoints": named})
    settle(folder)


def _write_state(folder: Path, state: StateFile) -> None:
    results.write(folder / STATE, state)


def forget(folder: Path) -> None:
    """Delete the checkpoints of a run. Its records stay. More training starts again at the first epoch."""
    state = read_state(folder)
    if state and state["checkpoints"]:
        _write_state(folder, {**state, "checkpoints": {}})
    files.remove_folder(folder / "checkpoints")


def settle(folder: Path) -> None:
    """Bring the folder in line with the committed state: write history.csv, delete checkpoints without an entry."""
    state = read_state(folder)
    if state is None:
        return
    files.write_csv(folder / HISTORY, state["history"])
    kept = {entry["file"] for entry in state["checkpoints"].values()}
    for path in (folder / "checkpoints").glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()


def checkpoint(folder: Path, kind: str) -> bytes:
    """The "last" or "best" checkpoint's content, checked against its recorded SHA-256.

    Raises:
        FileError: the state does not name the checkpoint, or its file is missing or has changed.
    """
    state = read_state(folder)
    entry = state["checkpoints"].get(kind) if state else None
    if entry is None:
        raise FileError(f"{folder / STATE} names no {kind} checkpoint; restore it or start over.")
    path = folder / "checkpoints" / entry["file"]
    with files.explained(path, "read"):
        data: bytes = path.read_bytes()
    if files.sha256_bytes(data) != entry["sha256"]:
        raise FileError(f"{path} is not the file that was written (its SHA-256 differs); restore it or start over.")
    return data


def changed_results(folder: Path) -> list[str]:
    """The result files of a trained run that are missing or have changed. All can be computed from the best checkpoint.

    Raises:
        FileError: the best checkpoint, or the state that names it, is missing or has changed.
    """
    sha256 = files.sha256_bytes(checkpoint(folder, "best"))
    try:
        known = results.read(folder / METRICS, MetricsFile)
    except FileError:
        return [METRICS]
    if known["model_sha256"] != sha256:
        return [METRICS]
    recorded = known.get("files", {}).get(PREDICTIONS)
    path = folder / PREDICTIONS
    whole = path.is_file() and (recorded is None or files.sha256(path) == recorded)
    return [] if whole else [PREDICTIONS]


def restore_history(folder: Path, progress: Progress) -> None:
    """Write history.csv again if it does not hold the epochs of the state. A run with metrics also gets a notice.

    If a run was killed between the two writes, history.csv lacks the last epoch.
    """
    state, path = read_state(folder), folder / HISTORY
    wanted = [{key: str(value) for key, value in record.items()} for record in state["history"]] if state else []
    try:
        with path.open(newline="") as file:
            whole = list(csv.DictReader(file)) == wanted
    except (OSError, ValueError, csv.Error):
        whole = False
    if not whole and (folder / METRICS).exists():
        progress.notice(f"{path} is missing or has changed; it is written again.")
    settle(folder)


def changed_pictures(folder: Path, metrics: MetricsFile) -> list[str]:
    """The pictures of a finished run that are missing or have changed."""
    recorded = metrics.get("files")

    def whole(path: Path) -> bool:
        # Earlier versions did not record the SHA-256 of pictures.
        return path.is_file() and (recorded is None or files.sha256(path) == recorded.get(path.name))

    return [name for name in (CURVES, CONFUSION) if not whole(folder / name)]
