"""Hints that labels, not the model, are wrong: a terrible top-1 that another order of classes explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

#: A top-1 at or above this is not called terrible [percent].
TERRIBLE = 50.0
#: An order explains a terrible top-1 if it gives at least twice as much and so much more [points].
GAIN = 20.0


def label_hint(predictions: Indices, labels: Indices, classes: Sequence[str]) -> str | None:
    """Returns one line when another order of the classes would explain a terrible top-1, else None.

    Arguments:
        predictions, labels: [n] class indices, in the order of the data set.
        classes: the class names that labels index.
    """
    if len(labels) == 0:
        return None
    top1 = 100 * float(np.mean(predictions == labels))
    explained = reordered_top1(predictions, labels)
    if top1 >= TERRIBLE or explained < max(2 * top1, top1 + GAIN):
        return None
    which = ""
    for name, order in known_orders(classes).items():
        if 100 * float(np.mean(predictions == order[labels])) >= 0.95 * explained:
            which = f", {name}"
            break
    return (
        f"top-1 is {top1:.1f} %, and would be about {explained:.1f} % if the model had its classes in another order"
        f"{which}: labels may not be in the model's order; give its class names with --classes"
    )


def reordered_top1(predictions: Indices, labels: Indices) -> float:
    """Returns the top-1 in percent under the best order of the model's outputs.

    The order is found on every second image and measured on the others, and the reverse: an order of many classes can
    be made to fit any few predictions, but not images it was not made for.
    """
    right = 0
    for half in (0, 1):
        order = match_outputs(predictions[half::2], labels[half::2], 1 + int(max(predictions.max(), labels.max())))
        right += int(np.sum(predictions[1 - half :: 2] == order[labels[1 - half :: 2]]))
    return 100 * right / len(labels)


def match_outputs(predictions: Indices, labels: Indices, count: int) -> Indices:
    """Returns the output that belongs to each label, [count], by greedy matching; -1 for a label without one.

    The pair of label and output with the most images is matched first, so that every output is taken once.
    """
    confusion = np.bincount(labels * count + predictions, minlength=count * count)
    order = np.full(count, -1, np.int64)
    taken = np.zeros(count, bool)
    for pair in np.argsort(-confusion, kind="stable")[: np.count_nonzero(confusion)]:
        label, output = divmod(int(pair), count)
        if order[label] < 0 and not taken[output]:
            order[label], taken[output] = output, True
    return order


def known_orders(classes: Sequence[str]) -> dict[str, Indices]:
    """Returns the orders that mistakes usually come from, by name: the output of each label, [len(classes)]."""
    count = np.arange(len(classes))
    orders = {"shifted by one": count + 1, "shifted by one the other way": count - 1, "reversed": count[::-1]}
    if len(set(classes)) == len(classes):
        orders["that of spelling"] = _positions(classes, sorted(classes))
        if all(name.isdecimal() for name in classes):
            orders["that of numbers"] = _positions(classes, sorted(classes, key=int))
    return {name: order for name, order in orders.items() if not np.array_equal(order, count)}


def _positions(classes: Sequence[str], order: Sequence[str]) -> Indices:
    index = {name: position for position, name in enumerate(order)}
    return np.array([index[name] for name in classes], np.int64)
