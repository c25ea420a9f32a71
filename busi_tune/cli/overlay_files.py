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
    """A folder that receives the overlay of each prediction; `again` allows it to replace existing pictures."""

    folder: Path
    again: bool
    written: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, arguments: Sequence[str], *, again: bool, more: bool) -> "OverlayFolder":
        """The folder, created if it does not exist. With `again` or `more`, it may hold files.

        Raises:
            FileError: it holds files, or lies in a folder of images that the command's `arguments` name.
        """
        for argument in map(Path, arguments):
            if argument.is_dir() and folder.resolve().is_relative_to(argument.resolve()):
                raise FileError(
                    f"--explain {folder} lies in {argument}, whose pictures are classified, so overlays would be taken "
                    "for images; name a folder beside it."
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
        """Write the overlay of a prediction, and return the prediction with the file's name; errors have no overlay.

        Raises:
            FileError: the file exists and may not be replaced, or the file system refuses.
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
    """The name of an image's overlay: the safe part of its name, and digits that tell equal names apart.

    It depends on the path of the image only, so neither the order nor the number of images changes it.
    """
    stem = re.sub(r"[^\w-]+", "_", Path(path).stem)[:LONGEST].strip("_-")
    return f"{stem or 'image'}-{files.sha256_bytes(os.fsencode(path))[:12]}.png"
