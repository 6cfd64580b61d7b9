"""Tests the quantized scan against its oracle.

A state within an ulp of a rounding boundary may round either way, because exp and fused multiply-adds differ in the
last bit. Tests therefore compare bits only where every intermediate value is exact (dyadic inputs, exp(0) = 1).
Elsewhere they bound how often and how far the results differ.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
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
from visq.ops import StateRounding, Table, Uniform, _native, quantized_scan, scan_states, selective_scan

STATES = ["none", "read", "raw"]
ABARS = {"none": None, "uniform": Uniform(1 / 127, 0, 127), "table": Table(torch.linspace(0, 1, 16) ** 2)}
BBARS = {"none": None, "uniform": Uniform(0.02, -16, 15), "table": Table(torch.linspace(-1, 1, 37))}
MODES = list(itertools.product(STATES, ABARS, BBARS))
MODE_IDS = ["-".join(mode) for mode in MODES]


def state_quantizer(L: int, D: int, N: int, kind: str, bits: int = 8) -> StateRounding | None:
    if kind == "none":
        return None
    step = 2.5 / 2 ** (bits - 1) * (0.5 + torch.rand(L))
    half = 2 ** (bits - 1)
    return StateRounding(step, 0.5 + torch.rand(D), 0.5 + torch.rand(N), -half, half - 1, kind == "read")


def run_both(
    monkeypatch: pytest.MonkeyPatch, inputs: list[Tensor], grad_y: Tensor, **quant: object
) -> list[list[Tensor]]:
    """Returns y and the five gradients, from the C++ kernel and from the oracle."""
    results = []
    for name in ("cpp", "naive"):
        monkeypatch.setenv("VISQ_OPS", name)
        y = quantized_scan(*inputs, **quant)  # type: ignore[arg-type]
        results.append([y.detach(), *torch.autograd.grad(y, inputs, grad_y)])
    monkeypatch.delenv("VISQ_OPS")
    return results


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_matches_naive(mode: tuple[str, str, str], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, abar, bbar = mode
    B, L, D, N = 2, 9, 19, 5
    inputs = with_grad(scan_inputs(B, L, D, N))
    quantizer = state_quantizer(L, D, N, state)
    with _native.use_isa(isa):
        actual, expected = run_both(
            monkeypatch, inputs, torch.randn(B, L, D), state=quantizer, abar=ABARS[abar], bbar=BBARS[bbar]
        )
    for name, a, e in zip(("y", "u", "delta", "A", "B", "C"), actual, expected, strict=True):
        far = (a - e).abs() > 1e-4 * (1 + e.abs())
        # One flipped rounding moves a state by one code, and later values a little.
        assert far.float().mean() <= 0.02, f"{name}: {int(far.sum())} of {far.numel()} differ"
        # One code is at most a sixteenth of a range (Bbar, 5 bits).
        # An error of that size in 2 % of the elements gives sqrt(0.02) / 16 = 0.9 % in the norm.
        assert (a - e).norm() <= 0.009 * e.norm(), name


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "raw"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_exact_on_dyadic_inputs(
    shape: tuple[int, int, int, int], read: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A = 0 makes abar exactly 1, and all other values are short dyadic numbers. So no bit may differ."""
    B, L, D, N = shape
    dyadic = lambda *size: torch.randint(-8, 9, size).float() / 8  # noqa: E731
    inputs = with_grad(
        [dyadic(B, L, D), dyadic(B, L, D).abs() + 0.125, torch.zeros(D, N), dyadic(B, L, N), dyadic(B, L, N)]
    )
    power = lambda size: 2.0 ** torch.randint(-1, 2, (size,)).float()  # noqa: E731
    state = StateRounding(power(L) / 16, power(D), power(N), -32, 31, read)
    with _native.use_isa(isa):
        actual, expected = run_both(
            monkeypatch,
            inputs,
            dyadic(B, L, D),
            state=state,
            abar=Table(torch.tensor([0.0, 0.25, 0.5, 1.0])),
            bbar=Uniform(1 / 16, -15, 15),
        )
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 31, 32, 33, 100, 255, 256])
def test_table_lookup_is_exact(count: int, isa: str) -> None:
    """One step with delta = u = C = 1 gives y = Qb(B), for table values, midpoints and their neighbours."""
    table = torch.randn(count).sort().values
    middle = (table[1:] + table[:-1]) * 0.5
    ends = torch.tensor([-10.0, 10.0, -float("inf"), float("inf"), float("nan")])
    x = torch.cat(
        [table, middle, torch.nextafter(middle, ends[1]), torch.nextafter(middle, ends[0]), ends, torch.randn(99)]
    )
    expected = torch.where(x.isnan(), x, table[torch.searchsorted(middle, x)])
    ones = torch.ones(len(x), 1, 16)
    C = torch.ones(len(x), 1, 1)
    with _native.use_isa(isa):
        y = quantized_scan(ones, ones, torch.zeros(16, 1), x[:, None, None], C, bbar=Table(table))
    torch.testing.assert_close(y, expected[:, None, None].expand_as(y), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bbar", [Uniform(0.02, -16, 15), Table(torch.linspace(-1, 1, 37))])
def test_divisors_of_bbar_are_those_of_its_channels(bbar: Uniform | Table) -> None:
    """The written-out recurrence divides Bbar before rounding it and multiplies it afterwards."""
    u, delta, A, B, C = inputs = scan_inputs(2, 6, 5, 3)
    s = torch.tensor([0.01, 0.3, 1.0, 2.0, 50.0])
    y = quantized_scan(*inputs, bbar=dataclasses.replace(bbar, channel=s))
    h, expected = torch.zeros(2, 5, 3), []
    for t in range(6):
        x = delta[:, t, :, None] * B[:, t, None] / s[:, None]
        if isinstance(bbar, Uniform):
            x = (x / bbar.scale).round().clamp(bbar.qmin, bbar.qmax) * bbar.scale
        else:
            x = bbar.values[(x[..., None] - bbar.values).abs().argmin(-1)]
        h = torch.exp(delta[:, t, :, None] * A) * h + x * s[:, None] * u[:, t, :, None]
        expected.append((h * C[:, t, None]).sum(-1))
    torch.testing.assert_close(y, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_rounds_half_to_even_and_clamps() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 7.4, 9.0, -9.0, -8.5])
    ones, L = torch.ones(1, 1, 1), len(x)
    state = StateRounding(torch.ones(1), torch.ones(1), torch.ones(1), -8, 7)
    u = x[:, None, None]
    y = quantized_scan(
        u, ones.expand(L, 1, 1), torch.zeros(1, 1), ones.expand(L, 1, 1), ones.expand(L, 1, 1), state=state
    )
    assert y.flatten().tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 7.0, 7.0, -8.0, -8.0]


def test_read_quantized_flag() -> None:
    """The raw read returns h, the quantized read hq; the next step starts from hq in both cases."""
    ones = torch.ones(1, 2, 1)
    u = torch.tensor([0.4, 0.0]).reshape(1, 2, 1)
    outputs = []
    for read in (True, False):
        state = StateRounding(torch.ones(2), torch.ones(1), torch.ones(1), -8, 7, read)
        outputs.append(quantized_scan(u, ones, torch.zeros(1, 1), ones, ones, state=state).flatten().tolist())
    assert outputs[0] == [0.0, 0.0]
    assert outputs[1] == pytest.approx([0.4, 0.0])


def test_straight_through_slope() -> None:
    """With h = u in a single step, the gradient of u passes inside the clip range and stops outside."""
    x = torch.tensor([0.3, 6.9, 7.6, -8.4, -8.6])
    ones = torch.ones(len(x), 1, 1)
    u = x[:, None, None].requires_grad_()
    state = StateRounding(torch.ones(1), torch.ones(1), torch.ones(1), -8, 7)
    quantized_scan(u, ones, torch.zeros(1, 1), ones, ones, state=state).sum().backward()
    assert u.grad is not None and u.grad.flatten().tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_fine_quantization_approaches_fp32() -> None:
    inputs = scan_inputs(2, 20, 17, 4)
    exact = selective_scan(*inputs)
    largest = scan_states(*inputs[:4]).abs().max()
    errors = []
    for bits in (4, 8, 12):
        half = 2 ** (bits - 1)
        state = StateRounding((largest * 1.5 / half).reshape(1), torch.ones(17), torch.ones(4), -half, half - 1)
        errors.append(float((quantized_scan(*inputs, state=state) - exact).abs().mean()))
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_nothing_quantized_is_the_plain_scan() -> None:
    inputs = scan_inputs(2, 9, 17, 4)
    torch.testing.assert_close(quantized_scan(*inputs), selective_scan(*inputs), rtol=1e-6, atol=1e-6)


@needs_cpp
def test_gradients_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = with_grad(scan_inputs(1, 300, 3, 2))
    state = state_quantizer(300, 3, 2, "raw", bits=12)
    actual, expected = run_both(monkeypatch, inputs, torch.randn(1, 300, 3), state=state)
    for a, e in zip(actual, expected, strict=True):
        assert ((a - e).abs() > 1e-2 * (1 + e.abs())).float().mean() <= 0.02


@needs_cpp
def test_same_bits_for_any_thread_count() -> None:
    inputs = with_grad(scan_inputs(3, 11, 40, 4))
    state = state_quantizer(11, 40, 4, "read")
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            y = quantized_scan(*inputs, state=state, abar=ABARS["table"], bbar=BBARS["uniform"])
            results.append((y.detach(), *torch.autograd.grad(y.sum(), inputs)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_nan_in_gives_nan_out(mode: tuple[str, str, str], isa: str) -> None:
    state, abar, bbar = mode
    inputs = scan_inputs(1, 3, 18, 2, strided=False)
    inputs[0][0, 0, 1] = float("nan")
    inputs[1][0, 1, 17] = float("nan")
    quant = {"state": state_quantizer(3, 18, 2, state), "abar": ABARS[abar], "bbar": BBARS[bbar]}
    with _native.use_isa(isa):
        nan = quantized_scan(*inputs, **quant).isnan()  # type: ignore[arg-type]
    expected = torch.zeros_like(nan)
    expected[0, :, 1] = expected[0, 1:, 17] = True
    assert torch.equal(nan, expected)


def test_one_scale_for_all_steps_expands() -> None:
    inputs = scan_inputs(1, 6, 4, 2)
    one = StateRounding(torch.tensor([0.05]), torch.ones(4), torch.ones(2), -128, 127)
    every = StateRounding(torch.full((6,), 0.05), torch.ones(4), torch.ones(2), -128, 127)
    assert torch.equal(quantized_scan(*inputs, state=one), quantized_scan(*inputs, state=every))


def test_errors_name_the_argument() -> None:
    inputs = scan_inputs(1, 4, 5, 2)
    ones = torch.ones
    cases = [
        (
            {"state": StateRounding(ones(7), ones(5), ones(2), -8, 7)},
            "scales were made for L=7, but the input has L=4",
        ),
        (
            {"state": StateRounding(ones(4), ones(6), ones(2), -8, 7)},
            r"state.channel must be float32 \[d_inner\] = \[5\]",
        ),
        ({"state": StateRounding(ones(4), ones(5), ones(3), -8, 7)}, r"state.state must be float32 \[N\] = \[2\]"),
        ({"state": StateRounding(ones(4), ones(5), ones(2), 8, 7)}, "state.qmin=8 is above state.qmax=7"),
        ({"state": StateRounding(-ones(4), ones(5), ones(2), -8, 7)}, "state.step must be positive and finite"),
        ({"state": StateRounding(ones(4), ones(5) / 0, ones(2), -8, 7)}, "state.channel must be positive and finite"),
        ({"abar": Table(torch.zeros(257))}, r"abar table must be float32 \[K\], 1 <= K <= 256"),
        ({"bbar": Table(torch.tensor([1.0, 0.0]))}, "bbar table must be finite and sorted ascending"),
        (
            {"bbar": Uniform(0.1, -8, 7, ones(3))},
            r"bbar.channel must be float32 \[d_inner\] = \[5\]",
        ),
    ]
    for quant, message in cases:
        with pytest.raises(VisqError, match=message):
            quantized_scan(*inputs, **quant)  # type: ignore[arg-type]
    with pytest.raises(VisqError, match="scale must be positive and finite"):
        Uniform(0.0, -8, 7)
    with pytest.raises(VisqError, match="qmin=8 is above qmax=7"):
        Uniform(1.0, 8, 7)


def test_opcheck() -> None:
    inputs = with_grad(scan_inputs(1, 3, 4, 2))
    flat = (*inputs, torch.ones(3), torch.ones(4), torch.ones(2), [-8, 7], True, None, [0.1, 0.0, 7.0], None, [])
    torch.library.opcheck(torch.ops.visq.quantized_scan.default, flat)
    flat = (*inputs, None, None, None, [0, 0], True, torch.tensor([0.0, 1.0]), [], None, [])
    torch.library.opcheck(torch.ops.visq.quantized_scan.default, flat)


def test_compile_and_export() -> None:
    inputs = with_grad(scan_inputs(1, 4, 8, 2))

    class Scan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("step", torch.tensor([0.05]))

        def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            state = StateRounding(self.step, torch.ones(8), torch.ones(2), -128, 127)
            return quantized_scan(u, delta, A, B, C, state=state, abar=Uniform(1 / 127, 0, 127))

    expected = Scan()(*inputs)
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    actual = compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, e)
    detached = tuple(x.detach() for x in inputs)
    torch.testing.assert_close(torch.export.export(Scan(), detached).module()(*detached), expected.detach())
