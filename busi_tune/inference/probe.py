"""A model from elsewhere is first loaded and run in a process of its own, which may crash, hang or eat memory.

ONNX Runtime is no sandbox: there are damaged graphs that end its process. This finds them before ours is at stake.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from busi_tune.errors import BusiTuneError, FileError
from busi_tune.images import Pixels
from busi_tune.inference.classifier import Classifier
from busi_tune.inference.predictions import LARGEST_SIDE

# Of processor time, and for a large model more: 100 MB load in less than a second. On a busy machine it takes longer.
SECONDS = 4
PATIENCE = 3
BYTES_A_SECOND = 100_000_000
MOST_BYTES = 4_000_000_000
SIZES = ((1, 41, 53), (2, 320, 256), (1, LARGEST_SIDE, LARGEST_SIDE))


def try_in_a_child(model: Path, optimisation: str) -> None:
    """Load `model` and run it on three batches, in a child process with limits.

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


def main(model: str, optimisation: str, seconds: str) -> int:
    """What the child does; the sentence of a refusal goes to stdout."""
    size = MOST_BYTES + 6 * Path(model).stat().st_size
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: int(seconds), resource.RLIMIT_AS: size}
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    try:
        classifier = Classifier(Path(model), threads=1, optimisation=optimisation)
        for pixels in examples(classifier):
            classifier.run(pixels)
    except BusiTuneError as error:
        sys.stdout.buffer.write(str(error).encode(errors="surrogateescape"))
        return BusiTuneError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
