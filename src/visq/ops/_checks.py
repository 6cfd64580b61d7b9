"""Argument checks shared by the ops: one clear line naming the argument and both shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError


def require_shape(op: str, name: str, x: Tensor, shape: tuple[int, ...], spelled: str) -> None:
    """Requires a float32 tensor of one exact shape; `spelled` is its symbolic form, such as "[B, L, N]"."""
    require_float(op, name, x)
    if tuple(x.shape) != shape:
        raise VisqError(f"{op}: {name} must be {spelled} = {list(shape)}, got {list(x.shape)}")


def require_dims(op: str, name: str, x: Tensor, spelled: str) -> None:
    """Requires a float32 tensor with as many dimensions as `spelled` names."""
    require_float(op, name, x)
    if x.dim() != spelled.count(",") + 1:
        raise VisqError(f"{op}: {name} must be {spelled}, got {list(x.shape)}")


def require_float(op: str, name: str, x: Tensor) -> None:
    """Requires float32."""
    if x.dtype != torch.float32:
        raise VisqError(f"{op}: {name} must be float32, got {str(x.dtype).removeprefix('torch.')}")


def require_same_device(op: str, **tensors: Tensor | None) -> None:
    """Requires all tensors on one device."""
    devices = {name: str(x.device) for name, x in tensors.items() if x is not None}
    if len(set(devices.values())) > 1:
        raise VisqError(f"{op}: all tensors must be on one device, got {devices}")


def check_scan(op: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    """Checks the five inputs of a selective scan."""
    require_dims(op, "u", u, "[B, L, d_inner]")
    batch, length, d_inner = u.shape
    require_shape(op, "delta", delta, (batch, length, d_inner), "[B, L, d_inner]")
    require_dims(op, "A", A, "[d_inner, N]")
    n = A.shape[1]
    require_shape(op, "A", A, (d_inner, n), "[d_inner, N]")
    require_shape(op, "B", B, (batch, length, n), "[B, L, N]")
    require_shape(op, "C", C, (batch, length, n), "[B, L, N]")
    require_same_device(op, u=u, delta=delta, A=A, B=B, C=C)


def under_autocast(x: Tensor) -> bool:
    """Returns whether autocast is on for the device of x."""
    return torch.is_autocast_enabled(x.device.type)


def float_under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, casts to float32 (these recurrences are not safe in half precision); else changes nothing."""
    return tuple(x.float() for x in tensors) if under_autocast(tensors[0]) else tensors
