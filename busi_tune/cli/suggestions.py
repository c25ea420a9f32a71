"""Suggestions of existing files for arguments that name no file."""

import difflib
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

# With more names, a search would take long and find too many matches.
MOST_NAMES = 10_000
# The errors about a file that is not there.
MISSING = re.compile(r"does not exist|[Nn]o such|holds no |is not a folder")


def did_you_mean(arguments: Sequence[str], error: str) -> str:
    """A "Did you mean" for the first argument in the error that is close to an existing path; "" if there is none."""
    if not MISSING.search(error):
        # The error is about a file that the command would write, or about its content.
        return ""
    texts = [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]
    found = (nearest(Path(text)) for text in texts if text and text in error)
    return next((f" Did you mean {path}?" for path in found if path is not None), "")


def nearest(path: Path) -> Path | None:
    """The existing path that is most similar to a missing one and differs in the first missing name, or None."""
    try:
        if os.path.lexists(path):
            return None
        parent = next(above for above in path.parents if above.is_dir())
        missing, *rest = path.relative_to(parent).parts
        with os.scandir(parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_NAMES)]
    except (OSError, ValueError, StopIteration):
        return None
    folded = {name.casefold(): name for name in sorted(names)}
    for close in difflib.get_close_matches(missing.casefold(), folded, n=3, cutoff=0.7):
        found = parent / Path(folded[close], *rest)
        if found.exists():
            return found
    return None
