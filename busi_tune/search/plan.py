"""The plan of a study, stored in study.json: configuration, search space, metric and split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files, results
from busi_tune.config import Config, differences
from busi_tune.data.split import Split, excluded_file, read_split
from busi_tune.errors import FileError, RunError, printable
from busi_tune.results import SPLIT, Json, StudyFile
from busi_tune.search.pruner import best_values
from busi_tune.search.space import Space
from busi_tune.search.storage import Database, shown
from busi_tune.training.run_folder import identified, weights_sha256

# The values recorded for an ended trial: user attributes in the database, columns in trials.csv.
FACTS = ("val_accuracy", "val_macro_f1", "epochs_run", "best_epoch", "seconds", "stop_reason")
METRICS = {
    "val_loss": StudyDirection.MINIMIZE,
    "val_accuracy": StudyDirection.MAXIMIZE,
    "val_macro_f1": StudyDirection.MAXIMIZE,
}
IDENTITY = "study.json"
TRIALS = "trials"
# The name of studies with Hyperband, which derives each trial's bracket from it: the folder's name must not decide it.
NAME = "busi-tune"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The values that all trials of a study share. A search with the same plan continues the study.

    `config` is resolved: it has no `auto`. `weights` maps the path of each file of weights that the configuration or
    the space names to its SHA-256.
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
    """Write study.json and the split into a new folder, or compare the plan with the stored one.

    Returns the study's name in Optuna.

    Raises:
        RunError: the folder holds a study of another plan or in another database.
    """
    path = folder / IDENTITY
    if not path.exists():
        split.write(folder / SPLIT)
        own = NAME if plan.pruner == "hyperband" else printable(folder.resolve().name) or NAME
        # A server holds many studies, so each needs a unique name.
        name = f"{own}-{uuid4()}" if database.shared else own
        results.write(path, plan.document(database, name))
    known, earlier = check_plan(folder, plan, database)
    if earlier != plan.config.epochs:
        results.write(path, known)
    return known["study"]


def check_plan(folder: Path, plan: Plan, database: Database) -> tuple[StudyFile, int]:
    """Compare the plan with the one stored in `folder`. Returns the stored one, extended to the epochs of `plan`.

    The second value is the number of epochs before the extension.

    Raises:
        RunError: the folder holds a study of another plan or in another database.
    """
    known = results.read(folder / IDENTITY, StudyFile)
    asked = plan.document(database, known["study"])
    if "weights" not in known:
        # An earlier version wrote this study.json, and identified files of weights by path only.
        asked.pop("weights")
    stored = known["config"].get("epochs")
    # Another type is a difference like any other.
    earlier = stored if isinstance(stored, int) else plan.config.epochs
    if earlier < plan.config.epochs:
        # A larger number of epochs is no difference: the best trials continue to it.
        known["config"]["epochs"] = plan.config.epochs
    different = differences(_flat(known), _flat(asked))
    if different:
        raise RunError(
            f"{folder} holds another study ({'; '.join(different)}); name another --out, "
            "or start over with --overwrite."
        )
    return known, earlier


def _flat(document: StudyFile) -> dict[str, object]:
    """All values of study.json in one flat dictionary, so that two documents can be compared key by key."""
    space = {f"space.{name}": text for name, text in document["space"].items()}
    config = Config.from_dict(document["config"], source=IDENTITY)
    hashes = document.get("weights", {})
    # Files in the space are compared by path and content, because Optuna stores the path as the choice.
    varied = {f"weights {path}": sha256 for path, sha256 in hashes.items()} if "weights" in document["space"] else {}
    same = identified(config.identity(), hashes.get(config.weights, ""))
    return same | space | varied | {name: value for name, value in document.items() if name not in NESTED}


NESTED = ("config", "space", "weights")


def weights_of(config: Config, space: Space) -> dict[str, str]:
    """The SHA-256 of each file of weights that a configuration or a space names, by path.

    Raises:
        WeightsError: a file cannot be read.
    """
    varied = space.get("weights")
    choices = varied.choices if isinstance(varied, CategoricalDistribution) else ()
    hashes = {path: weights_sha256(path) for path in sorted({config.weights, *map(str, choices)})}
    return {path: sha256 for path, sha256 in hashes.items() if sha256}


def begun(folder: Path) -> bool:
    """Whether the study in `folder` has reached its trials. Before that, nothing in it is worth keeping."""
    return (folder / TRIALS).exists()


def saved_split(folder: Path) -> Split | None:
    """The split of the study in `folder`, or None if there is no study.

    Raises:
        FileError: the split's files cannot be read, or differ from those that the study began with.
    """
    if not (folder / IDENTITY).exists():
        return None
    split = read_split(folder / SPLIT)
    if split.fingerprint() != results.read(folder / IDENTITY, StudyFile)["split"]:
        raise FileError(
            f"{folder / SPLIT} is not the split that the study began with, or {excluded_file(folder / SPLIT).name} "
            "beside it is not (their fingerprint differs); restore both, or start over with --overwrite."
        )
    return split


def clear(folder: Path) -> None:
    """Delete the study in `folder`, so that it can restart. A folder without a study is left unchanged."""
    files.clear_folder(folder, IDENTITY)


def value_of(trial: FrozenTrial, direction: StudyDirection) -> float | None:
    """The value of an ended trial: the best one of its epochs. Optuna values a pruned trial by its last epoch."""
    values = best_values(trial, direction) if trial.state == TrialState.PRUNED else {}
    return values[max(values)] if values else trial.value


def trial_rows(trials: Sequence[FrozenTrial], plan: Plan) -> list[dict[str, Json]]:
    """The rows of trials.csv."""
    rows: list[dict[str, Json]] = []
    for trial in trials:
        value = value_of(trial, plan.direction)
        row: dict[str, Json] = {"number": trial.number, "state": trial.state.name, "value": value}
        params = {name: trial.params.get(name) for name in plan.space}
        rows.append(row | params | {key: trial.user_attrs.get(key) for key in FACTS})
    return rows
