"""Packages that the plain installation leaves out, because `predict` and `verify` do not need them."""

TRAINING = frozenset(
    {
        "jinja2",
        "matplotlib",
        "onnx",
        "onnxscript",
        "optuna",
        "pandas",
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
    line = "pip install '/path/to/busi-tune[train]'"
    return f"This command needs {name}, which is not installed; {line} installs all it takes."
