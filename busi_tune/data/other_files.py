"""Files in class folders that are not read. Pictures of other formats stop a command; other files are reported."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from busi_tune import images
from busi_tune.errors import DataError, listed
from busi_tune.progress import Progress


def other_files(root: Path) -> list[Path]:
    """The files in class folders that are neither images nor masks by name, without hidden and system files."""
    found = images.walk(root, others=True)
    return [path for path in found if path.parent != root and not images.is_mask(path)]


def check_other_files(root: Path, progress: Progress) -> None:
    """Refuse a data folder with pictures that cannot be read, and report other files that are left out.

    Raises:
        DataError: the folder has pictures of other formats, or files without a suffix.
    """
    others = other_files(root)
    foreign = [path for path in others if images.is_foreign(path)]
    if foreign:
        names = [path.relative_to(root).as_posix() for path in foreign]
        dicom = any(map(images.is_dicom, foreign))
        raise DataError(
            f"{len(foreign)} files in {root} would be left out ({counted(foreign)}: {listed(names, most=5)}); convert "
            f"them to PNG{f' (DICOM: {images.TO_CONVERT_DICOM})' if dicom else ''}, give images their suffix, or move "
            "the files away."
        )
    if others:
        progress.notice(f"Other files left out: {counted(others)}.")


def counted(paths: Sequence[Path]) -> str:
    """The suffixes of files with their counts, the most frequent first."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
