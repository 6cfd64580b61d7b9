"""Groups channels or tokens by 1-D k-means, with scales a power of two apart (arXiv 2501.16738, III-C)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError


def kmeans_1d(values: Tensor, k: int, iterations: int = 100) -> Tensor:
    """Groups scalars by Lloyd's k-means. Deterministic: centroids start at the quantiles (2i+1)/2k.

    Arguments:
        values: [n] finite.
        k: number of groups, 1 <= k <= n.
    Returns:
        labels [n] int64 in 0..k-1, ascending with the centroid. With fewer than k distinct values some labels stay
        unused: an empty cluster keeps its centroid instead of turning into NaN.
    Raises:
        VisqError: k exceeds the number of values.
    """
    n = values.numel()
    if not 1 <= k <= n:
        raise VisqError(
            f"k={k} groups are asked for, but there are only {n} channels or tokens to group; "
            f"choose k between 1 and {n}"
        )
    device = values.device
    values = values.double().cpu()  # few numbers, and the same groups on every device
    centroids = torch.quantile(values, (torch.arange(k, dtype=torch.float64) * 2 + 1) / (2 * k))
    labels = torch.zeros(n, dtype=torch.long)
    for _ in range(iterations):
        midpoints = (centroids[1:] + centroids[:-1]) / 2
        new_labels = torch.bucketize(values, midpoints)
        counts = torch.bincount(new_labels, minlength=k)
        sums = torch.zeros(k, dtype=torch.float64).index_add_(0, new_labels, values)
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        if torch.equal(new_labels, labels):
            break
        labels = new_labels
    return labels.to(device)


def power_of_two_shifts(scales: Tensor) -> Tensor:
    """Returns shifts m so that max(scales) * 2^-m is nearest to `scales` in the log domain (eq. 8).

    scales [G] > 0 -> m [G] >= 0, whole numbers in float.
    """
    return torch.log2(scales.max() / scales).round()
