"""What an export is asked for."""

from dataclasses import asdict, dataclass
from typing import Any

from busi_tune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which models are made beside the float32 one, and what they must keep.

    `max_drop` is how much validation accuracy and malignant sensitivity an int8 or float16 model may lose;
    `sensitivity` asks for a threshold of the class malignant.
    """

    int8: bool = False
    float16: bool = False
    max_drop: float = 0.01
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise ConfigError(f"max_drop must be at least 0 and below 1, not {self.max_drop:g}.")
        if self.sensitivity is not None and not 0 < self.sensitivity < 1:
            raise ConfigError(f"sensitivity must be between 0 and 1, not {self.sensitivity:g}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
