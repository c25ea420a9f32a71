"""The errors that a user can cause: each is one sentence, printed as it is, without a traceback.

BusiTuneError            exit code 1
  ConfigError            exit code 2: an option, a config file or a search space is wrong
  DataError              the data folder or its images
    ImageError           one image that cannot be read
  FileError              a file or folder that cannot be read or written
  RunError               a run, study or export folder that holds something else
  WeightsError           pretrained weights that cannot be had
  TrainingDiverged       a loss that is no longer a finite number
  OutOfMemory            a configuration that is too large for the device
  WorkerLost             a trial whose workers die again and again
  ParityError            an export that does not answer as its model does
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
    """An image that cannot be read; the message is the bare reason."""


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
    """A trial whose worker processes die again and again."""


class ParityError(BusiTuneError):
    """An ONNX model whose answers differ from its PyTorch model's."""


def listed(items: list[str], most: int = 10) -> str:
    """Join `items` with commas, at most `most` by name, then how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """`text` with everything that is not printable written out: a terminal or a browser would obey it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
