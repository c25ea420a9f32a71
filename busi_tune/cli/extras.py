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
SERVING = frozenset({"starlette", "uvicorn"})
# The extra that installs each.
EXTRAS = dict.fromkeys(TRAINING, "train") | dict.fromkeys(SERVING, "serve")


def missing(module: str) -> str:
    """The sentence for a command that needs a module of EXTRAS where it is not installed."""
    name = module.partition(".")[0]
    extra = f"busi-tune[{EXTRAS[name]}]"
    return f"This command needs {name}, which is not installed; pip install '{extra}' installs all it takes."
