"""Decisions of FP32 and of the quantized network on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visq.analysis.significance import mcnemar
from visq.data import Dataset
from visq.quant.site_error import decibels

Row = dict[str, Any]
Floats = NDArray[np.float32]

#: Classes that the page lists: those that lose most.
CLASSES = 10


@torch.no_grad()
def logits_of(network: Any, images: Dataset, batch_size: int) -> tuple[Floats, NDArray[np.int64]]:
    """Returns logits [n, classes] float32 and labels [n]; -1 stands for no label."""
    found, labels = [], []
    for batch, target in images.batches(batch_size):
        found.append(network(batch).numpy())
        labels.append(target.numpy())
    return np.concatenate(found), np.concatenate(labels)


def decisions(
    found: Floats, exact: Floats | None, labels: NDArray[np.int64], images: Dataset, classes: Sequence[str] | None
) -> Row:
    """Returns accuracy and agreement; what cannot be said is None.

    Arguments:
        found, exact: logits [n, classes] of the quantized network, and of FP32 where it is at hand.
        classes: names of the outputs; None numbers them.
    """
    n, labelled = len(found), images.labelled
    finite = np.isfinite(found).all(1)
    row: Row = {"data": images.name, "images": n, "labelled": labelled, "skipped": len(images.skipped)}
    row["nonfinite"] = n - int(finite.sum())
    row |= dict.fromkeys(("top1", "top5", "fp32_top1", "fp32_top5", "drop", "drop_low", "drop_high"))
    row |= dict.fromkeys(("lost", "gained", "p_value", "agree", "agreement", "logit_sqnr_db", "classes"))
    if labelled:
        row |= {"top1": hits(found, labels, 1), "top5": hits(found, labels, 5)}
    if exact is None:
        return row
    decided, original = chosen(found), chosen(exact)
    agree = int((decided == original).sum())
    row |= {"agree": agree, "agreement": 100 * agree / n, "logit_sqnr_db": logit_sqnr(found[finite], exact[finite])}
    if labelled:
        row |= {"fp32_top1": hits(exact, labels, 1), "fp32_top5": hits(exact, labels, 5)}
        row |= losses(decided == labels, original == labels)
        row["classes"] = by_class(decided, original, labels, classes)
    return row


def chosen(logits: Floats) -> NDArray[np.int64]:
    """Returns the likeliest class of every image [n]; -2 where a logit is NaN or infinite, which is never right."""
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), -2)


def logit_sqnr(found: Floats, exact: Floats) -> float | None:
    """Returns the SQNR of logits without what all classes of an image share, which decides nothing."""
    signal, noisy = (x - x.mean(1, keepdims=True, dtype=float) for x in (exact, found))
    return decibels(float(np.square(signal).sum()), float(np.square(noisy - signal).sum()))


def hits(logits: Floats, labels: NDArray[np.int64], k: int) -> float:
    """Returns the share of images, in percent, whose label is among the k likeliest classes."""
    best = torch.from_numpy(logits).topk(min(k, logits.shape[1]), dim=1).indices.numpy()
    right = (best == labels[:, None]).any(1) & np.isfinite(logits).all(1)
    return 100 * float(right.mean())


def losses(found: NDArray[np.bool_], exact: NDArray[np.bool_]) -> Row:
    """Returns the drop in points with its 95 % interval and McNemar's test.

    The interval is Agresti and Min's (2005): Wald's with half an image more in each of the four cells.

    Arguments:
        found, exact: [n] right or wrong, of the quantized network and of FP32.
    """
    paired, n = mcnemar(exact, found), len(found)
    lost, gained, count = paired.lost + 0.5, paired.gained + 0.5, n + 2
    difference = (lost - gained) / count
    error = math.sqrt((lost + gained) / count - difference**2) / math.sqrt(count)
    return {
        "drop": 100 * (paired.lost - paired.gained) / n,
        "drop_low": 100 * (difference - 1.96 * error),
        "drop_high": 100 * (difference + 1.96 * error),
        **vars(paired),
    }


def by_class(
    found: NDArray[np.int64], exact: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str] | None
) -> list[Row]:
    """Returns the classes that lose most images: name, images, right in FP32, right when quantized."""
    rows: list[Row] = []
    for label in np.unique(labels).tolist():
        here = labels == label
        right, before = int((found[here] == label).sum()), int((exact[here] == label).sum())
        name = str(label) if names is None else names[label]
        rows.append({"class": name, "images": int(here.sum()), "fp32_right": before, "right": right})
    return sorted(rows, key=lambda row: row["right"] - row["fp32_right"])[:CLASSES]
