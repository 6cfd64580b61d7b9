"""Rotated quantizers: the simulation is decode of encode, the rotation cancels in a product, storage is lossless."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer, Rotation
from visq.quant.serialize import quantizer_from_parts, quantizer_to_parts


@st.composite
def rotated(draw: st.DrawFn) -> tuple[RotatedQuantizer, Tensor]:
    """A rotated quantizer of an activation [B, L, C], and an input."""
    bits, channels, length = draw(st.integers(2, 8)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    symmetric, per_token = draw(st.booleans()), draw(st.booleans())
    spec = Spec(bits=bits, symmetric=symmetric)
    scale = torch.rand(length if per_token else 1, generator=generator) + 0.01
    zero_point = None if symmetric else torch.randint(0, spec.qmax + 1, scale.shape, generator=generator)
    divisor = torch.rand(channels, generator=generator) + 0.1 if draw(st.booleans()) else None
    matrix = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    runs = draw(st.sampled_from([1, 1, 2, 8]))
    if runs > 1:
        channels, matrix = runs * channels, matrix / runs**0.5
        divisor = torch.rand(channels, generator=generator) - 1.1
    plain = Quantizer(spec, scale, zero_point, axis=-2 if per_token else None)
    x = torch.randn(2, length, channels, generator=generator) * 3
    return RotatedQuantizer.around(plain, Rotation(matrix, divisor)), x


@given(rotated())
@settings(max_examples=100, deadline=None)
def test_simulation_is_decode_of_encode(case: tuple[RotatedQuantizer, Tensor]) -> None:
    quantizer, x = case
    codes = quantizer.encode(x)
    assert codes.dtype == torch.int16
    assert quantizer.spec.qmin <= codes.min()
    assert codes.max() <= quantizer.spec.qmax
    torch.testing.assert_close(quantizer(x), quantizer.decode(codes), rtol=0, atol=0)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    assert torch.equal(quantizer.integers_again(quantizer.decode(codes)), quantizer.integers(x).float())


@given(rotated())
@settings(max_examples=20, deadline=None)
def test_storage_is_lossless(case: tuple[RotatedQuantizer, Tensor]) -> None:
    quantizer, x = case
    meta, tensors = quantizer_to_parts(quantizer)
    assert meta["kind"] == "rotated"
    restored = quantizer_from_parts(meta, dict(tensors))
    assert type(restored) is RotatedQuantizer
    assert torch.equal(restored(x), quantizer(x))


@pytest.mark.parametrize("with_divisor", [False, True])
def test_rotations_of_input_and_weight_cancel(with_divisor: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 6, generator=generator), torch.randn(4, 6, generator=generator)
    divisor = torch.rand(6, generator=generator) + 0.5 if with_divisor else None
    rotation = Rotation(torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q, divisor)
    product = rotation.into(x) @ rotation.of_weight().into(weight).T
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotation.back(rotation.into(x)), x, rtol=1e-4, atol=1e-5)


def test_a_rotation_is_the_kronecker_product() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q.contiguous() / 2
    x, divisor = torch.randn(5, 12, generator=generator), torch.randn(12, generator=generator)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    dense = torch.kron(torch.kron(two, two), small)
    rotation = Rotation(small, divisor)
    torch.testing.assert_close(rotation.into(x), x / divisor @ dense)
    torch.testing.assert_close(rotation.back(rotation.into(x)), x)
    weight = torch.randn(4, 12, generator=generator)
    torch.testing.assert_close(rotation.into(x) @ rotation.of_weight().into(weight).T, x @ weight.T)


@pytest.mark.parametrize(
    ("matrix", "divisor", "message"),
    [
        (torch.ones(3, 3), None, "orthogonal"),
        (torch.eye(3)[:2], None, "orthogonal"),
        (torch.eye(3) * float("nan"), None, "orthogonal"),
        (torch.eye(3), torch.tensor([1.0, 0.0, 1.0]), "divisor"),
        (torch.eye(2), torch.ones(4), "orthogonal"),  # too long by sqrt(2)
        (torch.eye(2) / 3**0.5, torch.ones(6), "orthogonal"),  # of three runs
        (torch.eye(2) / 2**0.5, torch.ones(5), "orthogonal"),
    ],
)
def test_what_cannot_be_turned_back_is_refused(matrix: Tensor, divisor: Tensor | None, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        RotatedQuantizer(Spec(bits=8), torch.ones(1), rotation=matrix, divisor=divisor)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-45, float("inf"), float("nan")])
def test_a_divisor_has_a_reciprocal(value: float) -> None:
    """With 1 / divisor infinite, simulation and engine gave other bits (found by mutating artifacts)."""
    plain = Quantizer(Spec(bits=4), scale=torch.ones(1))
    divisor = torch.tensor([1.0, value])
    with pytest.raises(VisqError, match="divisor must be finite and not 0, and so must 1 / divisor"):
        RotatedQuantizer.around(plain, Rotation(torch.eye(2), divisor))
