"""The configuration of a run. The defaults of its options are the documented baseline."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from busi_tune.errors import ConfigError
from busi_tune.files import explained
from busi_tune.names import MALIGNANT, folded
from busi_tune.option import Options, Triple, option, stated

if TYPE_CHECKING:
    from busi_tune.results import Json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
HIGHEST_SEED = 2**31 - 1
Strategy = Literal["grouped", "random", "file"]
Conflicts = Literal["exclude", "keep"]
Precision = Literal["auto", "float32", "bfloat16"]


def _sum(fractions: Triple) -> str:
    return "" if abs(sum(fractions) - 1) <= 1e-6 else f"must sum to 1, not {sum(fractions):.6g}"


def _device(name: str) -> str:
    return "" if DEVICE.fullmatch(name) else f"must be auto, cpu, cuda or cuda:N, not {name!r}"


def _class_list(text: str) -> str:
    given = [name.strip() for name in text.split(",")]
    if len(given) < 2 or not all(given) or len({folded(name) for name in given}) < len(given):
        raise ValueError(f"classes must be at least two different names with commas between them, not {text!r}")
    return ",".join(given)


def _class_name(name: str | None) -> str:
    return "" if name and name.strip() else f"must name a class, not {name!r}"


@stated
@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The configuration of a run. The same configuration on the same split gives the same result.

    Raises:
        ConfigError: one or more values have a wrong type or break a rule; the message names all of them.
    """

    strategy: Strategy = option(
        "grouped",
        "How images are split: grouped keeps near-duplicates on one side, random ignores them, file follows --split",
        group="data",
    )
    fractions: Triple = option(
        (0.7, 0.15, 0.15),
        "Shares of training, validation and test images; their sum is 1",
        group="data",
        low=0.01,
        high=0.98,
        test=_sum,
    )
    similarity: float = option(
        0.93,
        "Lowest cosine similarity of two near-duplicates; a lower value makes larger groups",
        group="data",
        low=0.5,
        high=1.0,
    )
    conflicts: Conflicts = option(
        "exclude", "Near-duplicates that carry different labels: exclude leaves them out, keep uses them", group="data"
    )
    classes: str | None = option(
        None,
        "Names of all classes, as in A,B,C; another folder is then an error, and similar names are allowed",
        group="data",
        read=_class_list,
        metavar="A,B,C",
        unset="names of the folders",
    )
    positive: str | None = option(
        None,
        "Class that is the disease in sensitivity, specificity and the operating point",
        group="data",
        test=_class_name,
        metavar="NAME",
        unset="malignant, if this class exists",
    )
    split_seed: int = option(
        0,
        "Seed of the split; another seed puts other images into training, validation and test",
        group="data",
        low=0,
        high=HIGHEST_SEED,
    )
    arch: str = option(
        "resnet50", "Architecture: a classification model of torchvision, as in resnet18", group="model", metavar="NAME"
    )
    weights: str = option(
        "imagenet",
        "Initial weights: imagenet (downloaded once), none (random), or a file of weights",
        group="model",
        metavar="NAME",
    )
    image_size: int = option(224, "Height and width of the model's input, in pixels", group="model", low=16, high=1024)
    mean: Triple = option(
        IMAGENET_MEAN,
        "Mean that is subtracted from each colour channel, on a scale of 0 to 1",
        group="model",
        low=0.0,
        high=1.0,
    )
    std: Triple = option(
        IMAGENET_STD,
        "Standard deviation that each colour channel is divided by, on a scale of 0 to 1",
        group="model",
        low=1e-3,
        high=1.0,
    )
    horizontal_flip: float = option(
        0.5, "Probability that a training image is flipped horizontally", group="training", low=0.0, high=1.0
    )
    class_weights: bool = option(
        True, "Weight each class in the loss by the inverse of its frequency", group="training"
    )
    weighted_sampler: bool = option(True, "Draw each class equally often in training", group="training")
    batch_size: int = option(32, "Number of images in each training step", group="training", low=2, high=4096)
    epochs: int = option(
        80, "Maximum number of epochs; early stopping can end training earlier", group="training", low=1, high=10_000
    )
    learning_rate: float = option(1e-3, "Initial learning rate of AdamW", group="training", low=1e-8, high=10.0)
    weight_decay: float = option(1e-2, "Weight decay of AdamW", group="training", low=0.0, high=10.0)
    scheduler_factor: float = option(
        0.5, "Factor that the scheduler multiplies the learning rate by", group="training", low=0.01, high=0.99
    )
    scheduler_patience: int = option(
        5,
        "The learning rate falls after this number of epochs + 1 in a row without improvement; an improvement is a "
        "validation loss more than 0.01 % below the lowest so far",
        group="training",
        low=0,
        high=10_000,
    )
    min_learning_rate: float = option(
        1e-5, "Lowest learning rate that the scheduler sets", group="training", low=0.0, high=1.0
    )
    early_stopping_patience: int = option(
        10,
        "Training stops after this number of epochs in a row without a new lowest validation loss",
        group="training",
        low=1,
        high=10_000,
    )
    seed: int = option(
        0, "Seed of the initial weights, the sampler and the flips", group="training", low=0, high=HIGHEST_SEED
    )
    precision: Precision = option(
        "auto",
        "Number format of training; auto is bfloat16 if the hardware has bfloat16 instructions, else float32",
        group="machines",
    )
    device: str = option(
        "auto",
        "Device to train on: cpu, cuda or cuda:N; auto is cuda if PyTorch finds a GPU, else cpu",
        group="machines",
        test=_device,
        metavar="NAME",
    )

    def identity(self) -> dict[str, "Json"]:
        """The values that determine the result.

        `classes` is left out, because it only checks the folder. `positive` is compared without case. "malignant" is
        its default, so it equals None.
        """
        positive = folded(self.positive or "")
        values = self.to_dict() | {"positive": None if positive in ("", MALIGNANT) else positive}
        del values["classes"]
        return values


def read_toml(path: Path) -> dict[str, object]:
    """The content of a TOML file.

    Raises:
        FileError: the file cannot be read.
        ConfigError: the file is not valid TOML.
    """
    with explained(path, "read"):
        data = path.read_bytes()
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:  # TOML errors, Unicode errors, and integers with too many digits
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """The keys whose values differ, each as `name: old -> new`."""
    names = list(dict.fromkeys([*old, *new]))
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]
