"""A smoothed linear with per-token asymmetric inputs and per-row weights is one integer GEMM and a rank-1 scale."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer


@st.composite
def linears(draw: st.DrawFn) -> tuple[Quantizer, Quantizer, Tensor, Tensor]:
    """The quantizers of x [B, L, C] and W [O, C] as ptq4vm makes them, sigma in both or in neither."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    length, channels, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    sigma = torch.rand(channels, generator=generator) * 3 + 0.05 if draw(st.booleans()) else None
    activation = Spec(bits=draw(st.integers(2, 8)), symmetric=False, granularity="token")
    weight = Spec(bits=draw(st.integers(2, 8)), narrow=True, granularity="channel")
    zero_point = torch.randint(0, activation.qmax + 1, (length,), generator=generator)
    scale = torch.rand(length, generator=generator) + 0.01
    rows = torch.rand(outputs, generator=generator) + 0.01
    x = torch.randn(2, length, channels, generator=generator) * 4
    return (
        Quantizer(activation, scale, zero_point, axis=-2, smooth=sigma),
        Quantizer(weight, rows, axis=0, smooth=None if sigma is None else 1 / sigma),
        x,
        torch.randn(outputs, channels, generator=generator) * 4,
    )


@given(linears())
@settings(max_examples=100, deadline=None)
def test_the_integer_form_is_the_simulation(case: tuple[Quantizer, Quantizer, Tensor, Tensor]) -> None:
    activation, weight, x, w = case
    simulated = activation(x) @ weight(w).T
    q_x, q_w = activation.encode(x).int(), weight.encode(w).int()
    accumulator = (q_x[..., None, :] * q_w).sum(-1)
    zero_point = activation.zero_point.int()[:, None]  # type: ignore[union-attr]
    integer = accumulator - zero_point * q_w.sum(-1)
    result = activation.scale[:, None] * weight.scale * integer
    torch.testing.assert_close(result, simulated, rtol=1e-4, atol=1e-4)


@given(linears())
@settings(max_examples=100, deadline=None)
def test_simulation_is_decode_of_encode_and_baking_is_lossless(
    case: tuple[Quantizer, Quantizer, Tensor, Tensor],
) -> None:
    activation, weight, x, w = case
    for quantizer, tensor in ((activation, x), (weight, w)):
        codes = quantizer.encode(tensor)
        assert quantizer.spec.qmin <= codes.min()
        assert codes.max() <= quantizer.spec.qmax
        assert torch.equal(quantizer(tensor), quantizer.decode(codes))
        assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
