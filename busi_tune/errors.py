"""The errors that a user can cause. Each message is one sentence, which is printed without a traceback.

BusiTuneError            exit code 1
  ConfigError            exit code 2: an option, a config file or a search space is wrong
  DataError              the data folder or its images
    ImageError           one image that cannot be read
  FileError              a file or folder that cannot be read or written
  RunError               a run, study or export folder that holds something else
  WeightsError           pretrained weights that cannot be loaded
  TrainingDiverged       a loss that is no longer a finite number
  OutOfMemory            a configuration that is too large for the device
  WorkerLost             a trial whose workers die repeatedly
  ParityError            an export whose outputs differ from those of its model
"""


class BusiTuneError(Exception):
    """Base of all errors that a user can cause; `str(error)` is the sentence to print."""

    exit_code = 1


class ConfigError(BusiTuneError):
    """A configuration that breaks a rule."""

    exit_code = 2


class DataError(BusiTuneError):
    """A data folder that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read. The message is only the reason, without the path."""


class FileError(BusiTuneError):
    """A file that cannot be read or written."""


class RunError(BusiTuneError):
    """A result folder that belongs to something else, or is in use."""


class WeightsError(BusiTuneError):
    """Pretrained weights that cannot be loaded."""


class TrainingDiverged(BusiTuneError):
    """A training loss or validation loss that is not finite."""


class OutOfMemory(BusiTuneError):
    """A configuration that needs more memory than the device has."""


class WorkerLost(BusiTuneError):
    """A trial whose worker processes die repeatedly."""


class ParityError(BusiTuneError):
    """An ONNX model whose outputs differ from those of its PyTorch model, or an export that has changed."""


def listed(items: list[str], most: int = 10) -> str:
    """Join the first `most` items with commas and add the number of the others."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """`text` with unprintable characters escaped, because a terminal or a browser would interpret them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
