"""The record of an epoch and the rule of early stopping. This module does not import PyTorch."""

import math
from dataclasses import dataclass, field

from busi_tune.results import EpochRecord, StoppingState


@dataclass(frozen=True)
class Epoch:
    """The record of one epoch: a row of history.csv. Losses are class-weighted means over all images."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    seconds: float
    images_per_second: float

    @classmethod
    def from_record(cls, record: EpochRecord) -> "Epoch":
        """Convert a saved record. Unknown keys are ignored."""
        return cls(
            epoch=record["epoch"],
            train_loss=record["train_loss"],
            val_loss=record["val_loss"],
            val_accuracy=record["val_accuracy"],
            val_macro_f1=record["val_macro_f1"],
            learning_rate=record["learning_rate"],
            seconds=record["seconds"],
            images_per_second=record["images_per_second"],
        )

    def summary(self, until: int, best: float | None = None) -> str:
        """The record as a line of a terminal of 80 columns; `best` is the best validation accuracy so far."""
        accuracy = f"{self.val_accuracy:.3f}" + ("" if best is None else f" (best {best:.3f})")
        return (
            f"epoch {self.epoch}/{until}  loss {self.train_loss:.4g}  val_loss {self.val_loss:.4g}  "
            f"val_acc {accuracy}  {self.seconds:.1f} s"
        )


@dataclass
class Watcher:
    """Tracks the best epoch so far and decides whether training should stop.

    The best epoch has the highest validation accuracy; a tie goes to the lower validation loss. Training stops when
    `patience` epochs in a row have no new lowest validation loss.
    """

    patience: int
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_accuracy_loss: float = math.inf
    tied_epochs: list[int] = field(default_factory=list)
    lowest_loss_epoch: int = 0
    lowest_loss: float = math.inf

    @classmethod
    def from_state(cls, state: StoppingState) -> "Watcher":
        """Convert a saved state. Unknown keys are ignored."""
        return cls(
            patience=state["patience"],
            best_epoch=state["best_epoch"],
            best_accuracy=state["best_accuracy"],
            best_accuracy_loss=state["best_accuracy_loss"],
            tied_epochs=list(state["tied_epochs"]),
            lowest_loss_epoch=state["lowest_loss_epoch"],
            lowest_loss=state["lowest_loss"],
        )

    def see(self, record: Epoch) -> bool:
        """Add the record of one epoch. Returns True if the epoch is the best so far."""
        if record.val_loss < self.lowest_loss:
            self.lowest_loss, self.lowest_loss_epoch = record.val_loss, record.epoch
        if record.val_accuracy > self.best_accuracy:
            self.tied_epochs = []
        elif record.val_accuracy < self.best_accuracy:
            return False
        self.tied_epochs.append(record.epoch)
        better = len(self.tied_epochs) == 1 or record.val_loss < self.best_accuracy_loss
        if better:
            self.best_epoch = record.epoch
            self.best_accuracy, self.best_accuracy_loss = record.val_accuracy, record.val_loss
        return better

    def should_stop(self, epoch: int) -> bool:
        """Whether `patience` epochs have passed since the lowest validation loss."""
        return epoch - self.lowest_loss_epoch >= self.patience
