"""Handles names of tensors in other people's files: removes prefixes and makes names printable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Prefixes of DataParallel and torch.compile. No network's own names begin with them.
_WRAPPERS = ("module.", "_orig_mod.")


def without_common_prefix(names: list[str]) -> tuple[list[str], str]:
    """Returns the names without the dotted prefix that all of them share, and that prefix ("" when there is none).

    A prefix before a number stays: `layers.0.weight` and `layers.1.weight` are names of a list. So does the name of a
    single layer: `head.weight` and `head.bias` are a head.
    """
    prefix = ""
    while names:
        first = names[0].partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in names):
            break
        shorter = [name.removeprefix(first) for name in names]
        if first not in _WRAPPERS and (any(n[0].isdigit() for n in shorter) or not any("." in n for n in shorter)):
            break
        names, prefix = shorter, prefix + first
    return names, prefix


def candidates(names: Iterable[str]) -> list[str]:
    """Returns the dotted prefixes that some of the names share, the most frequent first."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(1, min(len(parts), 4)):
            if not parts[i].isdigit():
                found[".".join(parts[:i]) + "."] += 1
    return [prefix for prefix, count in found.most_common(8) if count > 1]


def printable(name: Any) -> str:
    """Returns a name out of a file, shortened and without characters that move a terminal's cursor."""
    text = name if isinstance(name, str) else repr(name) if isinstance(name, int | float | bytes) else "?"
    text = "".join(c if c.isprintable() else "?" for c in text[:100])
    return text + ("..." if isinstance(name, str) and len(name) > 100 else "")
