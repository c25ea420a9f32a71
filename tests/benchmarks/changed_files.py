"""Edits each file of a run, a study and an export in many ways, and runs every command that reads the file.

python tests/benchmarks/changed_files.py [--every N] [--figures-every N] [--commands NAME ...]

There are three good outcomes: the command refuses in one sentence, it recreates a result with a notice, or the edit is
harmless for a known reason and the output is the same. All else is printed as wrong: a traceback, another output, or
no sentence. A table at the end counts the edits. metrics.json, verification.json and verdict.json hold hundreds of
similar figures, and each edit of metrics.json costs an evaluation, so only every N-th edit of them is made.
"""

import argparse
import os
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import track

from busi_tune.data.phantoms import make_phantoms
from busi_tune.progress import Silent
from edits import COMMANDS, Edit, answer, copied, edits_of, forged, is_wrong, make_place, tried

FIGURES = ("metrics.json", "verification.json", "verdict.json")
VERDICTS = ("refused", "made again", "harmless", "wrong")


def kind(edit: Edit) -> str:
    """The name of the edited file, without numbers of epochs and trials."""
    return Path(edit.path).name.rsplit("-0", 1)[0]


def chosen(edits: list[Edit], every: int, figures_every: int) -> list[Edit]:
    """Every `every`-th edit, and of the edits of figures every `figures_every`-th one."""
    figures = [edit for edit in edits if edit.path.endswith(FIGURES)]
    others = [edit for edit in edits if not edit.path.endswith(FIGURES)]
    return others[::every] + figures[::figures_every]


def show(command: str, counts: Counter[tuple[str, str, str]], reasons: list[tuple[str, str, str]]) -> None:
    """Prints a command's rows of the table, and the reasons why some edits are harmless."""
    print("| command | file | edits | refused | made again | harmless | wrong |\n|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(name for of, name, _ in counts if of == command):
        numbers = [counts[command, name, verdict] for verdict in VERDICTS]
        total = sum(numbers) + counts[command, name, "survived"]
        print(f"| {command} | {name} | {total} | {' | '.join(map(str, numbers))} |")
    for of, name, why in reasons:
        if of == command:
            print(f"{command}, {name}: {why}", flush=True)


def main() -> None:
    """Makes the results, runs the edits, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--figures-every", type=int, default=20)
    parser.add_argument("--commands", nargs="*", choices=list(COMMANDS))
    asked = parser.parse_args()
    counts: Counter[tuple[str, str, str]] = Counter()
    reasons: set[tuple[str, str, str]] = set()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        data, whole, place = (Path(folder, name) for name in ("data", "whole", "place"))
        data.mkdir()
        make_phantoms(data, Silent(), {"benign": 26, "malignant": 22, "normal": 20}, seed=1)
        make_place(whole, data)
        for command, (_, folders) in COMMANDS.items():
            if command not in (asked.commands or COMMANDS):
                continue
            copied(whole, place)
            expected = answer(command, place, data)
            assert expected.code == 0, expected
            edits = [edit for part in folders for edit in edits_of(whole, part)]
            some = chosen(edits, asked.every, asked.figures_every)
            for edit in track(some, command, console=Console(stderr=True)):
                found = tried(edit, command, whole, place, data, expected)
                wrong = is_wrong(found)
                counts[command, kind(edit), "wrong" if wrong else found.verdict] += 1
                if found.verdict == "harmless":
                    reasons.add((command, kind(edit), found.detail))
                if wrong:
                    print(f"WRONG {command}: {edit.path}: {edit.what}: {found.verdict} {found.detail}", flush=True)
                again = forged(edit)
                if again is not None:
                    found = tried(again, command, whole, place, data, expected)
                    crashed = found.verdict in ("a traceback", "no sentence")
                    counts[command, "without SHA-256", "wrong" if crashed else "survived"] += 1
                    if crashed:
                        print(f"WRONG {command}: {again.path}: {again.what}: {found.detail}", flush=True)
            show(command, counts, sorted(reasons))


if __name__ == "__main__":
    main()
