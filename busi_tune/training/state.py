"""The state of training between two epochs, as tensors and plain values."""

from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from busi_tune.config import Config
from busi_tune.results import EpochRecord, StoppingState, TrainingValues
from busi_tune.training.epochs import Epoch, Watcher
from busi_tune.training.model import build_model, placed, untrained
from busi_tune.training.run_folder import COMPLETE, EARLY
from busi_tune.training.weights import copy_tensors

Tensors = dict[str, Tensor]


class TrainingState:
    """The model, optimiser, scheduler and watcher after the epochs in `history`. They determine the next epoch."""

    def __init__(self, config: Config, classes: int, model: nn.Module) -> None:
        self.config = config
        self.classes = classes
        self.model = model
        self.optimizer = AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = ReduceLROnPlateau(
            self.optimizer,
            mode="min",
            factor=config.scheduler_factor,
            patience=config.scheduler_patience,
            min_lr=config.min_learning_rate,
        )
        self.watcher = Watcher(config.early_stopping_patience)
        self.history: list[Epoch] = []

    @classmethod
    def start(cls, config: Config, classes: int) -> "TrainingState":
        """The state before the first epoch; `config` must be resolved (no `auto`)."""
        return cls(config, classes, build_model(config, classes))

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def stop_reason(self) -> str:
        """The reason why training has ended, or "" if it has not."""
        if self.epoch and self.watcher.should_stop(self.epoch):
            return EARLY
        return COMPLETE if self.epoch >= self.config.epochs else ""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next epoch."""
        return float(self.optimizer.param_groups[0]["lr"])

    def weights(self) -> Tensors:
        """The model's tensors on the CPU, contiguous."""
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def tensors(self) -> Tensors:
        """All tensors that a resume needs: those of the model and of the optimiser."""
        moments = {
            f"optimizer.{name}.{key}": value.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {f"model.{name}": value for name, value in self.weights().items()} | moments

    def values(self) -> TrainingValues:
        """All plain values that a resume needs in addition to the tensors."""
        scheduler = {key: value for key, value in self.scheduler.state_dict().items() if key in SCHEDULER_KEYS}
        return {
            "history": [cast("EpochRecord", asdict(record)) for record in self.history],
            "scheduler": scheduler,
            "learning_rate": self.learning_rate,
            "watcher": cast("StoppingState", asdict(self.watcher)),
            "stop_reason": self.stop_reason,
        }

    @classmethod
    def restore(cls, config: Config, classes: int, tensors: Tensors, values: TrainingValues) -> "TrainingState":
        """Restore, bit for bit, the state that `tensors` and `values` were taken from."""
        model = placed(untrained(config, classes), config.device)
        state = cls(config, classes, model)
        own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        copy_tensors(model, own)
        for name, parameter in model.named_parameters():
            state.optimizer.state[parameter] = {
                key: _like(tensors[f"optimizer.{name}.{key}"], parameter) for key in ("step", "exp_avg", "exp_avg_sq")
            }
        state.optimizer.param_groups[0]["lr"] = values["learning_rate"]
        state.scheduler.load_state_dict({**state.scheduler.state_dict(), **values["scheduler"]})
        state.watcher = Watcher.from_state(values["watcher"])
        state.history = [Epoch.from_record(record) for record in values["history"]]
        return state


SCHEDULER_KEYS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Copy `value` to the parameter's device and, if the shapes agree, to its memory layout."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
