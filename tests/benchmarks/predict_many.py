"""Peak memory of `predict` for few and for many files: in a folder, by a pattern, and listed on stdin.

    PYTHONPATH=tests/support python tests/benchmarks/predict_many.py --files 100000

It uses the tiny model of the tests, so the memory is not that of the model.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from small_export import small_model, write_export

PREDICT = """
import sys
from pathlib import Path
from busi_tune.cli import exit_code
code = exit_code(["predict", *sys.argv[1:]])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""


def peak(arguments: list[str], listed: Path) -> tuple[float, float]:
    """Peak memory in MB, as Linux reports it, and seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-c", PREDICT, *arguments]
    with listed.open() as given:
        done = subprocess.run(command, stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return int(done.stderr) * 1024 / 1e6, time.perf_counter() - started


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        export = write_export(place / "export", {"model.onnx": small_model()})
        image = place / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)).save(image)
        for count in (1000, options.files):
            folder = place / str(count)
            for number in range(count):
                path = folder / f"{number // 1000:03}" / f"{number:06}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Symbolic links, because file systems limit the number of hard links to a file.
                path.symlink_to(image)
            listed = place / "list.txt"
            listed.write_text("".join(f"{path}\n" for path in sorted(folder.rglob("*.png"))))
            ways = {"folder": [str(folder)], "pattern": [f"{folder}/**/*.png"], "stdin": ["-"]}
            for way, arguments in ways.items():
                options_of_all = ["--jsonl", "--csv", str(place / "answers.csv")]
                memory, seconds = peak([str(export), *arguments, *options_of_all], listed)
                print(f"{count:,} files, {way}: {memory:.0f} MB, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
