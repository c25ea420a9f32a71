"""A cache of decoded images: one memory-mapped uint8 array for each size, named by the contents of the images.

`find_decoded` passes over a folder once. It reads and hashes each file, and decodes the file to all sizes whose array
is not in the cache.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from busi_tune import files, images, locks
from busi_tune.data import digests
from busi_tune.data.digests import cache_folder
from busi_tune.data.listing import Listing, find_names, hashed
from busi_tune.data.twins import THUMBNAIL
from busi_tune.decoding import Note
from busi_tune.errors import DataError, ImageError, listed
from busi_tune.images import Pixels
from busi_tune.progress import Progress

Array = np.memmap[tuple[int, ...], np.dtype[np.uint8]]


def find_decoded(root: Path, sizes: Iterable[int], progress: Progress) -> Listing:
    """List the images in the same way as `find_images`, and create the missing arrays of `sizes` in the same pass.

    If a file cannot be decoded, no array is created, and `decoded` names the file later.

    Raises:
        DataError: see `find_images`.
        FileError: the cache cannot be written.
    """
    found = find_names(root)
    paths = [path for path, _, _ in found.images]
    names = [path.relative_to(root).as_posix() for path in paths]
    # If files are missing, `hashed` raises an error that names them.
    if all(path.exists() for path in paths) and _missing(root, names, sizes):
        with locks.only_writer(cache_folder(), wait=True):
            # Another process may have created the arrays while this one waited.
            missing = _missing(root, names, sizes)
            sha256s, problems = _decode(root, names, missing, progress) if missing else ([], [])
        if missing and not problems:
            return found.listing(dict(zip(paths, sha256s, strict=True)))
    return hashed(found)


def decoded(listing: Listing, size: int, progress: Progress) -> Pixels:
    """All images in the order of the listing: uint8 RGB (images, size, size, 3).

    The array is a memory map that all processes of the machine share. Its name is a hash of the images' contents, so
    that changed images are decoded again.

    Raises:
        DataError: files cannot be decoded (the message names at most ten), or files change during decoding.
        FileError: the cache cannot be written.
    """
    path = _array_file([image.sha256 for image in listing.images], size)
    if not _seen_intact(path):
        with locks.only_writer(cache_folder(), wait=True):
            # Another process may have created the array while this one waited.
            if not _intact(path):
                _decode_listed(listing, size, path, progress)
    # "c" is copy-on-write. torch requires writable memory, and the file must not change.
    array: Pixels = np.load(path, mmap_mode="c")
    return array


def decoded_in_memory(listing: Listing, size: int, progress: Progress) -> Pixels:
    """The same array as that of `decoded`; if the cache lacks it, it is made in memory, and nothing is written.

    Raises:
        DataError: see `decoded`.
    """
    path = _array_file([image.sha256 for image in listing.images], size)
    if path in _in_memory:
        return _in_memory[path]
    if _seen_intact(path):
        kept: Pixels = np.load(path, mmap_mode="c")
        return kept
    array: Pixels = np.empty((len(listing.images), size, size, 3), np.uint8)
    names = [image.path for image in listing.images]
    sha256s, _, problems = _read_all(listing.root, names, {size: array}, progress)
    _check_read(listing, problems, unchanged=sha256s == [image.sha256 for image in listing.images])
    return _in_memory.setdefault(path, array)


_in_memory: dict[Path, Pixels] = {}


def is_cached(listing: Listing, size: int) -> bool:
    """Whether the cache has the array of `size`."""
    return _seen_intact(_array_file([image.sha256 for image in listing.images], size))


def check_decoding(listing: Listing, size: int, progress: Progress) -> None:
    """Check that all images can be decoded, without writing anything.

    The array of `size` in the cache shows it. Otherwise all images are decoded to small thumbnails.

    Raises:
        DataError: see `decoded`.
    """
    if not is_cached(listing, size):
        decoded_in_memory(listing, THUMBNAIL, progress)


def decoding_changes(listing: Listing, size: int) -> dict[str, list[str]]:
    """The paths of images that decoding changed, for each kind of change. Empty if the cache lacks the array."""
    seal = _array_file([image.sha256 for image in listing.images], size).with_suffix(".sha256")
    found: dict[str, list[str]] = {}
    for line in seal.read_text().splitlines()[1:] if seal.exists() else []:
        row, _, change = line.partition(" ")
        if row.isdigit() and int(row) < len(listing.images):
            found.setdefault(change, []).append(listing.images[int(row)].path)
    return dict(sorted(found.items()))


def _decode_listed(listing: Listing, size: int, path: Path, progress: Progress) -> None:
    _, problems = _decode(listing.root, [image.path for image in listing.images], [size], progress)
    _check_read(listing, problems, unchanged=path.exists())


def _check_read(listing: Listing, problems: list[str], *, unchanged: bool) -> None:
    if problems:
        raise DataError(
            f"{len(problems)} of {len(listing.images)} images in {listing.root} cannot be read: "
            f"{listed(sorted(problems))}; restore or remove them."
        )
    if not unchanged:
        raise DataError(f"Images in {listing.root} changed while they were read; run the same command again.")


def _array_file(sha256s: Iterable[str], size: int) -> Path:
    """The file of the array, named by the contents of the images in their order."""
    return cache_folder() / f"{_key(size, sha256s)}.npy"


def _mark_files(root: Path, names: Sequence[str], sizes: Iterable[int]) -> dict[int, Path]:
    """For each size, the mark of a folder: a small file that contains the name of the folder's array.

    The name of the mark depends on the paths, sizes and times of the folder's files. A mark only shows, before any file
    is read, whether decoding is needed. `decoded` always finds its array by the hashes of the images.
    """
    folder = [str(root.absolute())]
    for name in names:
        state = digests.state(root / name)
        folder.append(f"{name} {state and (state.size, state.modified)}")
    return {size: cache_folder() / f"{_key(size, folder)}.mark" for size in sorted(set(sizes))}


def _key(size: int, parts: Iterable[str]) -> str:
    key = hashlib.sha256(f"{images.VERSION} {images.DECODING} {size}".encode())
    for part in parts:
        key.update(part.encode())
    return key.hexdigest()[:32]


def _missing(root: Path, names: Sequence[str], sizes: Iterable[int]) -> list[int]:
    """The sizes for which the cache has no intact array of the folder's current files."""
    return [
        size
        for size, mark in _mark_files(root, names, sizes).items()
        if not (mark.exists() and _seen_intact(cache_folder() / mark.read_text(errors="replace")))
    ]


def _seen_intact(path: Path) -> bool:
    """The same as `_intact`, but an array that this process found intact is not hashed again until it changes."""
    state = digests.state(path)
    if state is None:
        return False
    if (path, state) not in _whole and _intact(path):
        _whole.add((path, state))
    return (path, state) in _whole


_whole: set[tuple[Path, digests.State]] = set()


def _intact(path: Path) -> bool:
    seal = path.with_suffix(".sha256")
    if not (path.exists() and seal.exists()):
        return False
    return seal.read_bytes().decode(errors="replace").partition("\n")[0] == files.sha256(path)


def _decode(root: Path, names: Sequence[str], sizes: Sequence[int], progress: Progress) -> tuple[list[str], list[str]]:
    """Read each file once. If all files can be decoded, keep the arrays of all `sizes`.

    Returns the SHA-256 of each file, and a line for each file that cannot be decoded, in no particular order.
    """
    marks = _mark_files(root, names, sizes)
    with ExitStack() as stack:
        arrays = {size: stack.enter_context(_reserved(mark, len(names), size)) for size, mark in marks.items()}
        sha256s, notes, problems = _read_all(root, names, arrays, progress)
        if not problems:
            for size, array in arrays.items():
                _publish(array, _array_file(sha256s, size), marks[size], notes)
    return sha256s, problems


def _read_all(
    root: Path, names: Sequence[str], arrays: Mapping[int, Pixels], progress: Progress
) -> tuple[list[str], list[tuple[Note, ...]], list[str]]:
    """Read each file once, and decode it into the array of each size.

    Returns the SHA-256 and the changes of each file, and a line for each file that cannot be decoded, in no particular
    order.
    """
    sha256s = [""] * len(names)
    notes: list[tuple[Note, ...]] = [()] * len(names)
    problems: list[str] = []

    def read(row: int) -> None:
        try:
            data, sha256s[row] = digests.content(root / names[row])
            facts, image = images.inspect(data)
            notes[row] = facts.notes
            for size, array in arrays.items():
                array[row] = images.resized(image, size)
        except ImageError as error:
            problems.append(f"{names[row]} ({error})")
        except OSError as error:
            problems.append(f"{names[row]} ({(error.strerror or str(error)).lower()})")

    with ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(read, range(len(names))), start=1):
            progress.step("decoding", done, len(names))
    progress.close("decoding")
    return sha256s, notes, problems


@contextmanager
def _reserved(mark: Path, count: int, size: int) -> Iterator[Array]:
    """Create an array in the temporary file of `mark`. The file is deleted after the block unless it was renamed."""
    temporary = files.temporary_for(mark)
    try:
        with files.explained(temporary, "written"):
            _reserve(temporary, (count, size, size, 3))
            array = open_memmap(temporary, mode="r+")
        yield array
    finally:
        temporary.unlink(missing_ok=True)


def _publish(array: Array, path: Path, mark: Path, notes: Sequence[Sequence[Note]]) -> None:
    """Give an array its final name, and write its seal and its mark.

    The seal holds the SHA-256 of the array's file, and a line for each change that decoding made to an image.
    """
    temporary = files.temporary_for(mark)
    told = [f"\n{row} {note.text}" for row, some in enumerate(notes) for note in some]
    with files.explained(path, "written"):
        array.flush()
        files.write_text(path.with_suffix(".sha256"), "".join([files.sha256(temporary), *told]))
        temporary.replace(path)
    files.write_text(mark, path.name)


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
