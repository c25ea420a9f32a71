"""Packages that the plain installation leaves out, because `predict` and `verify` do not need them."""

from collections.abc import Sequence

# Enough for `evaluate` of an export.
EVALUATION = frozenset({"matplotlib", "pandas", "scipy", "sklearn"})
TRAINING = EVALUATION | {
    "jinja2",
    "onnx",
    "onnxscript",
    "optuna",
    "safetensors",
    "tenacity",
    "torch",
    "torchvision",
}


def missing(module: str, arguments: Sequence[str]) -> str:
    """The sentence for a command, given by its arguments, that needs a module of TRAINING which is not installed."""
    name = module.partition(".")[0]
    extra = "evaluate" if arguments[:1] == ["evaluate"] and name in EVALUATION else "train"
    return f"This command needs {name}, which is not installed; pip install 'busi-tune[{extra}]' installs all it takes."
