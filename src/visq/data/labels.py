"""From the class folders of images to class indices."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from visq.data.records import Record
from visq.data.sources import ArraySource
from visq.errors import VisqError

UNLABELLED = -1

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def label(
    records: Sequence[Record], classes: Sequence[str] | None, data: str, *, warn: bool
) -> tuple[list[int], Sequence[str]]:
    """Returns a class index for each record (`UNLABELLED` without class folders), and the class names in order.

    Arguments:
        classes: the model's class names in order; None derives the order from the records.
        data: what errors call the data.
        warn: says when folders were ordered by number where other tools order by spelling.
    Raises:
        VisqError: only some images have a class, a class the model does not have, or an order that is a guess.
    """
    found = {record.class_name for record in records}
    if None in found:
        if len(found) > 1:
            raise VisqError(f"data {data!r}: some images have class folders and some have none")
        return [UNLABELLED] * len(records), ()
    present = {name for name in found if name is not None}
    # Arrays bring labels as numbers, whose order is no guess.
    arrays = any(isinstance(record.source, ArraySource) for record in records)
    if classes is not None:
        names = list(classes)
    elif arrays and present <= set(FASHION_MNIST_CLASSES):
        names = list(FASHION_MNIST_CLASSES)
    else:
        names = _ordered(present, data)
    if classes is None and warn and not arrays and names != sorted(names):
        warnings.warn(
            f"{data}: class folders are numbers and get labels by number ({', '.join(names[:3])}, ...); a model "
            f"trained on them in the order of spelling ({', '.join(sorted(names)[:3])}, ...) needs --classes",
            stacklevel=2,
        )
    unknown = sorted(present - set(names))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise VisqError(
            f"data {data!r}: class {unknown[0]!r}{more} is not among the model's {len(names)} classes "
            f"({', '.join(names[:3])}, ...)"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name in present)
    if twice:
        raise VisqError(f"data {data!r}: class {twice[0]!r} stands twice among the model's classes; which is meant?")
    index = {name: number for number, name in enumerate(names)}
    return [index[record.class_name] for record in records if record.class_name is not None], names


def _ordered(names: set[str], data: str) -> list[str]:
    """Orders class names by number where all of them are numbers, else by spelling."""
    if not all(name.isdecimal() for name in names):
        return sorted(names)
    for value, count in Counter(int(name) for name in names).items():
        if count > 1:
            same = sorted(name for name in names if int(name) == value)
            raise VisqError(f"data {data!r}: class folders {' and '.join(same)} are the same number; pass --classes")
    return sorted(names, key=int)
