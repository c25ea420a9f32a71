"""Recognition of masks in class folders, by their names, or by their pixels if they pair with an image by name."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from busi_tune import files, images
from busi_tune.data import digests
from busi_tune.errors import FileError, ImageError
from busi_tune.names import composed

BREAK = re.compile(r"[\s_.-]+")
# A JPEG of a mask has grey edges. All but this share of its pixels (MOST_BETWEEN) are within NEAR of one of two values.
# The two values differ by at least APART.
NEAR, APART, MOST_BETWEEN = 12, 96, 0.02
VERSION = 1


def masks_by_name(folder: Path, paths: Iterable[Path]) -> set[Path]:
    """The files of a class folder that are masks by their names, or by the name of a subfolder that holds them."""
    return {path for path in paths if images.is_mask_in(folder, path)}


def masks_by_pixels(root: Path, paths: Sequence[Path]) -> set[Path]:
    """The files of a class that are masks by their pixels: they have two values and pair with an image of their size.

    Files that do not pair with another file by name are not opened. The result is cached on this machine, so that
    unchanged files are not opened again.
    """
    pairs = _Pairs(paths)
    candidates = [path for path in paths if pairs.has_any(path)]
    if not candidates:
        return set()
    memory = digests.cache_folder() / f"{_key(root, candidates)}.masks"
    known = {path.relative_to(root).as_posix(): path for path in candidates}
    with suppress(OSError, ValueError):
        names = memory.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if set(names) <= set(known):
            return {known[name] for name in names}
    with ThreadPoolExecutor() as pool:
        binary = {path for path, two in zip(candidates, pool.map(_two_valued, candidates), strict=True) if two}
    found = {
        path for path in binary if any(image not in binary and _size(image) == _size(path) for image in pairs.of(path))
    }
    with suppress(FileError):
        files.make_folder(memory.parent)
        files.write_text(memory, "".join(f"{name}\n" for name, path in sorted(known.items()) if path in found))
    return found


class _Pairs:
    """Pairs of files by name: x_roi with x in the same folder, or x with x of another folder or format.

    A number after a name does not make a pair, because x_2 is another image of a series.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.same: dict[str, list[Path]] = defaultdict(list)
        self.longer: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for path in paths:
            self.same[_stem(path)].append(path)
            for stem in set(_shorter(_stem(path))):
                self.longer[path.parent, stem].append(path)

    def of(self, path: Path) -> Iterator[Path]:
        """The files that pair with `path`."""
        stem = _stem(path)
        yield from (other for other in self.same[stem] if other != path)
        yield from self.longer.get((path.parent, stem), ())
        for shorter in _shorter(stem):
            yield from (image for image in self.same.get(shorter, ()) if image.parent == path.parent)

    def has_any(self, path: Path) -> bool:
        """Whether a file pairs with `path`."""
        return next(self.of(path), None) is not None


def _stem(path: Path) -> str:
    return composed(path.stem).casefold()


def _shorter(stem: str) -> Iterator[str]:
    """The stems that remain when words, but not numbers alone, are removed from the start or the end of `stem`."""
    for gap in BREAK.finditer(stem):
        before, after = stem[: gap.start()], stem[gap.end() :]
        if not re.fullmatch(r"\W*\d+\W*", after):
            yield before
        if not re.fullmatch(r"\W*\d+\W*", before):
            yield after


def _key(root: Path, paths: Iterable[Path]) -> str:
    key = hashlib.sha256(f"{VERSION} {root.absolute()}".encode(errors="surrogateescape"))
    for path in sorted(paths):
        state = digests.state(path)
        fact = f"\n{path.relative_to(root).as_posix()} {state and (state.size, state.modified)}"
        key.update(fact.encode(errors="surrogateescape"))
    return key.hexdigest()[:32]


def _two_valued(path: Path) -> bool:
    """Whether an image has at most two colours, apart from the edges of a JPEG. False if the file cannot be read."""
    try:
        pixels = images.picture(path)
    except (ImageError, OSError):
        return False
    grey = pixels.max(axis=2)
    low, high = int(grey.min()), int(grey.max())
    counts = np.bincount(grey.reshape(-1), minlength=256)
    if (counts > 0).sum() <= 2:
        return bool((pixels == grey[..., None]).all()) or _colours(pixels) <= 2
    between = counts[low + NEAR + 1 : high - NEAR].sum()
    return high - low >= APART and bool(between <= MOST_BETWEEN * grey.size)


def _colours(pixels: images.Pixels) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def _size(path: Path) -> tuple[int, ...]:
    try:
        return images.picture(path).shape
    except (ImageError, OSError):
        return ()
