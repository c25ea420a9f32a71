"""Event files for TensorBoard. Each record has a folder; a record that has grown gets an additional event file."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from busi_tune import files
from busi_tune.files import json_text, sha256_bytes
from busi_tune.logs.records import Record

# The metrics on the HParams page, beside the parameters.
COMPARED = ("value", "validation/accuracy", "test/accuracy", "test/macro_f1")
# The name of an event file ends with the record's identity, its number of epochs, and a hash of its metrics.
MARK = ".busi-tune-"
OURS = f"events.out.tfevents.*{MARK}*"
UNMEASURED = "none"


def write(folder: Path, result: str, records: Iterable[Record]) -> None:
    """Write the records of a result into `folder/tensorboard/result`; delete the event files of records that are gone.

    Raises:
        FileError: the files cannot be written.
    """
    own = folder / "tensorboard" / result
    with files.explained(own, "written"):
        kept = {path for record in records for path in _write(folder, files.make_folder(own / record.name), record)}
        for path in own.rglob(OURS):
            if path not in kept:
                path.unlink()


def _write(folder: Path, place: Path, record: Record) -> set[Path]:
    """Write the epochs and metrics that are missing in `place`, and return all event files of the record.

    If the record has only grown, its event files stay, because a running TensorBoard expects files that only grow.
    """
    identity, metrics = record.identity[:16], _hash(record)
    known = {path: path.name.rpartition(MARK)[2].split("-") for path in place.glob(OURS)}
    own = {path: (int(epochs), measured) for path, (name, epochs, measured) in known.items() if name == identity}
    done = max((epochs for epochs, _ in own.values()), default=0)
    measured = {found for _, found in own.values()} - {UNMEASURED}
    if measured - {metrics} or done > len(record.epochs):
        own, done, measured = {}, 0, set()
    if own and done == len(record.epochs) and measured | {UNMEASURED} >= {metrics}:
        return set(own)
    suffix = f"{MARK}{identity}-{len(record.epochs)}-{metrics}"
    with tempfile.TemporaryDirectory(prefix=".", suffix=files.TEMPORARY, dir=folder) as unfinished:
        # TensorBoard discards earlier points from `purge_step` on, which another training may have written.
        with SummaryWriter(unfinished, purge_step=done + 1 if own else 0, filename_suffix=suffix) as writer:
            _fill(writer, record, done, measured=bool(measured))
        [path] = Path(unfinished).iterdir()
        return {*own, path.replace(place / path.name)}


def _hash(record: Record) -> str:
    return sha256_bytes(json_text(dict(record.metrics)).encode())[:16] if record.metrics else UNMEASURED


def _fill(writer: SummaryWriter, record: Record, done: int, *, measured: bool) -> None:
    """Write the epochs after the first `done` ones. Unless `measured`, also write the metrics and the parameters."""
    time = record.began
    for epoch in record.epochs:
        time += epoch["seconds"]
        for key, value in epoch.items():
            if key != "epoch" and epoch["epoch"] > done:
                writer.add_scalar(key, value, epoch["epoch"], walltime=time)
    if measured or not record.metrics:
        return
    for key, value in record.metrics.items():
        writer.add_scalar(key, value, record.best_epoch, walltime=time)
    compared = {key: record.metrics[key] for key in COMPARED if key in record.metrics}
    for summary in hparams(dict(record.parameters), compared):
        assert writer.file_writer is not None
        writer.file_writer.add_summary(summary, walltime=time)
