"""The overlays of predictions as PNG files in a folder."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from busi_tune import files
from busi_tune.errors import FileError
from busi_tune.inference import Prediction
from busi_tune.overlays import explained_png

LONGEST = 60


@dataclass
class OverlayFolder:
    """A folder for the overlay of each prediction. `again` means that existing pictures may be replaced."""

    folder: Path
    again: bool
    written: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, arguments: Sequence[str], *, again: bool, more: bool) -> "OverlayFolder":
        """The folder, created if it does not exist. With `again` or `more`, it may hold files.

        Raises:
            FileError: it holds files, or is inside a folder of images in the command's `arguments`.
        """
        for argument in map(Path, arguments):
            if argument.is_dir() and folder.resolve().is_relative_to(argument.resolve()):
                raise FileError(
                    f"--explain {folder} is inside {argument}, so its overlays would be classified as images; name "
                    f"a folder outside {argument}."
                )
        files.make_folder(folder)
        with files.explained(folder, "read"):
            held = next((entry.name for entry in folder.iterdir() if not files.is_system(entry.name)), None)
        if held is not None and not (again or more):
            raise FileError(
                f"{folder} is not empty (it holds {held}); name another folder for --explain, or add --overwrite."
            )
        return cls(folder, again)

    def add(self, prediction: Prediction) -> Prediction:
        """Write the overlay of a prediction, and return the prediction with the name of the file.

        A prediction that is an error has no overlay, and is returned unchanged.

        Raises:
            FileError: the file exists and may not be replaced, or it cannot be written.
        """
        if prediction.explanation is None:
            return prediction
        path = self.folder / overlay_name(prediction.path)
        if path.exists() and not self.again and path.name not in self.written:
            raise FileError(f"{path} exists; name another folder for --explain, or add --overwrite.")
        self.written.add(path.name)
        title = f"{prediction.predicted} {max(prediction.probabilities):.4f}"
        picture = explained_png(prediction.explanation, title, Title=title, Source=prediction.path)
        files.write_bytes(path, picture)
        return replace(prediction, explanation=None, overlay=str(path))


def overlay_name(path: str) -> str:
    """The name of an image's overlay: the image's name without unsafe characters, and digits that make it unique.

    The name depends only on the path of the image, not on the order or number of images.
    """
    stem = re.sub(r"[^\w-]+", "_", Path(path).stem)[:LONGEST].strip("_-")
    return f"{stem or 'image'}-{files.sha256_bytes(os.fsencode(path))[:12]}.png"
