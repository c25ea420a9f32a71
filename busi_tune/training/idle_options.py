"""Detection of scheduler and early-stopping options that had no effect in a set of trainings."""

from collections.abc import Collection, Mapping, Sequence

from busi_tune.config import Config
from busi_tune.training.epochs import Epoch, Watcher


def never_acted(
    histories: Mapping[int, Sequence[Epoch]], configs: Mapping[int, Config], varied: Collection[str]
) -> list[str]:
    """A sentence for each option in `varied` without effect in any trial. The mappings are keyed by trial number."""
    trained = [(history, configs[number]) for number, history in histories.items() if history]
    if not trained:
        return []
    lowered = [_lowered(history) for history, _ in trained]
    bounded = [_bounded(history, config) for history, config in trained]
    stopped = [_stopped(history, config) for history, config in trained]
    rules = {
        "scheduler_patience": (lowered, "the learning rate was lowered"),
        "scheduler_factor": (lowered, "the learning rate was lowered"),
        "min_learning_rate": (bounded, "the learning rate came down to it"),
        "early_stopping_patience": (stopped, "training was stopped early"),
    }
    return [
        f"{name} had no effect: {what} in none of the {len(trained)} trials."
        for name, (acted, what) in rules.items()
        if name in varied and not any(acted)
    ]


def _lowered(history: Sequence[Epoch]) -> bool:
    return history[-1].learning_rate < history[0].learning_rate


def _bounded(history: Sequence[Epoch], config: Config) -> bool:
    """Whether the learning rate reached its lower bound, or was never above it."""
    lowest = min(record.learning_rate for record in history)
    return lowest <= config.min_learning_rate


def _stopped(history: Sequence[Epoch], config: Config) -> bool:
    watcher = Watcher(config.early_stopping_patience)
    for record in history:
        watcher.see(record)
    return watcher.should_stop(len(history))
