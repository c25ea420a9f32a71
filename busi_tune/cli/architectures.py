"""The names of torchvision's classifiers for completion, read from its source, because importing it takes seconds."""

import re
from importlib.util import find_spec
from pathlib import Path

# torchvision registers each classifier by this decorator. Those in subfolders are for other tasks.
REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def architectures() -> list[str]:
    """The names that `--arch` accepts, sorted; empty if torchvision is not installed."""
    spec = find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    paths = [path for folder in folders or [] for path in Path(folder, "models").glob("*.py")]
    return sorted(name for path in paths for name in REGISTERED.findall(path.read_text(encoding="utf-8")))
