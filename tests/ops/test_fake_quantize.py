"""Tests that the C++ fake_quantize has the oracle's bits on every instruction set and number of threads."""

from __future__ import annotations

import pytest
import torch

from visq.errors import VisqError
from visq.native.extension import available, op_isas
from visq.ops import _native, fake_quantize
from visq.ops.fake_quantize import cpp, naive

needs_cpp = pytest.mark.skipif(not available(), reason="no C++ extension")
SHAPES = [(1, 1, 1), (1, 1, 7), (2, 3, 16), (3, 17, 33), (2, 40, 17), (1, 5, 64)]


def arguments(shape: tuple[int, int, int], axis: str, zero: bool, smooth: bool) -> tuple[torch.Tensor | None, ...]:
    generator = torch.Generator().manual_seed(sum(shape))
    size = {"tensor": 1, "channel": shape[2], "token": shape[1]}[axis]
    x = torch.randn(shape, generator=generator) * 3
    return (
        x,
        torch.rand(size, generator=generator) * 0.2 + 0.01,
        torch.randint(0, 16, (size,), generator=generator).float() if zero else None,
        torch.rand(shape[2], generator=generator) + 0.2 if smooth else None,
    )


@needs_cpp
@pytest.mark.parametrize("isa", op_isas())
@pytest.mark.parametrize("axis", ["tensor", "channel", "token"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_equals_the_oracle(isa: str, axis: str, zero: bool, smooth: bool) -> None:
    with _native.use_isa(isa):
        for shape in SHAPES:
            x, *rest = arguments(shape, axis, zero, smooth)
            qmin, qmax = (0, 15) if zero else (-8, 7)
            assert torch.equal(cpp.forward(x, *rest, qmin, qmax, axis), naive.forward(x, *rest, qmin, qmax, axis))


@needs_cpp
def test_strided_rows_are_read_in_place() -> None:
    wide = torch.randn(2, 5, 24)
    half = wide[..., 8:20]
    scale = torch.tensor([0.1])
    assert torch.equal(
        cpp.forward(half, scale, None, None, -8, 7, "tensor"), naive.forward(half, scale, None, None, -8, 7, "tensor")
    )


@needs_cpp
def test_nan_stays_nan() -> None:
    x = torch.tensor([[[1.0, float("nan"), -1.0]]])
    y = fake_quantize(x, torch.tensor([0.5]), None, None, -8, 7, "tensor")
    assert y.isnan().tolist() == [[[False, True, False]]]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(VisqError, match=r"scale"):
        fake_quantize(torch.zeros(1, 2, 3), torch.ones(2), None, None, -8, 7, "channel")
    with pytest.raises(VisqError, match=r"axis"):
        fake_quantize(torch.zeros(1, 2, 3), torch.ones(1), None, None, -8, 7, "row")  # type: ignore[arg-type]


def test_compiles_and_exports() -> None:
    x, *rest = arguments((2, 5, 7), "channel", True, True)
    torch.library.opcheck(torch.ops.visq.fake_quantize.default, (x, *rest, 0, 15, "channel"))
