"""All images of a listing as one memory-mapped uint8 array, decoded once and kept by content."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from busi_tune import files, images, locks
from busi_tune.data.listing import Listing
from busi_tune.errors import DataError, ImageError, listed
from busi_tune.images import Pixels
from busi_tune.progress import Progress


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/busi-tune`, by default `~/.cache/busi-tune`; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "busi-tune"


def decoded(listing: Listing, size: int, progress: Progress) -> Pixels:
    """All images in the listing's order, as an array of shape (images, size, size, 3), RGB.

    The array is a memory map that every process of the machine shares; its name is the hash of the images'
    contents, so that a changed file is decoded anew.

    Raises:
        DataError: some files cannot be read; all of them are named, at most ten by name.
        FileError: the cache cannot be written.
    """
    digest = hashlib.sha256(f"{images.VERSION} {size}".encode())
    for image in listing.images:
        digest.update(image.sha256.encode())
    path = cache_folder() / f"{digest.hexdigest()[:32]}.npy"
    if not _seen_intact(path):
        # Whoever comes second waits, and finds the work done.
        with locks.only_writer(cache_folder(), wait=True):
            if not _intact(path):
                _decode_all(listing, size, path, progress)
    # "c" is copy-on-write: torch wants memory that it could write to, the file stays as it is.
    array: Pixels = np.load(path, mmap_mode="c")
    return array


def _seen_intact(path: Path) -> bool:
    """As `_intact`, without hashing a file again that this process has found to be whole and that is as it was."""
    if not path.exists():
        return False
    status = path.stat()
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _whole and _intact(path):
        _whole.add(key)
    return key in _whole


_whole: set[tuple[Path, int, int, int]] = set()


def _intact(path: Path) -> bool:
    seal = path.with_suffix(".sha256")
    return path.exists() and seal.exists() and seal.read_bytes().decode(errors="replace") == files.sha256(path)


def _decode_all(listing: Listing, size: int, path: Path, progress: Progress) -> None:
    total = len(listing.images)
    temporary = files.temporary_for(path)
    problems: list[str] = []
    with files.explained(temporary, "written"):
        _reserve(temporary, (total, size, size, 3))
        array = open_memmap(temporary, mode="r+")

    def decode(index: int) -> None:
        image = listing.images[index]
        try:
            array[index] = images.read(listing.root / image.path, size)
        except ImageError as error:
            problems.append(f"{image.path} ({error})")

    try:
        with ThreadPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(decode, range(total)), start=1):
                progress.step("decoding", done, total)
        progress.close("decoding")
        if problems:
            raise DataError(
                f"{len(problems)} of {total} images in {listing.root} cannot be read: {listed(sorted(problems))}; "
                "restore or remove them."
            )
        with files.explained(path, "written"):
            array.flush()
            files.write_text(path.with_suffix(".sha256"), files.sha256(temporary))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Allocate the whole file now: a full disk must fail here, not as a bus error in the memory map."""
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    with path.open("wb") as file:
        file.write(header.getvalue())
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), header.tell(), int(np.prod(shape)))
        else:
            for _ in range(shape[0]):
                file.write(bytes(int(np.prod(shape[1:]))))
