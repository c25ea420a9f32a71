"""The trainings in a result folder: their parameters, curves and final metrics, read from files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from busi_tune import files, results
from busi_tune.config import Config
from busi_tune.files import json_text, sha256_bytes
from busi_tune.option import shown
from busi_tune.report.study_contents import IDENTITY, TRIALS, read_study
from busi_tune.results import CrossvalFile, EpochRecord, Json, MetricsFile
from busi_tune.training import run_folder

# The values of an epoch that depend on the machine.
CLOCKS = ("seconds", "images_per_second")
# The parts of metrics that are not single numbers.
SKIPPED = frozenset({"intervals", "without_interval", "files", "effective_prior"})


@dataclass(frozen=True)
class Record:
    """One training for a tracker, or the pooled metrics of a cross-validation, which have no epochs.

    `name` is the path of the record below its result, and "" for the result itself. `state` is the state of a
    trial in Optuna, and COMPLETE or RUNNING for other runs. `began` is the time when training began, in seconds since
    1970.
    """

    name: str
    parameters: Mapping[str, Json]
    epochs: tuple[EpochRecord, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    state: str = "COMPLETE"
    began: float = 0.0

    @property
    def identity(self) -> str:
        """A hash of the name, the parameters and the first epoch.

        Later epochs and the folder do not change it. If a training is repeated on the same machine, its identity is the
        same.
        """
        first = [{key: value for key, value in record.items() if key not in CLOCKS} for record in self.epochs[:1]]
        return _sha256([self.name, dict(self.parameters), first])

    @property
    def content(self) -> str:
        """A hash of all values that a tracker shows."""
        shown_values = [list(map(dict, self.epochs)), dict(self.metrics), self.state]
        return _sha256([self.identity, shown_values])


def _sha256(value: object) -> str:
    return sha256_bytes(json_text(value).encode())


def read_records(folder: Path, prefix: str = "") -> Iterator[Record]:
    """The records of the run, study, cross-validation or nested search in `folder`. Their names begin with `prefix`.

    Raises:
        FileError: a file is damaged or has changed.
    """
    if (folder / IDENTITY).exists():
        yield from _study(folder, prefix)
    elif (folder / results.CROSSVAL).exists():
        yield from _crossval(folder, prefix)
    elif (folder / results.NESTED).exists():
        yield from read_records(folder / "baseline", f"{prefix}baseline/")
        for study in _numbered(folder / "studies"):
            yield from read_records(study, f"{prefix}study-{study.name}/")
    elif (folder / results.IDENTITY).exists():
        yield _run(folder, prefix)
        for run in _numbered(folder / "seeds"):
            yield from read_records(run, f"{prefix}seed-{run.name}/")


def _numbered(folder: Path) -> list[Path]:
    """The subfolders with numbers as names, in the order of the numbers."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), key=lambda path: int(path.name))


def _run(folder: Path, prefix: str, state: str = "", extra: Mapping[str, float] | None = None) -> Record:
    config = run_folder.read_identity(folder).config
    path = folder / results.METRICS
    metrics = results.read(path, MetricsFile) if path.exists() else None
    training = run_folder.read_state(folder)
    epochs = tuple(training["history"]) if training else ()
    seconds = sum(epoch["seconds"] for epoch in epochs)
    return Record(
        name=prefix.rstrip("/"),
        parameters=parameters(config),
        epochs=epochs,
        metrics={**flat(metrics or {}), **(extra or {})},
        best_epoch=training["watcher"]["best_epoch"] if training else 0,
        state=state or ("COMPLETE" if metrics else "RUNNING"),
        began=(folder / results.STATE).stat().st_mtime - seconds if training else 0.0,
    )


def _study(folder: Path, prefix: str) -> Iterator[Record]:
    for trial in read_study(folder)["trials"]:
        run = folder / TRIALS / f"{trial['number']:04d}"
        if not (run / results.IDENTITY).exists():
            # The trial was added with its value, or failed before its training began.
            continue
        value = {} if trial["value"] is None else {"value": trial["value"]}
        yield _run(run, f"{prefix}trial-{run.name}/", trial["state"], value)
        for other in _numbered(folder / "confirm" / run.name):
            yield from read_records(other, f"{prefix}trial-{run.name}/seed-{other.name}/")


def _crossval(folder: Path, prefix: str) -> Iterator[Record]:
    path = folder / results.POOLED
    if path.exists():
        config = Config.from_dict(files.read_json(folder / results.CROSSVAL)["config"], source=str(path))
        pooled = results.read(path, CrossvalFile)["pooled"]
        yield Record(
            name=f"{prefix}pooled",
            parameters=parameters(config),
            metrics=flat({"pooled": pooled}),
            began=path.stat().st_mtime,
        )
    for run in _numbered(folder / "folds"):
        yield from read_records(run, f"{prefix}fold-{run.name}/")
    for repeat in _numbered(folder / "repeats"):
        yield from read_records(repeat, f"{prefix}repeat-{repeat.name}/")


def parameters(config: Config) -> dict[str, Json]:
    """The values of a configuration in types that trackers accept: numbers, truth values and texts."""
    return {
        name: shown(value) if isinstance(value, tuple) or value is None else value
        for name, value in vars(config).items()
    }


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """All numbers in a nested mapping, by the paths of their keys."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in SKIPPED:
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
