"""The child process in which a model without a certificate is loaded and run before it is used.

ONNX Runtime is no sandbox: some damaged graphs end its process, hang, or fill the memory.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np

from busi_tune.errors import BusiTuneError, FileError
from busi_tune.images import Pixels
from busi_tune.inference.classifier import LARGEST_SIDE, Classifier, Optimisation

# Of processor time, and for a large model more: 100 MB load in less than a second. On a busy machine it takes longer.
SECONDS = 4
PATIENCE = 3
BYTES_A_SECOND = 100_000_000
MOST_BYTES = 4_000_000_000
SIZES = ((1, 41, 53), (2, 320, 256), (1, LARGEST_SIDE, LARGEST_SIDE))


def try_in_a_child(model: Path, optimisation: Optimisation) -> None:
    """Load `model` and run it on three batches, in a child process with limits (see `limit`).

    Raises:
        FileError: it is refused there, crashes, or takes too long or too much memory.
    """
    seconds = SECONDS + model.stat().st_size // BYTES_A_SECOND
    command = [
        sys.executable,
        "-P",
        "-m",
        "busi_tune.inference.probe",
        str(model.resolve()),
        optimisation,
        str(seconds),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        # A command of our own; the only argument from outside is a file's name.
        done = subprocess.run(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FileError(
            f"{model} did not answer within {PATIENCE * seconds} s when it was tried; it is not used."
        ) from None
    if done.returncode == BusiTuneError.exit_code and done.stdout:
        raise FileError(done.stdout.decode(errors="replace").strip())
    if done.returncode != 0:
        raise FileError(f"{model} ended the process in which it was tried ({done.returncode}); it is not used.")


def examples(classifier: Classifier) -> list[Pixels]:
    """Batches of noise that the model takes, up to the largest image that is given to it."""
    generator = np.random.default_rng(0)
    side = classifier.fixed_size
    shapes = [(n, side or height, side or width, 3) for n, height, width in SIZES]
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def limit(seconds: int, size: int) -> None:
    """Limit this process to `seconds` of processor time and `size` bytes of address space, without a core file.

    Windows has no such limits, and macOS none of the address space.
    """
    try:
        import resource
    except ModuleNotFoundError:
        # The parent's own limit, on the time that passes, holds everywhere.
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds}
    if sys.platform != "darwin":
        limits[resource.RLIMIT_AS] = size
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(model: str, optimisation: str, seconds: str) -> int:
    """The child's work; the sentence of a refusal goes to stdout."""
    path = Path(model)
    limit(int(seconds), MOST_BYTES + 6 * path.stat().st_size)
    try:
        classifier = Classifier(path, threads=1, optimisation=cast("Optimisation", optimisation))
        for pixels in examples(classifier):
            classifier.run(pixels)
    except BusiTuneError as error:
        sys.stdout.buffer.write(str(error).encode(errors="surrogateescape"))
        return BusiTuneError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
