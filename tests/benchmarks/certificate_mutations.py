"""Makes every change in an export's folder, one at a time, and counts those that `verify` does not notice.

python tests/benchmarks/certificate_mutations.py EXPORT
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mutations import applied, is_noticed, mutations_of


def main() -> int:
    """Prints the number of changes in each file, and the unnoticed ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    given = parser.parse_args()
    unnoticed: list[str] = []
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(given.export, Path(place) / "export"))
        for edit in mutations_of(folder):
            tried[Path(edit.path).name] += 1
            with applied(edit, folder.parent):
                if not is_noticed(folder):
                    unnoticed.append(f"{edit.path}: {edit.what}")
    for name, count in sorted(tried.items()):
        print(f"{count:6} changes of {name}")
    print(f"{len(unnoticed)} of {tried.total()} were not noticed", *unnoticed, sep="\n")
    return int(bool(unnoticed))


if __name__ == "__main__":
    sys.exit(main())
