"""Packages that the plain installation leaves out, because `predict` and `verify` do not need them."""

TRAINING = frozenset(
    {
        "jinja2",
        "matplotlib",
        "onnx",
        "onnxscript",
        "optuna",
        "pandas",
        "plotly",
        "safetensors",
        "scipy",
        "sklearn",
        "tenacity",
        "torch",
        "torchvision",
    }
)


def missing(module: str) -> str:
    """The sentence for a command that needs a module of TRAINING where it is not installed."""
    name = module.partition(".")[0]
    return f"This command needs {name}, which is not installed; pip install 'busi-tune[train]' installs all it takes."
