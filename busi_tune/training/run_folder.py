"""A run's folder: what it is of, its last and best checkpoint, and the one file whose rename commits an epoch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busi_tune import files
from busi_tune.config import Config, differences
from busi_tune.data.split import Split, excluded_file, read_split
from busi_tune.errors import FileError, RunError

IDENTITY = "config.json"
STATE = "state.json"
SOURCE = "data.json"
METRICS = "metrics.json"
SPLIT = "split.csv"
FIRST_FILES = frozenset({SPLIT, excluded_file(Path(SPLIT)).name, SOURCE})


@dataclass(frozen=True)
class Identity:
    """What a run is of. `environment` and the file of weights decide last bits, not what the run means."""

    config: Config
    classes: tuple[str, ...]
    split: str
    weights_sha256: str
    environment: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write config.json."""
        values = asdict(self) | {"config": self.config.to_dict()}
        files.write_json(folder / IDENTITY, values)


def read_identity(folder: Path) -> Identity:
    """Read config.json.

    Raises:
        FileError: it is missing or damaged.
    """
    path = folder / IDENTITY
    values = files.read_json(path)
    try:
        config = Config.from_dict(values["config"], source=str(path))
        return Identity(
            config, tuple(values["classes"]), values["split"], values["weights_sha256"], values["environment"]
        )
    except (KeyError, TypeError) as error:
        raise FileError(f"{path} is not a run's ({error} is missing or wrong); restore it or start anew.") from error


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
    old = known.config.to_dict()
    new = {name: old[name] if value == "auto" else value for name, value in config.to_dict().items()}
    different = differences(old, new)
    if different:
        raise RunError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}); "
            "name another --out, or start anew with --overwrite."
        )


def remember_data(folder: Path, root: Path) -> None:
    """Note where the images lie now; this is no part of what the run is."""
    files.write_json(folder / SOURCE, {"folder": str(root.resolve())})


def remembered_data(folder: Path) -> Path:
    """Where the images of the run lay when it was last opened.

    Raises:
        RunError: they are no longer there.
    """
    root = Path(files.read_json(folder / SOURCE)["folder"])
    if not root.is_dir():
        raise RunError(f"The images of {folder} are no longer in {root}; name their folder with --data.")
    return root


def clear(folder: Path) -> None:
    """Delete the run in `folder`, so that it can start anew; a folder that is no run is left as it is."""
    files.clear_folder(folder, IDENTITY)


def commit(folder: Path, values: dict[str, Any], *, last: bytes, best: bytes | None) -> None:
    """Save an epoch: checkpoints first, then the state that names them, which is the moment it counts.

    `last` and `best` are safetensors files; `best` is None where the epoch is not the best so far.
    """
    checkpoints = files.make_folder(folder / "checkpoints")
    epoch = len(values["history"])
    named = dict(files.read_json(folder / STATE)["checkpoints"]) if (folder / STATE).exists() else {}
    for kind, data in (("last", last), ("best", best)):
        if data is not None:
            name = f"{kind}-{epoch:04d}.safetensors"
            files.write_bytes(checkpoints / name, data)
            named[kind] = {"file": name, "sha256": files.sha256_bytes(data)}
    files.write_json(folder / STATE, {**values, "checkpoints": named})
    settle(folder)


def forget(folder: Path) -> None:
    """Delete a run's checkpoints; what it measured stays, and training it on begins again at its first epoch."""
    if (folder / STATE).exists():
        state = files.read_json(folder / STATE)
        if state["checkpoints"]:
            files.write_json(folder / STATE, state | {"checkpoints": {}})
    files.remove_folder(folder / "checkpoints")


def settle(folder: Path) -> None:
    """Bring what follows from the committed state up to date: history.csv, and no checkpoint it does not name."""
    if not (folder / STATE).exists():
        return
    state = files.read_json(folder / STATE)
    files.write_csv(folder / "history.csv", state["history"])
    kept = {entry["file"] for entry in state["checkpoints"].values()}
    for path in (folder / "checkpoints").glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()


def checkpoint(folder: Path, kind: str) -> bytes:
    """The "last" or "best" checkpoint's content, checked against its recorded SHA-256.

    Raises:
        FileError: it is missing, or not what was written.
    """
    entry = files.read_json(folder / STATE)["checkpoints"][kind]
    path = folder / "checkpoints" / str(entry["file"])
    with files.explained(path, "read"):
        data: bytes = path.read_bytes()
    if files.sha256_bytes(data) != entry["sha256"]:
        raise FileError(f"{path} is not the file that was written (its SHA-256 differs); restore it or start anew.")
    return data
