"""The folder of a run: its identity, its last and best checkpoint, and state.json, whose rename commits an epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from busi_tune import files, results
from busi_tune.config import Config, differences
from busi_tune.data.digests import digest
from busi_tune.data.split import Split, excluded_file, read_split
from busi_tune.errors import FileError, RunError, WeightsError
from busi_tune.results import (
    HISTORY,
    IDENTITY,
    SOURCE,
    SPLIT,
    STATE,
    DataFile,
    Json,
    RunIdentityFile,
    StateFile,
    TrainingValues,
)
from busi_tune.training.epochs import Epoch

FIRST_FILES = frozenset({SPLIT, excluded_file(Path(SPLIT)).name, SOURCE})


@dataclass(frozen=True)
class Identity:
    """What a run is of: a file of weights counts by its SHA-256 ("" for others), not by its path.

    The `environment` decides last bits, not what the run means.
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
            "config": self.config.to_dict(),
            "classes": list(self.classes),
            "split": self.split,
            "weights_sha256": self.weights_sha256,
            "environment": dict(self.environment),
        }
        files.write_json(folder / IDENTITY, document)


def read_identity(folder: Path) -> Identity:
    """Read config.json.

    Raises:
        FileError: it is missing, damaged or of another version.
        ConfigError: its configuration breaks a rule.
    """
    path = folder / IDENTITY
    found = results.read(path, RunIdentityFile)
    return Identity(
        config=Config.from_dict(found["config"], source=str(path)),
        classes=tuple(found["classes"]),
        split=found["split"],
        weights_sha256=found["weights_sha256"],
        environment=found["environment"],
    )


def weights_sha256(weights: str) -> str:
    """The SHA-256 of the initial weights where they are a file, and "" where they are not.

    Raises:
        WeightsError: the file cannot be read.
    """
    if weights in ("imagenet", "none"):
        return ""
    try:
        return digest(Path(weights))
    except OSError as error:
        raise WeightsError(
            f"The weights in {weights} could not be read ({error.strerror}), and a run is known by them; "
            "restore the file or name it where it is now with --weights."
        ) from error


def identified(config: Mapping[str, Json], sha256: str) -> dict[str, Json]:
    """The values of a configuration by which runs are compared: a file of weights counts by its SHA-256."""
    return {**config, "weights": f"file of SHA-256 {sha256[:16]}"} if sha256 else dict(config)


def saved_split(folder: Path, config: Config) -> Split | None:
    """The split of the run in `folder`, or None where no run has begun there.

    `auto` in `config` agrees with whatever it meant when the run began.

    Raises:
        RunError: the folder holds a run of another configuration.
    """
    if not (folder / IDENTITY).exists():
        return None
    refuse_other(folder, read_identity(folder), config)
    return read_split(folder / SPLIT)


def refuse_other(folder: Path, known: Identity, config: Config) -> None:
    """Raise RunError where the run in `folder`, which is `known`, is of another configuration than `config`."""
    old = identified(known.config.to_dict(), known.weights_sha256)
    asked = identified(config.to_dict(), weights_sha256(config.weights))
    new = {name: old[name] if value == "auto" else value for name, value in asked.items()}
    different = differences(old, new)
    if different:
        raise RunError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}); "
            "name another --out, or start anew with --overwrite."
        )


def remember_data(folder: Path, root: Path) -> None:
    """Write data.json: the folder of the images, which is no part of what the run is."""
    document: DataFile = {"schema": results.SCHEMAS[DataFile], "folder": str(root.resolve())}
    files.write_json(folder / SOURCE, document)


def remembered_data(folder: Path) -> Path:
    """The folder of the images when the run was last opened, from data.json.

    Raises:
        FileError: data.json is missing, damaged or of another version.
        RunError: the images are no longer there.
    """
    root = Path(results.read(folder / SOURCE, DataFile)["folder"])
    if not root.is_dir():
        raise RunError(f"The images of {folder} are no longer in {root}; name their folder with --data.")
    return root


def clear(folder: Path) -> None:
    """Delete the run in `folder`, so that it can start anew; a folder that is no run is left as it is."""
    files.clear_folder(folder, IDENTITY)


def read_state(folder: Path) -> StateFile | None:
    """Read state.json; None where no epoch is committed.

    Raises:
        FileError: it is damaged or of another version.
    """
    path = folder / STATE
    return results.read(path, StateFile) if path.exists() else None


def history(folder: Path) -> list[Epoch]:
    """The records of all committed epochs."""
    state = read_state(folder)
    return [Epoch.from_record(record) for record in state["history"]] if state else []


def stop_reason(folder: Path) -> str:
    """The reason why training ended, or "" while it has not."""
    state = read_state(folder)
    return state["stop_reason"] if state else ""


def commit(folder: Path, values: TrainingValues, *, last: bytes, best: bytes | None) -> None:
    """Save an epoch: checkpoints first, then the state that names them, which is the moment it counts.

    `last` and `best` are safetensors files; `best` is None where the epoch is not the best so far.
    """
    checkpoints = files.make_folder(folder / "checkpoints")
    epoch = len(values["history"])
    before = read_state(folder)
    named = dict(before["checkpoints"]) if before else {}
    for kind, data in (("last", last), ("best", best)):
        if data is not None:
            name = f"{kind}-{epoch:04d}.safetensors"
            files.write_bytes(checkpoints / name, data)
            named[kind] = {"file": name, "sha256": files.sha256_bytes(data)}
    _write_state(folder, {"schema": results.SCHEMAS[StateFile], **values, "checkpoints": named})
    settle(folder)


def _write_state(folder: Path, state: StateFile) -> None:
    files.write_json(folder / STATE, state)


def forget(folder: Path) -> None:
    """Delete a run's checkpoints; what it measured stays, and training it on begins again at its first epoch."""
    state = read_state(folder)
    if state and state["checkpoints"]:
        _write_state(folder, {**state, "checkpoints": {}})
    files.remove_folder(folder / "checkpoints")


def settle(folder: Path) -> None:
    """Bring what follows from the committed state up to date: history.csv, and no checkpoint it does not name."""
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
        FileError: the state does not name it, or it is missing, or not the file that was written.
    """
    state = read_state(folder)
    entry = state["checkpoints"].get(kind) if state else None
    if entry is None:
        raise FileError(f"{folder / STATE} names no {kind} checkpoint; restore it or start anew.")
    path = folder / "checkpoints" / entry["file"]
    with files.explained(path, "read"):
        data: bytes = path.read_bytes()
    if files.sha256_bytes(data) != entry["sha256"]:
        raise FileError(f"{path} is not the file that was written (its SHA-256 differs); restore it or start anew.")
    return data
