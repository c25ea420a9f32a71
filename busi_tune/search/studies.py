"""The Optuna study: what it is of, how it samples and prunes, and its trials as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from busi_tune import files
from busi_tune.config import Config, differences
from busi_tune.data.split import Split, read_split
from busi_tune.errors import ConfigError, RunError
from busi_tune.results import SPLIT
from busi_tune.search.space import Space
from busi_tune.search.storage import Database, shown

METRICS = {
    "val_loss": StudyDirection.MINIMIZE,
    "val_accuracy": StudyDirection.MAXIMIZE,
    "val_macro_f1": StudyDirection.MAXIMIZE,
}
IDENTITY = "study.json"
TRIALS = "trials"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Nothing is pruned against fewer completed trials than this: one survivor must not decide alone.
N_MIN_TRIALS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study is of; more trials of the same plan continue it. `config` is resolved (no `auto`)."""

    config: Config
    space: Space
    metric: str
    trial_epochs: int
    split: str
    pruner: str = "median"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one level deep, so that two plans can be compared key by key."""
        space = {f"space.{name}": distribution_to_json(value) for name, value in self.space.items()}
        names = ("metric", "trial_epochs", "split", "pruner")
        own = {name: getattr(self, name) for name in names}
        return self.config.to_dict() | space | own


def sign_of(metric: str) -> int:
    """1 where a lower value is better, else -1."""
    return 1 if METRICS[metric] == StudyDirection.MINIMIZE else -1


def make_pruner(plan: Plan) -> BasePruner:
    """The pruner that `plan` names; when it may speak at all, `should_prune` decides."""
    if plan.pruner == "none":
        return NopPruner()
    if plan.pruner == "hyperband":
        return HyperbandPruner(min_resource=min(2, plan.trial_epochs), max_resource=plan.trial_epochs)
    return MedianPruner(n_startup_trials=5, n_min_trials=N_MIN_TRIALS)


def check_plan(folder: Path, plan: Plan, split: Split, database: Database) -> str:
    """Write study.json and the split into a new folder; refuse a folder that holds another study; its name.

    Raises:
        RunError: the plans differ.
    """
    path = folder / IDENTITY
    # A server holds many studies, so there it needs a name that no other has.
    place = {"storage": shown(database.url), "study": f"busi-tune-{uuid4()}"} if database.shared else {}
    if not path.exists():
        split.write(folder / SPLIT)
        files.write_json(path, plan.to_dict() | place)
    known = files.read_json(path)
    name = known.pop("study", "busi-tune")
    different = differences(known, plan.to_dict() | {key: value for key, value in place.items() if key != "study"})
    if different:
        raise RunError(
            f"{folder} holds another study ({'; '.join(different)}); name another --out, "
            "or start anew with --overwrite."
        )
    return str(name)


def begun(folder: Path) -> bool:
    """Whether the study in `folder` has got as far as its trials; until then nothing of it is worth keeping."""
    return (folder / TRIALS).exists()


def saved_split(folder: Path) -> Split | None:
    """The split of the study in `folder`, or None where none has begun there."""
    return read_split(folder / SPLIT) if (folder / IDENTITY).exists() else None


def clear(folder: Path) -> None:
    """Delete the study in `folder`, so that it can start anew; a folder that is no study is left as it is."""
    files.clear_folder(folder, IDENTITY)


def draw(study: optuna.Study, plan: Plan, trial_id: int, number: int, searched: IntersectionSearchSpace) -> None:
    """Draw all parameters of the trial of this id; `searched` spares a look at all earlier trials.

    What the sampler draws is a function of the seed, the trial's number and the finished trials, so that a
    study that was interrupted goes on as if it had not been.
    """
    study.sampler = _sampler(plan, number, 0)
    study.sampler._search_space = searched
    trial = optuna.Trial(study, trial_id)
    # Jointly drawn parameters are drawn here, all at once; the rest one by one, each from a seed of its own.
    joint = trial.relative_params
    for index, (name, distribution) in enumerate(plan.space.items(), start=1):
        study.sampler = _sampler(plan, number, 0 if name in joint else index)
        # What `ask(fixed_distributions)` does; parameters that are already drawn stay as they are.
        trial._suggest(name, distribution)


def _sampler(plan: Plan, trial: int, parameter: int) -> TPESampler:
    seed = np.random.SeedSequence((plan.config.seed, trial, parameter)).generate_state(1)[0]
    return TPESampler(seed=int(seed))


def impossible(plan: Plan, enqueued: Mapping[str, Any]) -> str:
    """Why no trial can have these values, which somebody else enqueued, or nothing; outside the space's ends it can."""
    wanted = {name: value for name, value in enqueued.items() if name in plan.space}
    try:
        plan.config.replace(**wanted)
    except ConfigError as error:
        return str(error)
    for name, value in wanted.items():
        distribution = plan.space[name]
        if isinstance(distribution, CategoricalDistribution) and value not in distribution.choices:
            return f"{name} must be one of {', '.join(map(str, distribution.choices))}, not {value}."
    return ""


def trial_config(plan: Plan, trial: FrozenTrial | optuna.Trial) -> Config:
    """The configuration of a trial."""
    return plan.config.replace(**trial.params)


def epochs_run(trial: FrozenTrial) -> int:
    """How many epochs a trial has had; of one that runs, how many it has reported."""
    return int(trial.user_attrs.get("epochs_run", len(trial.intermediate_values)))


def trial_rows(trials: Sequence[FrozenTrial], space: Space) -> list[dict[str, object]]:
    """The rows of trials.csv."""
    kept = ("epochs_run", "best_epoch", "seconds", "stop_reason")
    return [
        {"number": trial.number, "state": trial.state.name, "value": trial.value}
        | {name: trial.params.get(name) for name in space}
        | {key: trial.user_attrs.get(key) for key in kept}
        for trial in trials
    ]
