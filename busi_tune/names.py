"""Names as people write them: when two of them mean one thing, which class is the disease, and names of masks."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations

from busi_tune.errors import ConfigError

MALIGNANT, BENIGN = "malignant", "benign"
WORD = re.compile(r"\d+|[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Endings that file managers give to a copy: "x - Copy", "x copy 2", "x (1)", "x - Kopie".
COPY = re.compile(r"([\s_-]*(\(\d+\)|\(copy\)|[\s_-](copy|kopie|copie|copia)(\s*\(?\d+\)?)?))+$", re.IGNORECASE)
MASKS = frozenset({"mask", "masks"})
NUMBERS = re.compile(r"\d+")
# All of a name but its signs, as in ER+ and ER-: words, blanks, and what stands between words.
SYMBOLS = re.compile(r"[\w\s]|(?<=\w)[-.](?=\w)")
# Whole names of folders, or of what a folder's name adds to a class's.
MASK_FOLDERS = MASKS | {"gt", "groundtruth", "segmentation", "segmentations"}
NEGATIONS = frozenset({"no", "non", "not", "without", "un"})
TUMOR = re.compile(r"(?P<image>.+?)[\s_.-]+tumou?r[\s_-]*\d*", re.IGNORECASE)
# Beginnings that make another word of a word, as in abnormal and hyperechoic.
OPPOSITES = (
    *(("", beginning) for beginning in ("a", "ab", "an", "dis", "im", "in", "no", "un")),
    ("hypo", "hyper"),
    ("micro", "macro"),
    ("intra", "inter"),
)
# A shorter word is as likely another one as a misspelt one; from the second length on two letters may be wrong.
SHORTEST, LONG = 4, 6


def composed(text: str) -> str:
    """A name with its accents composed (NFC), as most systems write it; macOS may give the other form (NFD)."""
    return unicodedata.normalize("NFC", text)


def folded(name: str) -> str:
    """A name without case, blanks, invisible characters and Unicode form."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def identifier_key(identifier: str) -> str:
    """An identifier, `folded`, without leading zeros in its numbers: P1, p01 and "P 1" have one key."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", folded(identifier))


def shown(names: Sequence[str]) -> str:
    """Names for an error in which they must not look alike: quoted, and escaped where they do."""
    alike = len({composed(name) for name in names}) < len(set(names))
    return " and ".join(ascii(name) if alike else repr(name) for name in names)


def same_name(names: Sequence[str], wanted: str) -> str | None:
    """The name among `names` that is `wanted`, or is so without case and blanks; None where there is none."""
    if wanted in names:
        return wanted
    return next((name for name in names if folded(name) == folded(wanted)), None)


def positive_class(classes: Sequence[str], asked: str | None) -> str | None:
    """The class that is the disease: the one `asked` for, else malignant; None where no class is called so.

    Raises:
        ConfigError: no class has the name that was asked for.
    """
    found = same_name(classes, MALIGNANT if asked is None else asked)
    if asked is not None and found is None:
        raise ConfigError(f"positive must name a class, one of {', '.join(classes)}, not {asked!r}.")
    return found


def positive_word(name: str) -> str:
    """The word for a disease in the keys of results: "malignant" for the class of this name, else "positive"."""
    return MALIGNANT if folded(name) == MALIGNANT else "positive"


def words(text: str) -> list[str]:
    """The words and numbers of a name, in small letters."""
    return [word.casefold() for part in WORD.findall(text) for word in CAMEL.split(part)]


def is_mask_name(stem: str) -> bool:
    """Whether a file's name says that it is a mask: it has the word mask, as in x_mask_1, "x-Mask copy" and mask1 x."""
    found = words(stem)
    return any(word in MASKS and not NEGATIONS.intersection(found[max(0, k - 1) : k]) for k, word in enumerate(found))


def masked_image(stem: str) -> str | None:
    """The name of the image of which `stem`, as in x_tumor, would be the mask if that image exists; or None."""
    match = TUMOR.fullmatch(COPY.sub("", stem))
    return match and match["image"]


def is_mask_folder(name: str) -> bool:
    """Whether a folder inside a class is one of masks by its name."""
    return is_mask_name(name) or "".join(words(name)) in MASK_FOLDERS


def is_mask_class(name: str, classes: Sequence[str]) -> bool:
    """Whether a class folder is one of masks: it is called so, or as another of `classes` with that word added."""
    found = words(name)
    rest = [word for word in found if word not in MASK_FOLDERS]
    return "".join(found) in MASK_FOLDERS or (
        rest != found and bool(rest) and any(words(other) == rest for other in classes)
    )


def without_copy(name: str) -> str:
    """A name without what file managers add to the name of a copy."""
    return COPY.sub("", name)


def near_names(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names of which one is likely a misspelling of the other, or a copy; None where there are none."""
    return next(((one, other) for one, other in combinations(names, 2) if _near(one, other)), None)


def _near(one: str, other: str) -> bool:
    if folded(without_copy(one)) == folded(other) or folded(without_copy(other)) == folded(one):
        return True
    if SYMBOLS.sub("", one) != SYMBOLS.sub("", other):
        return False
    first, second = words(one), words(other)
    if "".join(first) == "".join(second):
        return NUMBERS.findall(one) == NUMBERS.findall(other)
    if len(first) != len(second):
        return False
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return all(_misspelt(a, b) for a, b in pairs) and sum(_edits(a, b) for a, b in pairs) <= 2


def _misspelt(one: str, other: str) -> bool:
    """Whether two different words are one or two letters apart and may be one; numbers are not, nor are opposites."""
    shorter = min(len(one), len(other))
    if shorter < SHORTEST or one.isdecimal() or other.isdecimal() or _opposite(one, other):
        return False
    swapped = sorted(one) == sorted(other)
    return _edits(one, other) <= (2 if shorter >= LONG or swapped else 1)


def _opposite(one: str, other: str) -> bool:
    return any(
        a.startswith(x) and b.startswith(y) and a[len(x) :] == b[len(y) :]
        for a, b in ((one, other), (other, one))
        for x, y in OPPOSITES
    )


def _edits(one: str, other: str) -> int:
    """Letters to replace, insert or delete."""
    steps = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal")
