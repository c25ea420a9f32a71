"""The record of an epoch, and the rule of early stopping; without PyTorch."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Epoch:
    """One epoch's record: the row of history.csv. Losses are weighted means over all images."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    seconds: float
    images_per_second: float

    def summary(self) -> str:
        """The record in a few words, for a line or a bar."""
        return (
            f"loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f}, accuracy {self.val_accuracy:.3f}, "
            f"learning rate {self.learning_rate:g}, {self.images_per_second:.0f} images/s"
        )


@dataclass
class Watcher:
    """Which epoch is the best so far, and whether training should stop: values, not exceptions.

    The epoch kept is the one of best validation accuracy; a tie goes to the lower validation loss. Training
    stops when the validation loss has not fallen below its lowest for `patience` epochs.
    """

    patience: int
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_accuracy_loss: float = math.inf
    tied_epochs: list[int] = field(default_factory=list)
    lowest_loss_epoch: int = 0
    lowest_loss: float = math.inf

    def see(self, record: Epoch) -> bool:
        """Take in one epoch; True when it is the best so far."""
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
