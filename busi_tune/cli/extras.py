"""Packages that the plain installation leaves out, because `predict` and `verify` do not need them."""

from collections.abc import Sequence
from typing import get_args

from busi_tune.logs import Tracker

# These packages are sufficient for `evaluate` of an export.
EVALUATION = frozenset({"matplotlib", "pandas", "scipy", "sklearn"})
TRAINING = EVALUATION | {
    "jinja2",
    "onnx",
    "onnxscript",
    "optuna",
    "plotly",
    "safetensors",
    "tenacity",
    "torch",
    "torchvision",
    "tqdm",
}
SERVING = frozenset({"starlette", "uvicorn"})
# The trackers of --log, each with an extra of its own name.
TRACKERS = get_args(Tracker)
# The extra that installs each package.
EXTRAS = dict.fromkeys(TRAINING, "train") | dict.fromkeys(SERVING, "serve") | {name: name for name in TRACKERS}


def missing(module: str, arguments: Sequence[str]) -> str:
    """The error sentence for a command, given by its arguments, if a module of EXTRAS is not installed."""
    name = module.partition(".")[0]
    extra = "evaluate" if arguments[:1] == ["evaluate"] and name in EVALUATION else EXTRAS[name]
    line = f"pip install '/path/to/busi-tune[{extra}]'"
    return f"This command needs {name}, which is not installed; {line} installs all it takes."
