"""Provides inputs and settings that the op tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from visq.native.extension import op_isas

# (B, L, d_inner, N): sizes at, beside and far from multiples of the vector widths.
SHAPES = [
    (1, 1, 1, 1),
    (2, 5, 7, 3),
    (3, 9, 16, 1),
    (1, 12, 17, 4),
    (2, 31, 33, 16),
]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]
ISAS = op_isas()
needs_cpp = pytest.mark.skipif(not ISAS, reason="the C++ extension is not installed")


def scan_inputs(B: int, L: int, D: int, N: int, strided: bool = True) -> list[Tensor]:
    """Returns u, delta, A, B, C; with `strided`, u is half of a wider tensor, and B and C are slices of one."""
    u = torch.randn(B, L, 2 * D)[..., D:] if strided else torch.randn(B, L, D)
    delta = torch.rand(B, L, D) * 0.5
    A = -torch.rand(D, N) * 4 - 0.1
    if strided:
        _, Bm, C = torch.randn(B, L, 2 * N + 5).split([5, N, N], dim=-1)
    else:
        Bm, C = torch.randn(B, L, N), torch.randn(B, L, N)
    return [u, delta, A, Bm, C]


def with_grad(inputs: list[Tensor]) -> list[Tensor]:
    """Returns leaves with the same values and strides that require gradients."""
    return [x.detach().requires_grad_() for x in inputs]


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a.view(torch.int32), b.view(torch.int32))
