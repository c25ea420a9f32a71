"""Import rules: imports go down the layers only, and each library is imported in its own parts only."""

import ast
from pathlib import Path

import pytest

import busi_tune
from busi_tune.cli.extras import EXTRAS

PACKAGE = Path(busi_tune.__file__).parent
LAYERS = (
    "cli",
    "dry_run",
    "pipeline",
    "nested",
    "external",
    "crossval",
    "search",
    "logs",
    "report",
    "serve",
    "export",
    "workers",
    "training",
    "evaluation",
    "data",
    "inference",
    "overlays",
    "images",
    "decoding",
)
BOTTOM = (
    "config",
    "crossval_options",
    "errors",
    "export_options",
    "files",
    "locks",
    "names",
    "option",
    "progress",
    "results",
    "search_options",
    "templates",
    "worker_options",
    "__init__",
    "__main__",
)
ROOMS = {
    "click": {"cli"},
    "rich": {"cli"},
    "optuna": {"search"},
    "sqlalchemy": {"search"},
    "ray": {"workers"},
    "filelock": {"locks", "workers"},
    "msgspec": {"inference", "results", "serve"},
    "cryptography": {"inference"},
    "tenacity": {"search", "workers"},
    "onnx": {"export"},
    "onnxscript": {"export"},
    "matplotlib": {"report"},
    "torch": {"training", "logs"},
    "mlflow": {"logs"},
    "tqdm": {"progress"},
    "torchvision": {"training"},
    "safetensors": {"training"},
    "sklearn": {"data", "export"},
    "scipy": {"data", "evaluation", "export"},
    "jinja2": {"templates", "report"},
    "plotly": {"report"},
    "pandas": {"data", "evaluation", "export", "report"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "markdown_it": {"serve"},
    "onnxruntime": {"inference", "export"},
    "captum": {"training"},
    # `data` needs Pillow to write phantoms; it reads images through `images` only.
    "PIL": {"images", "decoding", "data", "overlays"},
}


def room(path: Path) -> str:
    """The top-level package or module of a source file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """All absolute module names that a file imports at any level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_and_libraries_stay_in_their_rooms(path: Path) -> None:
    own = room(path)
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top in ROOMS:
            assert own in ROOMS[top], f"{path.name} imports {name}"
        other = rest.split(".")[0]
        if top == "busi_tune" and other in LAYERS and own in LAYERS:
            assert LAYERS.index(own) <= LAYERS.index(other), f"{path.name} imports upwards: {name}"
        if own in BOTTOM[:8] and top == "busi_tune":
            assert other in BOTTOM, f"{path.name} imports upwards: {name}"


def test_every_room_is_known() -> None:
    assert {room(path) for path in SOURCES} == {*LAYERS, *BOTTOM}


def test_what_inference_needs_is_installed_always_and_the_rest_is_named_when_it_is_missing() -> None:
    # rich depends on markdown_it.
    plain = {"click", "filelock", "msgspec", "rich", "markdown_it", "numpy", "PIL", "onnxruntime"}
    assert set(ROOMS) - plain - {"captum", "cryptography", "ray", "sqlalchemy"} <= set(EXTRAS)
    assert not set(EXTRAS) & plain


def test_the_tree_in_contributing_names_every_module_in_its_room() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    tree = text[text.index("busi_tune/\n") :].partition("```")[0]
    named, folder = set(), ""
    for line in tree.splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        if line.strip().split()[0].endswith("/"):
            folder = line.strip().split()[0] if indent == 2 else "outside/"
            continue
        names = {word for word in line.split() if word.endswith(".py")}
        named |= {f"{folder}{name}" if indent == 4 else name for name in names}
    modules = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if not path.name.startswith("__")}
    assert named == modules
