"""The inner loop of a scale search: how close are quantized values to a reference, for many candidate scales?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.ops import backends
from visq.ops._checks import require_dims, require_same_device, require_shape
from visq.ops.similarity_sums import cpp, naive, triton  # noqa: F401  (they register themselves)

Axis = Literal["channel", "token"]
Metric = Literal["cosine", "l1", "l2"]
_OP = "similarity_sums"


def similarity_sums(
    x: Tensor,
    reference: Tensor,
    labels: Tensor,
    candidates: Tensor,
    qmin: int,
    qmax: int,
    axis: Axis,
    *,
    metric: Metric = "cosine",
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Sums over columns, per row, group and candidate scale s, with xq = clamp(rint(x * (1 / s)), qmin, qmax) * s.

    metric "cosine": dot = sum reference * xq and sq = sum xq^2 (the caller knows sum reference^2);
    metric "l1": l1 = sum |reference - xq|; metric "l2": l2 = sum weight * (reference - xq)^2 (weight 1 when None; the
    squared gradient for a Hessian-guided search, PTQ4ViT, arXiv 2111.12293).

    Arguments:
        x, reference: float32 [R, C]; rows are (image, token) pairs, columns are channels. They may be one tensor.
        labels: int32 or int64; axis "channel": [C], the group of each column; axis "token": [R], the group of each row.
        candidates: float32 [G, K], positive: the candidate scales of each group.
        qmin, qmax: range of the codes.
        axis: which axis is grouped.
        metric: which sums to compute.
        weight: float32 [R, C], only with metric "l2".

    Returns:
        {"dot", "sq"}, {"l1"} or {"l2"}, each float32: [R, G, K] with axis "channel", [R, K] with axis "token" (a row
        meets only its own group's candidates). A group without columns sums to 0.

    Raises:
        VisqError: on a wrong shape, dtype, label or candidate.
    """
    if axis not in ("channel", "token"):
        raise VisqError(f'{_OP}: axis must be "channel" or "token", got {axis!r}')
    if metric not in ("cosine", "l1", "l2"):
        raise VisqError(f'{_OP}: metric must be "cosine", "l1" or "l2", got {metric!r}')
    first, second = _forward(x, reference, labels, candidates, qmin, qmax, axis, metric, weight)
    return {"dot": first, "sq": second} if metric == "cosine" else {metric: first}


def _check(
    x: Tensor, reference: Tensor, labels: Tensor, candidates: Tensor, axis: str, metric: str, weight: Tensor | None
) -> None:
    require_dims(_OP, "x", x, "[R, C]")
    rows, columns = x.shape
    require_shape(_OP, "reference", reference, (rows, columns), "[R, C]")
    require_dims(_OP, "candidates", candidates, "[G, K]")
    size, spelled = (rows, "[R]") if axis == "token" else (columns, "[C]")
    if labels.dtype not in (torch.int32, torch.int64) or tuple(labels.shape) != (size,):
        kind = str(labels.dtype).removeprefix("torch.")
        raise VisqError(
            f"{_OP}: labels must be int32 {spelled} = [{size}] with axis {axis!r}, got {kind} {list(labels.shape)}"
        )
    if weight is not None:
        if metric != "l2":
            raise VisqError(f'{_OP}: weight goes with metric "l2" only, got metric {metric!r}')
        require_shape(_OP, "weight", weight, (rows, columns), "[R, C]")
    require_same_device(_OP, x=x, reference=reference, labels=labels, candidates=candidates, weight=weight)


@torch.library.custom_op("visq::similarity_sums", mutates_args=())
def _forward(
    x: Tensor,
    reference: Tensor,
    labels: Tensor,
    candidates: Tensor,
    qmin: int,
    qmax: int,
    axis: str,
    metric: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(x, reference, labels, candidates, axis, metric, weight)
    groups = candidates.shape[0]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < groups:
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise VisqError(f"{_OP}: labels must lie in 0..{groups - 1} (candidates has {groups} rows), got {found}")
    if not bool(((candidates > 0) & torch.isfinite(candidates)).all()):
        raise VisqError(f"{_OP}: candidates must be positive and finite everywhere")
    return backends.call(_OP, x.device.type, x, reference, labels, candidates, qmin, qmax, axis, metric, weight)


@_forward.register_fake
def _(
    x: Tensor,
    reference: Tensor,
    labels: Tensor,
    candidates: Tensor,
    qmin: int,
    qmax: int,
    axis: str,
    metric: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(x, reference, labels, candidates, axis, metric, weight)
    groups, count = candidates.shape
    shape = (x.shape[0], count) if axis == "token" else (x.shape[0], groups, count)
    return x.new_empty(shape), x.new_empty(shape if metric == "cosine" else (0,))
