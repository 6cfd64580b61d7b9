"""Tests the fp32 scan against its oracle: values, gradients, threads, NaN, errors, compile and export."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.helpers import (
    ISAS,
    SHAPE_IDS,
    SHAPES,
    assert_same_bits,
    needs_cpp,
    scan_inputs,
    torch_threads,
    with_grad,
)
from visq.errors import VisqError
from visq.ops import _native, scan_states, selective_scan
from visq.ops._scan import ScanInputs
from visq.ops.scan_states import naive as states_naive
from visq.ops.selective_scan import naive

NAMES = ("u", "delta", "A", "B", "C")


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Runs the oracle's forward pass."""
    return naive.forward(ScanInputs(u, delta, A, B, C))


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_matches_naive(shape: tuple[int, int, int, int], isa: str) -> None:
    inputs = scan_inputs(*shape)
    with _native.use_isa(isa):
        torch.testing.assert_close(selective_scan(*inputs), loop(*inputs), rtol=1e-5, atol=1e-5)
        states = scan_states(*inputs[:4])
    torch.testing.assert_close(states, states_naive.forward(*inputs[:4]), rtol=1e-5, atol=1e-5)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gradients_match_autograd_through_naive(shape: tuple[int, int, int, int], isa: str) -> None:
    inputs = with_grad(scan_inputs(*shape))
    grad_y = torch.randn_like(inputs[0])
    expected = torch.autograd.grad(loop(*inputs), inputs, grad_y)
    with _native.use_isa(isa):
        actual = torch.autograd.grad(selective_scan(*inputs), inputs, grad_y)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"grad of {name}: {m}")


@needs_cpp
@pytest.mark.parametrize("length", [256, 257, 600])
def test_gradients_over_several_chunks(length: int) -> None:
    inputs = with_grad(scan_inputs(1, length, 3, 2))
    grad_y = torch.randn_like(inputs[0])
    expected = torch.autograd.grad(loop(*inputs), inputs, grad_y)
    actual = torch.autograd.grad(selective_scan(*inputs), inputs, grad_y)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_naive_backward_is_the_derivative(shape: tuple[int, int, int, int]) -> None:
    inputs = [x.double() for x in scan_inputs(*shape)]
    grad_y = torch.randn_like(inputs[0])
    leaves = with_grad(inputs)
    expected = torch.autograd.grad(loop(*leaves), leaves, grad_y)
    for a, e in zip(naive.backward(ScanInputs(*inputs), grad_y), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_naive_gradcheck() -> None:
    inputs = with_grad([x.double() for x in scan_inputs(2, 4, 3, 2, strided=False)])
    assert torch.autograd.gradcheck(loop, inputs)


@needs_cpp
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_same_bits_for_any_thread_count(batch: int) -> None:
    inputs = with_grad(scan_inputs(batch, 11, 40, 4))
    grad_y = torch.randn_like(inputs[0])
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            y = selective_scan(*inputs)
            results.append((y.detach(), *torch.autograd.grad(y, inputs, grad_y)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
def test_transposed_and_expanded_inputs(isa: str) -> None:
    u, delta, A, B, C = scan_inputs(2, 6, 9, 4, strided=False)
    views = [
        u.transpose(1, 2).contiguous().transpose(1, 2),  # channels not contiguous, so it is copied
        delta[:1].expand(2, -1, -1),  # batch stride 0
        A.t().contiguous().t(),
        B.flip(1),
        C[:, :1].expand(-1, 6, -1),  # row stride 0
    ]
    with _native.use_isa(isa):
        torch.testing.assert_close(selective_scan(*views), loop(*views), rtol=1e-5, atol=1e-5)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("which", range(5), ids=NAMES)
def test_nan_in_gives_nan_out(which: int, isa: str) -> None:
    inputs = scan_inputs(1, 4, 18, 4, strided=False)
    inputs[which].view(-1)[0] = float("nan")
    with _native.use_isa(isa):
        y = selective_scan(*inputs)
    assert torch.equal(y.isnan(), loop(*inputs).isnan())
    assert y[0, 0, 0].isnan()


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
def test_extreme_exponents(isa: str) -> None:
    exponents = torch.tensor(
        [0.0, -1e-8, -1.0, -50.0, -87.0, -88.5, -95.0, -103.0, -110.0, -1e4, -3e38, -float("inf"), 80.0]
    )
    D = len(exponents)
    u, ones = torch.ones(1, 2, D), torch.ones(1, 2, 1)
    with _native.use_isa(isa):
        y = selective_scan(u, u, exponents[:, None], ones, ones)
    # u = delta = B = C = 1: y_1 = exp(A) + 1.
    torch.testing.assert_close(y[0, 1], torch.exp(exponents) + 1, rtol=1e-5, atol=0)


@needs_cpp
def test_exp_is_accurate() -> None:
    exponents = -torch.logspace(-6, 1.9, 4000)
    u, unit = torch.ones(1, 2, 4000), torch.tensor([[[1.0], [0.0]]])
    for isa in ISAS:
        with _native.use_isa(isa):  # h_1 = exp(A), from h_0 = 1 and no input at step 1
            h = scan_states(u, u, exponents[:, None], unit)[0, 1, :, 0]
        exact = torch.exp(exponents.double())
        relative = ((h.double() - exact) / exact).abs()
        # Rounding A log2(e) once costs |x| 2^-24. Any float32 evaluation rounds delta A at the same cost.
        assert (relative <= 2.5e-7 + exponents.abs() * 2.0**-23).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 35), st.integers(1, 9), st.integers(0, 2**31))
def test_property_linear_in_u(B: int, L: int, D: int, N: int, seed: int) -> None:
    torch.manual_seed(seed)
    u, delta, A, Bm, C = scan_inputs(B, L, D, N)
    # Doubling is exact in binary floating point, so the scan must double exactly.
    assert torch.equal(selective_scan(2 * u, delta, A, Bm, C), 2 * selective_scan(u, delta, A, Bm, C))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_property_causal(L: int, D: int, seed: int) -> None:
    torch.manual_seed(seed)
    u, delta, A, B, C = scan_inputs(1, L, D, 3)
    whole = selective_scan(u, delta, A, B, C)
    prefix = selective_scan(u[:, :-1], delta[:, :-1], A, B[:, :-1], C[:, :-1])
    assert torch.equal(whole[:, :-1], prefix)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(2, 3), r"u must be \[B, L, d_inner\], got \[2, 3\]"),
        ("delta", torch.zeros(1, 4, 6), r"delta must be \[B, L, d_inner\] = \[1, 4, 5\], got \[1, 4, 6\]"),
        ("A", torch.zeros(6, 2), r"A must be \[d_inner, N\] = \[5, 2\], got \[6, 2\]"),
        ("B", torch.zeros(1, 4, 3), r"B must be \[B, L, N\] = \[1, 4, 2\], got \[1, 4, 3\]"),
        ("C", torch.zeros(1, 3, 2), r"C must be \[B, L, N\] = \[1, 4, 2\], got \[1, 3, 2\]"),
        ("u", torch.zeros(1, 4, 5, dtype=torch.float64), "u must be float32, got float64"),
        ("C", torch.zeros(1, 4, 2, dtype=torch.bfloat16), "C must be float32, got bfloat16"),
    ],
)
def test_errors_name_the_argument(name: str, value: Tensor, message: str) -> None:
    arguments = dict(zip(NAMES, scan_inputs(1, 4, 5, 2), strict=True))
    arguments[name] = value
    with pytest.raises(VisqError, match=message):
        selective_scan(**arguments)


def test_empty_batch_and_length() -> None:
    assert selective_scan(*scan_inputs(0, 4, 5, 2, strided=False)).shape == (0, 4, 5)
    assert selective_scan(*scan_inputs(2, 0, 5, 2, strided=False)).shape == (2, 0, 5)


def test_autocast_casts_to_float32() -> None:
    inputs = scan_inputs(1, 4, 5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(inputs[0].bfloat16(), *inputs[1:])
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, selective_scan(inputs[0].bfloat16().float(), *inputs[1:]), rtol=0, atol=0)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.visq.selective_scan.default, tuple(with_grad(scan_inputs(2, 3, 5, 2))))
    torch.library.opcheck(torch.ops.visq.scan_states.default, tuple(scan_inputs(2, 3, 5, 2)[:4]))


def test_compile_with_gradients() -> None:
    inputs = with_grad(scan_inputs(1, 4, 8, 2))

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u.sigmoid(), delta, A, B, C) * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, actual = run(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, e)


def test_export() -> None:
    class Scan(torch.nn.Module):
        def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            return selective_scan(u, delta, A, B, C)

    inputs = scan_inputs(1, 4, 8, 2)
    program = torch.export.export(Scan(), tuple(inputs))
    torch.testing.assert_close(program.module()(*inputs), selective_scan(*inputs))
