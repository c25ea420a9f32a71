"""Rules for names that people write: equal names, misspelt names, the disease class, and names of masks."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations

from busi_tune.errors import ConfigError

MALIGNANT, BENIGN = "malignant", "benign"
WORD = re.compile(r"\d+|[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Endings that file managers add to the name of a copy: "x - Copy", "x copy 2", "x (1)", "x - Kopie".
COPY = re.compile(r"([\s_-]*(\(\d+\)|\(copy\)|[\s_-](copy|kopie|copie|copia)(\s*\(?\d+\)?)?))+$", re.IGNORECASE)
MASKS = frozenset({"mask", "masks"})
NUMBERS = re.compile(r"\d+")
# All characters of a name except signs as in ER+ and ER-: words, blanks, and a hyphen or a dot between words.
SYMBOLS = re.compile(r"[\w\s]|(?<=\w)[-.](?=\w)")
# Names of mask folders, and words that name a mask folder when added to the name of a class.
MASK_FOLDERS = MASKS | {"gt", "groundtruth", "segmentation", "segmentations"}
NEGATIONS = frozenset({"no", "non", "not", "without", "un"})
TUMOR = re.compile(r"(?P<image>.+?)[\s_.-]+tumou?r[\s_-]*\d*", re.IGNORECASE)
# Prefixes that change the meaning of a word, as in abnormal and hyperechoic.
OPPOSITES = (
    *(("", beginning) for beginning in ("a", "ab", "an", "dis", "im", "in", "no", "un")),
    ("hypo", "hyper"),
    ("micro", "macro"),
    ("intra", "inter"),
)
# A word shorter than SHORTEST is as likely another word as a misspelt one. From LONG on, two letters may be wrong.
SHORTEST, LONG = 4, 6


def composed(text: str) -> str:
    """A name in the Unicode form NFC, which most systems use. macOS may return names in the form NFD."""
    return unicodedata.normalize("NFC", text)


def folded(name: str) -> str:
    """A name for comparisons: in lower case and in the Unicode form NFKC, without blanks and invisible characters."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def identifier_key(identifier: str) -> str:
    """An identifier, `folded`, without leading zeros in its numbers: P1, p01 and "P 1" have the same key."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", folded(identifier))


def shown(names: Sequence[str]) -> str:
    """Names for an error message: quoted, and escaped if different names would look the same."""
    alike = len({composed(name) for name in names}) < len(set(names))
    return " and ".join(ascii(name) if alike else repr(name) for name in names)


def same_name(names: Sequence[str], wanted: str) -> str | None:
    """The name in `names` that equals `wanted`, exactly or else when both are `folded`; None if there is none."""
    if wanted in names:
        return wanted
    return next((name for name in names if folded(name) == folded(wanted)), None)


def positive_class(classes: Sequence[str], asked: str | None) -> str | None:
    """The disease class: `asked`, or malignant if `asked` is None; None if no class is called malignant.

    Raises:
        ConfigError: no class has the name `asked`.
    """
    found = same_name(classes, MALIGNANT if asked is None else asked)
    if asked is not None and found is None:
        raise ConfigError(f"positive must name a class, one of {', '.join(classes)}, not {asked!r}.")
    return found


def positive_word(name: str) -> str:
    """The word for a disease in the keys of results: "malignant" for the class of this name, else "positive"."""
    return MALIGNANT if folded(name) == MALIGNANT else "positive"


def words(text: str) -> list[str]:
    """The words and numbers of a name, in lower case."""
    return [word.casefold() for part in WORD.findall(text) for word in CAMEL.split(part)]


def is_mask_name(stem: str) -> bool:
    """Whether a file's name has the word mask without a negation, as in x_mask_1, "x-Mask copy" and mask1 x."""
    found = words(stem)
    return any(word in MASKS and not NEGATIONS.intersection(found[max(0, k - 1) : k]) for k, word in enumerate(found))


def masked_image(stem: str) -> str | None:
    """The name x of the image if `stem` has the form x_tumor, else None. The caller checks that the image exists."""
    match = TUMOR.fullmatch(COPY.sub("", stem))
    return match and match["image"]


def is_mask_folder(name: str) -> bool:
    """Whether a folder inside a class folder holds masks, by its name."""
    return is_mask_name(name) or "".join(words(name)) in MASK_FOLDERS


def is_mask_class(name: str, classes: Sequence[str]) -> bool:
    """Whether a class folder holds masks: its name is a mask folder's, or another class's name plus such a word."""
    found = words(name)
    rest = [word for word in found if word not in MASK_FOLDERS]
    return "".join(found) in MASK_FOLDERS or (
        rest != found and bool(rest) and any(words(other) == rest for other in classes)
    )


def without_copy(name: str) -> str:
    """A name without the ending that file managers add to the name of a copy."""
    return COPY.sub("", name)


def near_names(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names of which one is likely a misspelling or a copy of the other; None if there are none."""
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
    """Whether two different words may be one word, misspelt by one or two letters. Numbers and opposites are not."""
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
    """The number of letters to replace, insert or delete."""
    steps = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal")
