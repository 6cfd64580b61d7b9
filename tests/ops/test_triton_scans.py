"""Tests the Triton kernels of calibration against their oracles, as test_triton.py does those of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import scan_inputs
from tests.ops.test_triton import needs_triton, on_device
from visq.ops._scan import Rounding, ScanInputs
from visq.ops.quantized_scan import naive as quantized_naive
from visq.ops.quantized_scan import triton as quantized
from visq.ops.quantized_scan.params import StateRounding, Table, Uniform, rounding_of
from visq.ops.scan_states import naive as states_naive
from visq.ops.scan_states import triton as states
from visq.ops.search_state_scales import naive as search_naive
from visq.ops.search_state_scales import triton as search
from visq.ops.similarity_sums import naive as sums_naive
from visq.ops.similarity_sums import triton as sums

# (B, L, d_inner, N): below, at and beyond the blocks of 16 channels and of 8 steps.
SHAPES = [
    (1, 1, 1, 1),
    (1, 9, 17, 3),
    pytest.param((2, 5, 17, 3), marks=pytest.mark.slow),
    pytest.param((1, 8, 16, 8), marks=pytest.mark.slow),
]


def state(length: int, channels: int, size: int, bits: int, read: bool) -> StateRounding:
    step, channel, spread = on_device(torch.rand(length), torch.rand(channels), torch.rand(size))
    half = 2 ** (bits - 1)
    return StateRounding(step * 0.02 + 0.02, channel + 0.5, spread + 0.5, -half, half - 1, read)


def table(size: int, signed: bool) -> Table:
    values = torch.randn(size) if signed else torch.rand(size)
    return Table(on_device(values.sort().values)[0])


#: What is rounded, by name: (L, d_inner, N) -> Rounding.
ROUNDINGS: dict[str, Callable[[int, int, int], Rounding]] = {
    "nothing": lambda L, D, N: rounding_of(None, None, None, L),
    "uniform": lambda L, D, N: rounding_of(
        state(L, D, N, 8, read=True), Uniform(1 / 255, 0, 255), Uniform(0.01, -128, 127), L
    ),
    "tables": lambda L, D, N: rounding_of(state(L, D, N, 4, read=False), table(11, False), table(16, True), L),
    "one entry": lambda L, D, N: rounding_of(None, table(1, False), None, L),
    "256 entries": lambda L, D, N: rounding_of(None, None, table(256, True), L),
}


@needs_triton
@pytest.mark.parametrize(
    "rounded",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("nothing", "256 entries"))) for name in ROUNDINGS],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantized_scan_and_its_gradients(shape: tuple[int, int, int, int], rounded: str) -> None:
    inputs = ScanInputs(*on_device(*scan_inputs(*shape)))
    rounding = ROUNDINGS[rounded](*shape[1:])
    grad_y = torch.randn(shape[:3]).to(inputs.u.device)
    expected = quantized_naive.forward(inputs, rounding)
    torch.testing.assert_close(quantized.forward(inputs, rounding), expected, rtol=1e-5, atol=1e-5)
    pairs = (backward(inputs, rounding, grad_y) for backward in (quantized.backward, quantized_naive.backward))
    for found, exact in zip(*pairs, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states(shape: tuple[int, int, int, int]) -> None:
    u, delta, A, B, _ = on_device(*scan_inputs(*shape))
    torch.testing.assert_close(
        states.forward(u, delta, A, B), states_naive.forward(u, delta, A, B), rtol=1e-5, atol=1e-5
    )


@needs_triton
def test_a_tie_takes_the_lower_entry_and_nan_stays() -> None:
    one: Tensor = torch.ones(1, 1, 4)
    u, delta, A, B, C = on_device(
        one, torch.tensor([[[0.5, 1.5, float("nan"), 9.0]]]), -torch.ones(4, 1), one[..., :1], one[..., :1]
    )
    rounding = rounding_of(None, None, Table(on_device(torch.tensor([0.0, 1.0, 2.0]))[0]), 1)
    y = quantized.forward(ScanInputs(u, delta, A, B, C), rounding).flatten().tolist()
    assert y[:2] == [0.0, 1.0] and y[2] != y[2] and y[3] == 2.0


@needs_triton
def test_empty_tensors() -> None:
    inputs = ScanInputs(*on_device(*scan_inputs(2, 0, 3, 2)))
    rounding = rounding_of(None, None, None, 0)
    assert quantized.forward(inputs, rounding).shape == (2, 0, 3)
    assert [g.shape for g in quantized.backward(inputs, rounding, inputs.u)] == [x.shape for x in inputs]
    assert states.forward(*inputs[:4]).shape == (2, 0, 3, 2)


# (B, L, d_inner, N) and how many steps a group has.
SEARCHES = [
    ((1, 1, 1, 1), 1),
    ((1, 3, 17, 3), 1),
    ((2, 5, 4, 2), 3),
    pytest.param((2, 7, 17, 3), 3, marks=pytest.mark.slow),
    pytest.param((1, 9, 33, 4), 9, marks=pytest.mark.slow),
]


@needs_triton
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(("shape", "group"), SEARCHES, ids=str)
def test_search_of_state_scales(shape: tuple[int, int, int, int], group: int, read: bool) -> None:
    _, length, channels, size = shape
    inputs = ScanInputs(*on_device(*scan_inputs(*shape)))
    uniform = (Uniform(1 / 255, 0, 255), Uniform(0.01, -128, 127))
    rounding = rounding_of(state(length, channels, size, 4, read), *uniform, length)
    candidates = torch.tensor([0.5, 1.0, 1.2])
    y, groups, multiples = on_device(torch.randn(shape[:3]), torch.arange(length) // group, candidates)
    arguments = (inputs, rounding, y, groups, multiples)
    torch.testing.assert_close(search.forward(*arguments), search_naive.forward(*arguments))


@needs_triton
def test_a_search_without_a_finite_score() -> None:
    inputs = ScanInputs(*(x * float("nan") for x in on_device(*scan_inputs(1, 4, 3, 2))))
    rounding = rounding_of(state(4, 3, 2, 4, read=True), None, None, 4)
    arguments = (inputs, rounding, inputs.u, *on_device(torch.arange(4), torch.tensor([0.5, 1.0])))
    found, expected = search.forward(*arguments), search_naive.forward(*arguments)
    assert expected[:3].isnan().all()
    torch.testing.assert_close(found, expected, equal_nan=True)


@needs_triton
@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize(("metric", "weighted"), [("cosine", False), ("l1", False), ("l2", False), ("l2", True)])
def test_similarity_sums(metric: str, weighted: bool, axis: str) -> None:
    for rows, columns, groups, count in [(1, 1, 1, 1), (3, 37, 4, 33)]:
        x = torch.randn(rows, columns)
        tensors = on_device(
            x,
            x + 0.1 * torch.randn(rows, columns),
            torch.randint(0, groups, (columns if axis == "channel" else rows,)),
            torch.rand(groups, count) * 0.1 + 0.01,
            torch.rand(rows, columns),
        )
        arguments = (*tensors[:4], -8, 7, axis, metric, tensors[4] if weighted else None)
        for found, expected in zip(sums.forward(*arguments), sums_naive.forward(*arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
