"""Runs in MLflow: in a database beside the results, or on the server that MLFLOW_TRACKING_URI names."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from busi_tune.errors import FileError
from busi_tune.logs.records import Record
from busi_tune.results import EpochRecord

# The environment variable that names a server; an empty value is none.
SERVER = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
# The tags of a run that identify its training and its logged content.
IDENTITY, CONTENT = "busi_tune.identity", "busi_tune.content"
# The maximum number of metrics in a batch that MLflow accepts, and the number of values of an epoch.
BATCH, VALUES = 1000, len(EpochRecord.__annotations__) - 1
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@contextmanager
def client(folder: Path) -> Iterator[MlflowClient]:
    """A connection to the tracking server, or to the database in `folder`.

    Raises:
        FileError: the server or the database cannot be used.
    """
    uri = os.environ.get(SERVER)
    # Hide the messages about the database's migrations.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield MlflowClient(tracking_uri=uri or f"sqlite:///{folder / DATABASE}")
    except MlflowException as error:
        place = f"the server of {SERVER}" if uri else str(folder / DATABASE)
        # The address may hold a password.
        reason = re.sub(r"//[^/@\s]*@", "//", (str(error).splitlines() or ["unknown reason"])[0]).rstrip(".")
        raise FileError(
            f"MLflow could not use {place} ({reason}); fix that and run the same command again: the results are kept."
        ) from error


def check(folder: Path) -> None:
    """Connect once, so that a wrong address is refused before training.

    Raises:
        FileError: the server or the database cannot be used.
    """
    with client(folder) as connection:
        connection.search_experiments(max_results=1)


def write(folder: Path, experiment: str, records: Iterable[Record]) -> None:
    """Add the records to an experiment: new runs, and the new epochs and metrics of known runs. Nothing is deleted.

    Raises:
        FileError: the server or the database cannot be used.
    """
    with client(folder) as connection:
        known = connection.get_experiment_by_name(experiment)
        artifacts = None if os.environ.get(SERVER) else (folder / "mlflow").as_uri()
        number = known.experiment_id if known else connection.create_experiment(experiment, artifacts)
        runs = {run.data.tags.get(IDENTITY, ""): run for run in _runs(connection, number)}
        for record in records:
            run = runs.get(record.identity) or connection.create_run(
                number,
                start_time=_milliseconds(record.began),
                tags={IDENTITY: record.identity},
                run_name=record.name or experiment,
            )
            if run.data.tags.get(CONTENT) != record.content:
                _update(connection, run, record)


def _runs(connection: MlflowClient, experiment: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = connection.search_runs([experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _update(connection: MlflowClient, run: Run, record: Record) -> None:
    number = run.info.run_id
    if not run.data.params:
        connection.log_batch(number, params=[Param(key, str(value)) for key, value in record.parameters.items()])
    last = max((point.step for point in connection.get_metric_history(number, "val_loss")), default=0)
    time, points = record.began, list[Metric]()
    for epoch in record.epochs:
        time += epoch["seconds"]
        if epoch["epoch"] > last:
            points += _points(epoch, time)
    # A batch holds whole epochs, so an interruption never leaves part of an epoch.
    size = BATCH - BATCH % VALUES
    for start in range(0, len(points), size):
        connection.log_batch(number, metrics=points[start : start + size])
    figures = {_key(key): value for key, value in record.metrics.items()}
    figures = {key: value for key, value in figures.items() if run.data.metrics.get(key) != value}
    metrics = [Metric(key, value, _milliseconds(time), record.best_epoch) for key, value in figures.items()]
    for start in range(0, len(metrics), BATCH):
        connection.log_batch(number, metrics=metrics[start : start + BATCH])
    if record.state in STATUS:
        connection.set_terminated(number, STATUS[record.state], _milliseconds(time))
    # These tags come last: an interrupted update lacks them, and the next call repeats it.
    connection.log_batch(number, tags=[RunTag("state", record.state), RunTag(CONTENT, record.content)])


def _points(epoch: EpochRecord, time: float) -> list[Metric]:
    values = {key: value for key, value in epoch.items() if key != "epoch" and isinstance(value, int | float)}
    return [Metric(key, float(value), _milliseconds(time), epoch["epoch"]) for key, value in values.items()]


def _key(name: str) -> str:
    """The name of a metric for MLflow; other characters than MLflow accepts become their codes."""
    return re.sub(r"[^\w.\-: /]", lambda found: f"_x{ord(found[0]):x}_", name)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
