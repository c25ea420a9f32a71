"""The plan of a study: its configuration, search space, metric and split, as study.json keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from busi_tune import files, results
from busi_tune.config import Config, differences
from busi_tune.data.split import Split, excluded_file, read_split
from busi_tune.errors import FileError, RunError
from busi_tune.results import SPLIT, Json, StudyFile
from busi_tune.search.space import Space
from busi_tune.search.storage import Database, shown
from busi_tune.training.run_folder import identified, weights_sha256

# What is kept of a trial that has ended, as its user attributes and as columns of trials.csv.
FACTS = ("val_accuracy", "val_macro_f1", "epochs_run", "best_epoch", "seconds", "stop_reason")
METRICS = {
    "val_loss": StudyDirection.MINIMIZE,
    "val_accuracy": StudyDirection.MAXIMIZE,
    "val_macro_f1": StudyDirection.MAXIMIZE,
}
IDENTITY = "study.json"
TRIALS = "trials"
# The only study in a database of its own.
NAME = "busi-tune"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all trials of a study share; more trials of the same plan continue it. `config` is resolved (no `auto`).

    `weights` has the SHA-256 of each file of weights that the configuration or the space names.
    """

    config: Config
    space: Space
    metric: str
    trial_epochs: int
    split: str
    pruner: str = "stalled"
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def direction(self) -> StudyDirection:
        """Whether a lower or a higher value of the metric is better."""
        return METRICS[self.metric]

    @property
    def sign(self) -> int:
        """1 where a lower value of the metric is better, else -1."""
        return 1 if self.direction == StudyDirection.MINIMIZE else -1

    def trial_config(self, params: Mapping[str, object]) -> Config:
        """The configuration of a trial with these parameters.

        Raises:
            ConfigError: a parameter breaks the rule of its field.
        """
        return self.config.replace(**params)

    def document(self, database: Database, name: str) -> StudyFile:
        """The content of study.json."""
        document: StudyFile = {
            "schema": results.SCHEMAS[StudyFile],
            "config": self.config.to_dict(),
            "space": {field: distribution_to_json(distribution) for field, distribution in self.space.items()},
            "metric": self.metric,
            "trial_epochs": self.trial_epochs,
            "pruner": self.pruner,
            "split": self.split,
            "weights": dict(self.weights),
            "study": name,
        }
        if database.shared:
            document["storage"] = shown(database.url)
        return document


def open_plan(folder: Path, plan: Plan, split: Split, database: Database) -> str:
    """Write study.json and the split into a new folder, or compare them with those there; the study's name in Optuna.

    Raises:
        RunError: the folder holds a study of another plan or in another database.
    """
    path = folder / IDENTITY
    if not path.exists():
        split.write(folder / SPLIT)
        # A server holds many studies, so a study there needs a name of its own.
        name = f"{NAME}-{uuid4()}" if database.shared else NAME
        results.write(path, plan.document(database, name))
    known = results.read(path, StudyFile)
    asked = plan.document(database, known["study"])
    if "weights" not in known:
        # An earlier version wrote it, and knew files of weights by their paths.
        asked.pop("weights")
    earlier = int(str(known["config"].get("epochs", 0)))
    if earlier < plan.config.epochs:
        # The trials that are wanted go on to more epochs.
        known["config"]["epochs"] = plan.config.epochs
    different = differences(_flat(known), _flat(asked))
    if not different and earlier != plan.config.epochs:
        results.write(path, known)
    if different:
        raise RunError(
            f"{folder} holds another study ({'; '.join(different)}); name another --out, "
            "or start anew with --overwrite."
        )
    return known["study"]


def _flat(document: StudyFile) -> dict[str, object]:
    """All values of study.json, one level deep, so that two can be compared key by key."""
    space = {f"space.{name}": text for name, text in document["space"].items()}
    config = Config.from_dict(document["config"], source=IDENTITY)
    hashes = document.get("weights", {})
    # Files that the space names count by path and content: Optuna knows a choice by its name.
    varied = {f"weights {path}": sha256 for path, sha256 in hashes.items()} if "weights" in document["space"] else {}
    same = identified(config.identity(), hashes.get(config.weights, ""))
    return same | space | varied | {name: value for name, value in document.items() if name not in NESTED}


NESTED = ("config", "space", "weights")


def weights_of(config: Config, space: Space) -> dict[str, str]:
    """The SHA-256 of each file of weights that a configuration or a space names, by its path.

    Raises:
        WeightsError: one cannot be read.
    """
    varied = space.get("weights")
    choices = varied.choices if isinstance(varied, CategoricalDistribution) else ()
    hashes = {path: weights_sha256(path) for path in sorted({config.weights, *map(str, choices)})}
    return {path: sha256 for path, sha256 in hashes.items() if sha256}


def begun(folder: Path) -> bool:
    """Whether the study in `folder` has come as far as its trials; until then nothing in it is worth keeping."""
    return (folder / TRIALS).exists()


def saved_split(folder: Path) -> Split | None:
    """The split of the study in `folder`, or None where none has begun there.

    Raises:
        FileError: its files cannot be read, or are not those that the study began with.
    """
    if not (folder / IDENTITY).exists():
        return None
    split = read_split(folder / SPLIT)
    if split.fingerprint() != results.read(folder / IDENTITY, StudyFile)["split"]:
        raise FileError(
            f"{folder / SPLIT} is not the split that the study began with, or {excluded_file(folder / SPLIT).name} "
            "beside it is not (their fingerprint differs); restore both, or start anew with --overwrite."
        )
    return split


def clear(folder: Path) -> None:
    """Delete the study in `folder`, so that it can start anew; a folder that is no study is left as it is."""
    files.clear_folder(folder, IDENTITY)


def trial_rows(trials: Sequence[FrozenTrial], space: Space) -> list[dict[str, Json]]:
    """The rows of trials.csv."""
    rows: list[dict[str, Json]] = []
    for trial in trials:
        row: dict[str, Json] = {"number": trial.number, "state": trial.state.name, "value": trial.value}
        params = {name: trial.params.get(name) for name in space}
        rows.append(row | params | {key: trial.user_attrs.get(key) for key in FACTS})
    return rows
