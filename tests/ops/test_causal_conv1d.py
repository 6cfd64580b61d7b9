"""Tests the depthwise convolution against PyTorch's and against its oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ISAS, assert_same_bits, needs_cpp, torch_threads
from visq.errors import VisqError
from visq.ops import _native, causal_conv1d
from visq.ops.causal_conv1d import naive

SHAPES = [(1, 1, 1, 4), (2, 3, 7, 4), (1, 33, 16, 1), (3, 40, 17, 4), (2, 65, 70, 3)]
IDS = ["x".join(map(str, s)) for s in SHAPES]


def conv_inputs(B: int, L: int, D: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, L, 2 * D)[..., :D], torch.randn(D, K), torch.randn(D)


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    D, K = weight.shape
    padded = torch.nn.functional.pad(x.transpose(1, 2), (K - 1, 0))
    return torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=D).transpose(1, 2)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_naive_is_torch_conv1d(shape: tuple[int, int, int, int], has_bias: bool) -> None:
    x, weight, bias = conv_inputs(*shape)
    b = bias if has_bias else None
    torch.testing.assert_close(naive.forward(x, weight, b), torch_conv(x, weight, b), rtol=1e-5, atol=1e-5)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    grad_y = torch.randn_like(x)
    expected = torch.autograd.grad(torch_conv(*leaves), leaves, grad_y)
    for a, e in zip(naive.backward(x, weight, grad_y), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_matches_naive(shape: tuple[int, int, int, int], has_bias: bool, isa: str) -> None:
    x, weight, bias = (t.detach().requires_grad_() for t in conv_inputs(*shape))
    leaves = [x, weight, bias] if has_bias else [x, weight]
    grad_y = torch.randn_like(x)
    with _native.use_isa(isa):
        y = causal_conv1d(x, weight, bias if has_bias else None)
        grads = torch.autograd.grad(y, leaves, grad_y)
    torch.testing.assert_close(y, naive.forward(x, weight, bias if has_bias else None), rtol=1e-5, atol=1e-5)
    for a, e in zip(grads, naive.backward(x, weight, grad_y), strict=False):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_cpp
@pytest.mark.parametrize("batch", [1, 19])
def test_same_bits_for_any_thread_count(batch: int) -> None:
    x, weight, bias = (t.requires_grad_() for t in conv_inputs(batch, 40, 70, 4))
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            y = causal_conv1d(x, weight, bias)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight, bias))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


@needs_cpp
def test_nan_stays_in_its_channel_and_window() -> None:
    x, weight, bias = conv_inputs(1, 10, 20, 4)
    x = x.clone()
    x[0, 3, 5] = float("nan")
    nan = causal_conv1d(x, weight, bias).isnan()
    expected = torch.zeros_like(nan)
    expected[0, 3:7, 5] = True
    assert torch.equal(nan, expected)


def test_errors_name_the_argument() -> None:
    x, weight, bias = conv_inputs(1, 4, 5, 3)
    with pytest.raises(VisqError, match=r"weight must be \[d_inner, K\] = \[5, 3\], got \[6, 3\]"):
        causal_conv1d(x, torch.zeros(6, 3), bias)
    with pytest.raises(VisqError, match=r"bias must be \[d_inner\] = \[5\], got \[4\]"):
        causal_conv1d(x, weight, torch.zeros(4))
    with pytest.raises(VisqError, match="x must be float32, got float16"):
        causal_conv1d(x.half(), weight, bias)


def test_opcheck_compile_export() -> None:
    inputs = tuple(t.requires_grad_() for t in conv_inputs(2, 5, 6, 4))
    torch.library.opcheck(torch.ops.visq.causal_conv1d.default, inputs)
    torch.library.opcheck(torch.ops.visq.causal_conv1d.default, (*inputs[:2], None))

    class Conv(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.nn.functional.silu(causal_conv1d(x, weight, bias))

    expected = Conv()(*inputs)
    compiled = torch.compile(Conv(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    program = torch.export.export(Conv(), tuple(t.detach() for t in inputs))
    torch.testing.assert_close(program.module()(*(t.detach() for t in inputs)), expected.detach())
