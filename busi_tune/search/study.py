"""The Optuna study: what it is of, how it samples and prunes, and its trials as a table."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from busi_tune import files
from busi_tune.config import Config, differences
from busi_tune.data.split import Split, read_split
from busi_tune.errors import FileError, RunError
from busi_tune.search.space import Space
from busi_tune.training.folder import FIRST_FILES, SPLIT

METRICS = {
    "val_loss": StudyDirection.MINIMIZE,
    "val_accuracy": StudyDirection.MAXIMIZE,
    "val_macro_f1": StudyDirection.MAXIMIZE,
}
DATABASE = "study.db"
IDENTITY = "study.json"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study is of; more trials of the same plan continue it. `config` is resolved (no `auto`)."""

    config: Config
    space: Space
    metric: str
    trial_epochs: int
    split: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one level deep, so that two plans can be compared key by key."""
        space = {f"space.{name}": distribution_to_json(value) for name, value in self.space.items()}
        own = {"metric": self.metric, "trial_epochs": self.trial_epochs, "split": self.split}
        return self.config.to_dict() | space | own

    @property
    def warm_up(self) -> int:
        """Epochs before anything is pruned: longer than the scheduler's patience where the trials are."""
        return min(self.config.scheduler_patience + 1, max(1, self.trial_epochs // 2))


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn a failing database into one sentence."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).splitlines()[0]
        raise FileError(
            f"The study's database {folder / DATABASE} failed ({reason}); mend that and run the same command again."
        ) from error


def open_study(folder: Path, plan: Plan) -> optuna.Study:
    """Open the study of `plan` in `folder`, or create it with the baseline as its first trial.

    Raises:
        FileError: the database cannot be used.
    """
    logging.getLogger("optuna").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    with storage_errors(folder):
        url = URL.create("sqlite", database=str((folder / DATABASE).resolve()))
        storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage,
            study_name="busi-tune",
            direction=METRICS[plan.metric],
            pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=plan.warm_up, n_min_trials=3),
            load_if_exists=True,
        )
        if not study.trials:
            study.enqueue_trial({name: getattr(plan.config, name) for name in plan.space})
    return study


def check_plan(folder: Path, plan: Plan, split: Split) -> None:
    """Write study.json and the split into a new folder; refuse a folder that holds another study.

    Raises:
        RunError: the plans differ, or the folder holds something that is no study.
    """
    path = folder / IDENTITY
    if not path.exists():
        files.refuse_foreign(folder, "a study", FIRST_FILES)
        split.write(folder / SPLIT)
        files.write_json(path, plan.to_dict())
        return
    different = differences(files.read_json(path), plan.to_dict())
    if different:
        raise RunError(
            f"{folder} holds another study ({'; '.join(different)}); name another --out, "
            "or start anew with --overwrite."
        )


def saved_split(folder: Path) -> Split | None:
    """The split of the study in `folder`, or None where none has begun there."""
    return read_split(folder / SPLIT) if (folder / IDENTITY).exists() else None


def clear(folder: Path) -> None:
    """Delete the study in `folder`, so that it can start anew; a folder that is no study is left as it is."""
    files.clear_folder(folder, IDENTITY)


def next_trial(study: optuna.Study, plan: Plan) -> optuna.Trial:
    """The trial that a killed driver left running, or else a new one, with all its parameters drawn.

    What the sampler draws is a function of the seed, the trial's number and the finished trials, so that a
    study that was interrupted goes on as if it had not been.
    """
    running = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    number = running[0].number if running else len([t for t in study.trials if t.state != TrialState.WAITING])
    study.sampler = _sampler(plan, number, 0)
    trial = optuna.Trial(study, running[0]._trial_id) if running else study.ask()
    # Jointly drawn parameters are drawn here, all at once; the rest one by one, each from a seed of its own, so
    # that a kill between two of them leaves the later ones what they would have been.
    joint = trial.relative_params
    for index, (name, distribution) in enumerate(plan.space.items(), start=1):
        study.sampler = _sampler(plan, number, 0 if name in joint else index)
        # What `ask(fixed_distributions)` does; parameters that are already drawn stay as they are.
        trial._suggest(name, distribution)
    return trial


def _sampler(plan: Plan, trial: int, parameter: int) -> TPESampler:
    seed = np.random.SeedSequence((plan.config.seed, trial, parameter)).generate_state(1)[0]
    return TPESampler(seed=int(seed))


def trial_config(plan: Plan, trial: FrozenTrial | optuna.Trial) -> Config:
    """The configuration of a trial."""
    return plan.config.replace(**trial.params)


def ranked(trials: Sequence[FrozenTrial], metric: str) -> list[FrozenTrial]:
    """The completed trials, the best first; a tie goes to the earlier trial."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if METRICS[metric] == StudyDirection.MINIMIZE else -1
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended, in the order of their numbers."""
    return study.get_trials(states=FINISHED)


def trial_rows(trials: Sequence[FrozenTrial], space: Space) -> list[dict[str, object]]:
    """The rows of trials.csv."""
    kept = ("epochs_run", "best_epoch", "seconds", "stop_reason")
    return [
        {"number": trial.number, "state": trial.state.name, "value": trial.value}
        | {name: trial.params.get(name) for name in space}
        | {key: trial.user_attrs.get(key) for key in kept}
        for trial in trials
    ]
