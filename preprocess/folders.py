"""Which class a folder, or a class as a CSV spells it, belongs to.

File systems and download scripts spell class names in their own ways. Each way is a key in a
dictionary, so matching takes time in proportion to the number of names, not to its square.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from tfrecords.errors import UserError

# Characters that one file system or another refuses in a name.
_REFUSED = '/\\:*?"<>|'
_REFUSED_PATTERN = re.compile(f"[{re.escape(_REFUSED)}]")
_SEPARATORS = re.compile(r"[ _-]+")
_SYMBOL = re.compile(r"[\W_]")


def match_folders(class_names: list[str], folders: Iterable[str]) -> dict[str, int]:
    """Finds the class of each folder.

    Args:
        class_names: label = index + 1.
        folders: names of class folders.

    Returns:
        The label of each folder that fits a class, see `class_finder`.

    Raises:
        UserError: a folder's name fits two classes.
    """
    find = class_finder(class_names)
    labels = {}
    for folder in folders:
        found = find(folder)
        if len(found) > 1:
            one, other = (class_names[label - 1] for label in found[:2])
            raise UserError(
                f"the folder {folder!r} fits two classes of names.csv: {one!r} and {other!r}."
                " Rename it to fit one."
            )
        if found:
            labels[folder] = found[0]
    return labels


def class_finder(class_names: list[str]) -> Callable[[str], list[int]]:
    """Returns a function that finds the classes which a spelling fits.

    Spellings are tried from exact to loose, and the first one that fits any class decides:
    the name itself, in either Unicode form; each character that a file system refuses left out,
    percent-encoded, or replaced by `_`, `-` or a space, and spaces and dots at the ends dropped;
    the same in any case; the same with `_` or `-` for spaces; the same with any other character
    that is no letter or digit in place of a refused one.

    Args:
        class_names: label = index + 1.

    Returns:
        A function from a spelling to the labels that it fits: none, one, or those it could mean.
    """
    tiers: list[dict[str, list[int]]] = [{} for _ in range(5)]
    for label, name in enumerate(class_names, 1):
        for tier, keys in zip(tiers, _class_keys(_nfc(name)), strict=True):
            for key in filter(None, keys):
                tier.setdefault(key, []).append(label)

    def find(spelling: str) -> list[int]:
        spelling = _nfc(spelling)
        decoded = _nfc(unquote(spelling)) if "%" in spelling else spelling
        for tier, near, far in zip(tiers, _keys(spelling), _keys(decoded), strict=True):
            if near in tier or far in tier:
                return sorted({*tier.get(near, ()), *tier.get(far, ())})
        return []

    return find


def _class_keys(name: str) -> list[set[str]]:
    """Returns the keys of a class name, one set a tier."""
    replaced = {name}
    refuses = _REFUSED_PATTERN.search(name) is not None
    if refuses:
        replaced |= {_REFUSED_PATTERN.sub(character, name) for character in ("", "_", "-", " ")}
    exact, *near, symbols = (set(tier) for tier in zip(*map(_keys, replaced), strict=True))
    # Only a refused character is ever replaced by an arbitrary one: "A4+" must not fit "A4-".
    return [exact & {name}, *near, symbols if refuses else set()]


def _keys(name: str) -> tuple[str, str, str, str, str]:
    """Returns the keys by which a name is compared, from exact to loose."""
    trimmed = name.strip(" .")
    folded = _nfc(trimmed.casefold())
    separated = _SEPARATORS.sub("_", folded)
    return name, trimmed, folded, separated, _SYMBOL.sub("_", folded)


def _nfc(text: str) -> str:
    """Normalizes: one accent is written in two ways, by Apple's file systems in the longer."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
