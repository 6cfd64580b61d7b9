"""Quantizers: codes are integers in range, decode(encode(x)) is the simulation, gradients are straight-through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.serialize import quantizer_from_parts, quantizer_to_parts


@st.composite
def quantizers(draw: st.DrawFn) -> tuple[Quantizer, torch.Tensor]:
    """A quantizer of any kind, and an input [B, L, C] it fits."""
    bits = draw(st.integers(2, 8))
    batch, length, channels = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    symmetric = draw(st.booleans())
    spec = Spec(bits=bits, symmetric=symmetric, signed=draw(st.booleans()) if symmetric else True)
    axis = draw(st.sampled_from([None, -1, -2]))
    size = 1 if axis is None else (batch, length, channels)[axis]
    groups = draw(st.integers(1, size)) if axis is not None and draw(st.booleans()) else None
    count = size if groups is None else groups
    scale = torch.rand(count, generator=generator) * 10.0 ** draw(st.integers(-4, 3)) + 1e-6
    zero_point = None if symmetric else torch.randint(0, spec.qmax + 1, (count,), generator=generator)
    group = None if groups is None else torch.randint(0, groups, (size,), generator=generator)
    smooth = torch.rand(channels, generator=generator) * 4 + 0.01 if draw(st.booleans()) else None
    table = torch.randn(2**bits, generator=generator).sort().values if symmetric and draw(st.booleans()) else None
    x = torch.randn(batch, length, channels, generator=generator) * 10.0 ** draw(st.integers(-3, 3))
    return Quantizer(spec, scale, zero_point, axis=axis, group=group, smooth=smooth, table=table), x


@given(quantizers())
@settings(max_examples=200, deadline=None)
def test_simulation_is_decode_of_encode(case: tuple[Quantizer, torch.Tensor]) -> None:
    quantizer, x = case
    codes = quantizer.encode(x)
    low, high = (
        (0, 2**quantizer.spec.bits - 1) if quantizer.table is not None else (quantizer.spec.qmin, quantizer.spec.qmax)
    )
    assert codes.dtype == torch.int16
    assert codes.min() >= low
    assert codes.max() <= high
    torch.testing.assert_close(quantizer(x), quantizer.decode(codes), rtol=0, atol=0)
    with_gradient = quantizer(x.clone().requires_grad_()).detach()
    torch.testing.assert_close(with_gradient, quantizer.decode(codes), rtol=1e-6, atol=0)


@given(quantizers())
@settings(max_examples=100, deadline=None)
def test_decoded_values_encode_to_themselves(case: tuple[Quantizer, torch.Tensor]) -> None:
    quantizer, x = case
    decoded = quantizer(x)
    torch.testing.assert_close(quantizer(decoded), decoded, rtol=1e-5, atol=0)
    if quantizer.table is None:
        assert torch.equal(quantizer.integers_again(decoded), quantizer.integers(x).float())


@given(quantizers())
@settings(max_examples=100, deadline=None)
def test_parts_round_trip(case: tuple[Quantizer, torch.Tensor]) -> None:
    quantizer, x = case
    again = quantizer_from_parts(*quantizer_to_parts(quantizer))
    torch.testing.assert_close(again(x), quantizer(x), rtol=0, atol=0)


def test_error_is_at_most_half_a_step_inside_the_range() -> None:
    x = torch.linspace(-1, 1, 1001).view(1, -1, 1)
    quantizer = Quantizer(Spec(bits=6), torch.tensor([1 / 31]))
    assert (quantizer(x) - x).abs().max() <= 0.5 / 31 + 1e-6


def test_rounding_is_half_to_even() -> None:
    quantizer = Quantizer(Spec(bits=8), torch.tensor([1.0]))
    assert quantizer.encode(torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])).tolist() == [[0, 2, 2, 0, -2]]


def test_straight_through_gradient_is_one_inside_and_zero_outside() -> None:
    quantizer = Quantizer(Spec(bits=4), torch.tensor([0.1]))
    x = torch.tensor([[0.33, -0.2, 5.0, -5.0]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(VisqError, match="scale"):
        Quantizer(Spec(bits=8), torch.tensor([scale]))


def test_another_sequence_length_is_refused() -> None:
    quantizer = Quantizer(Spec(bits=8, granularity="token"), torch.ones(4), axis=-2)
    with pytest.raises(VisqError, match=r"4 tokens.*got 5"):
        quantizer(torch.zeros(1, 5, 3))


@pytest.mark.parametrize(
    "fields", [{"bits": 1}, {"bits": 9}, {"bits": 8, "narrow": True, "symmetric": False}, {"bits": 8, "unknown": 1}]
)
def test_invalid_specs_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bits|narrow|unknown"):
        Spec(**fields)  # type: ignore[arg-type]


def test_state_quantizer_scale_is_a_rank_one_product() -> None:
    step, channel, state = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.25])
    quantizer = StateQuantizer(Spec(bits=8), step, channel, state)
    h = torch.randn(3, 2, 3, 2)
    scale = torch.einsum("l,c,n->lcn", step, channel, state)
    torch.testing.assert_close(quantizer.scale(), scale)
    torch.testing.assert_close(quantizer(h), (h / scale).round().clamp(-128, 127) * scale)
