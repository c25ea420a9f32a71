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
from busi_tune.inference.classifier import Classifier, Optimisation

# The child gets SECONDS of processor time, and one more for each 100 MB, which load in less than a second. On a busy
# machine, PATIENCE times as much time may pass.
SECONDS = 4
PATIENCE = 3
BYTES_A_SECOND = 100_000_000
MOST_BYTES = 4_000_000_000
BATCHES = (1, 2)


def try_in_a_child(model: Path, optimisation: Optimisation) -> None:
    """Load `model` and run it on two batches, in a child process with limits (see `limit`).

    Raises:
        FileError: the model is refused, crashes, or takes too much time or memory.
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
        # The command is our own. Only the file's name comes from outside.
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
    """Batches of noise in the size in which `predict` gives pictures to the model."""
    generator, side = np.random.default_rng(0), classifier.image_size
    return [generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8) for count in BATCHES]


def limit(seconds: int, size: int) -> None:
    """Limit this process to `seconds` of processor time and `size` bytes of address space, without a core file.

    Windows has neither limit. macOS does not limit the address space.
    """
    try:
        import resource
    except ModuleNotFoundError:
        # The parent limits the elapsed time on all systems.
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds}
    if sys.platform != "darwin":
        limits[resource.RLIMIT_AS] = size
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(model: str, optimisation: str, seconds: str) -> int:
    """Load and run the model in the child process. Returns the exit code; an error message is written to stdout."""
    path = Path(model)
    limit(int(seconds), MOST_BYTES + 6 * path.stat().st_size)
    try:
        classifier = Classifier(path, threads=1, optimisation=cast("Optimisation", optimisation))
        for pixels in examples(classifier):
            classifier.run(pixels, maps=classifier.has_maps)
    except BusiTuneError as error:
        sys.stdout.buffer.write(str(error).encode(errors="surrogateescape"))
        return BusiTuneError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
