"""Splits the stacked directions of SS2D checkpoints, and stacks them again.

Public code of SS2D keeps its four scans in one tensor each (`x_proj_weight` [4, R + 2N, C], `A_logs` [4 C, N], ...).
`visq.models.ssm.SS2D` has a module for each direction. A family's `unpack` and `pack` call these functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError

#: Directions of SS2D.
FOUR = 4
#: Stacked tensor -> the parameter of one direction.
STACKED = {
    "x_proj_weight": "x_proj.weight",
    "dt_projs_weight": "dt_proj.weight",
    "dt_projs_bias": "dt_proj.bias",
    "A_logs": "A_log",
    "Ds": "D",
}
#: Stacked tensors whose first axis holds directions and channels together.
_FLAT = ("A_logs", "Ds")


def split_directions(tensors: dict[str, Tensor], count: int = FOUR) -> dict[str, Tensor]:
    """Returns the tensors with `op.A_logs` as `op.directions.0.A_log` to `op.directions.3.A_log`, and so on.

    Arguments:
        count: directions of a block.
    Raises:
        VisqError: a stacked tensor does not hold so many directions.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, dot, last = name.rpartition(".")
        if last not in STACKED:
            result[name] = tensor
            continue
        if not tensor.ndim or tensor.shape[0] % count or (last not in _FLAT and tensor.shape[0] != count):
            raise VisqError(f"{name} {list(tensor.shape)} does not hold the {count} directions of SS2D")
        for direction, part in enumerate(tensor.unflatten(0, (count, -1)) if last in _FLAT else tensor):
            result[f"{head}{dot}directions.{direction}.{STACKED[last]}"] = part.clone()
    return result


def stack_directions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `split_directions`."""
    result: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    official = {ours: theirs for theirs, ours in STACKED.items()}
    for name, tensor in tensors.items():
        head, found, rest = name.rpartition("directions.")
        if found:
            stacks.setdefault(head + official[rest.partition(".")[2]], []).append(tensor)
        else:
            result[name] = tensor
    for name, parts in stacks.items():
        result[name] = torch.cat(parts) if name.endswith(_FLAT) else torch.stack(parts)
    return result
