"""Writes trials into Optuna's tables, many rows in one transaction: its own calls take a transaction for each row."""

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

Change = tuple[FrozenTrial | None, FrozenTrial]


def states(engine: Engine, study_id: int, numbers: Collection[int], since: int) -> dict[int, tuple[int, TrialState]]:
    """Ids and states of the trials with these numbers and of those from `since` on, by their numbers."""
    trials = models.TrialModel
    columns = select(trials.number, trials.trial_id, trials.state).where(trials.study_id == study_id)
    asked = columns.where(or_(trials.number >= since, trials.number.in_(numbers))).order_by(trials.number)
    with engine.connect() as connection:
        return {row.number: (row.trial_id, row.state) for row in connection.execute(asked)}


def write(engine: Engine, study_id: int, changes: Mapping[int, Change]) -> None:
    """Write how trials have changed, by their numbers, new ones from None: all of it or nothing.

    It can be done again where it is not known whether it was done.
    """
    add = postgresql.insert if engine.name == "postgresql" else sqlite.insert
    with engine.begin() as connection:
        rows: dict[Any, list[dict[str, Any]]] = {}
        ended = []
        for trial_id, old, new in _with_ids(connection, study_id, changes):
            for table, row in _rows(trial_id, old, new):
                rows.setdefault(table, []).append(row)
            if new.state.is_finished():
                ended.append((trial_id, new.state))
        for table, some in rows.items():
            connection.execute(add(table).on_conflict_do_nothing(), some)
        for trial_id, state in ended:
            _move(connection, trial_id, TrialState.RUNNING, state, datetime_complete=_now())


def _with_ids(
    connection: Connection, study_id: int, changes: Mapping[int, Change]
) -> Iterator[tuple[int, FrozenTrial | None, FrozenTrial]]:
    """The changes with the trials' ids; those that the database does not have are made, those that wait are begun."""
    trials = models.TrialModel
    if any(old is None for old, _ in changes.values()):
        # As Optuna does where it makes a trial: one that is made by a connection that was given up is waited for.
        study = select(models.StudyModel.study_id).where(models.StudyModel.study_id == study_id)
        connection.execute(study.with_for_update())
    known = select(trials.number, trials.trial_id).where(trials.study_id == study_id, trials.number.in_(changes))
    ids = {row.number: row.trial_id for row in connection.execute(known)}
    for number, (old, new) in changes.items():
        if number not in ids:
            begun = insert(trials).returning(trials.trial_id)
            values = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": _now()}
            ids[number] = connection.execute(begun, values).scalar_one()
        elif old is None:
            _move(connection, ids[number], TrialState.WAITING, TrialState.RUNNING, datetime_start=_now())
        yield ids[number], old, new


def _move(connection: Connection, trial_id: int, old: TrialState, new: TrialState, **values: Any) -> None:
    trials = models.TrialModel.__table__
    where = (trials.c.trial_id == trial_id, trials.c.state == old)
    connection.execute(update(trials).where(*where).values(state=new, **values))


def _now() -> datetime:
    # As Optuna has it: UTC, without saying so.
    return datetime.now(UTC).replace(tzinfo=None)


def _rows(trial_id: int, old: FrozenTrial | None, new: FrozenTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The rows that `new` has and `old` has not; nothing of a trial is ever changed or taken back."""
    for name, distribution in new.distributions.items():
        if old is None or name not in old.distributions:
            value = distribution.to_internal_repr(new.params[name])
            text = distribution_to_json(distribution)
            row = {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}
            yield models.TrialParamModel, row
    for step, reported in new.intermediate_values.items():
        if old is None or step not in old.intermediate_values:
            stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(reported)
            row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
            yield models.TrialIntermediateValueModel, row
    for table, attribute in (
        (models.TrialUserAttributeModel, "user_attrs"),
        (models.TrialSystemAttributeModel, "system_attrs"),
    ):
        for key, value in getattr(new, attribute).items():
            if old is None or key not in getattr(old, attribute):
                yield table, {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
    if new.value is not None:
        finite, sign = models.TrialValueModel.value_to_stored_repr(new.value)
        row = {"trial_id": trial_id, "objective": 0, "value": finite, "value_type": sign}
        yield models.TrialValueModel, row
