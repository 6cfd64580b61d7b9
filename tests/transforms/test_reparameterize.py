"""Reparameterization: the factors' formula, and that a rank-1 scale of h is the paper's eqs. 16-21 written
literally."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visq import ops
from visq.integer.spec import Spec
from visq.models import create_model
from visq.quant.quantizer import StateQuantizer
from visq.transforms.reparameterize import (
    DISPERSIONS,
    REPRESENTATIVES,
    rank_one_factors,
)
from visq.transforms.state_factors import Factors, centred, fold_state_factor


def scan_inputs(batch: int = 2, length: int = 7, channels: int = 5, states: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    u, delta = (
        torch.randn(batch, length, channels, generator=generator),
        torch.rand(batch, length, channels, generator=generator),
    )
    B, C = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    return u, delta, -torch.rand(channels, states, generator=generator) - 0.1, B, C


def test_factors_follow_equations_26_to_31() -> None:
    magnitude = torch.rand(4, 6, 3, dtype=torch.float32) + 0.1
    factors = rank_one_factors(magnitude, "mean", "std")
    mean = {"step": magnitude.mean((1, 2)), "channel": magnitude.mean((0, 2)), "state": magnitude.mean((0, 1))}
    total = sum(v.std() for v in mean.values())
    for name, value in mean.items():
        torch.testing.assert_close(getattr(factors, name), value ** (value.std() / total))


@pytest.mark.parametrize("rep", list(REPRESENTATIVES))
@pytest.mark.parametrize("disp", list(DISPERSIONS))
def test_every_pair_of_table_two_is_finite_even_with_a_dead_channel(rep: str, disp: str) -> None:
    magnitude = torch.rand(5, 4, 3)
    magnitude[:, 2] = 0
    factors = rank_one_factors(magnitude, rep, disp)
    for value in (factors.step, factors.channel, factors.state):
        assert torch.isfinite(value).all()
        assert (value > 0).all()
    assert factors.channel.max() / factors.channel.min() < 1e7


def test_one_token_or_one_state_is_no_division_by_zero() -> None:
    factors = rank_one_factors(torch.rand(1, 4, 1) + 0.1)
    assert torch.isfinite(factors.channel).all()


def literal_scan(inputs: tuple[Tensor, ...], r: Factors, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Eqs. 16-21 as printed, with h* quantized by scale[t]; y in the original domain."""
    u, delta, A, B, C = inputs
    batch, length, channels = u.shape
    state = torch.zeros(batch, channels, A.shape[1])
    outputs = []
    for t in range(length):
        previous = r.step[t - 1] if t else torch.ones(())
        abar = torch.exp(delta[:, t, :, None] * A) * previous / r.step[t]
        bbar = delta[:, t, :, None] * B[:, t, None] / (r.channel[:, None] * r.step[t] * r.state)
        state = abar * state + bbar * u[:, t, :, None]
        state = (state / scale[t]).round().clamp(qmin, qmax) * scale[t]
        c = C[:, t] * r.step[t] * r.state
        outputs.append((state * c[:, None]).sum(-1) * r.channel)
    return torch.stack(outputs, 1)


def test_rank_one_scales_are_the_reparameterized_recurrence() -> None:
    inputs = scan_inputs()
    u, _, A, _, _ = inputs
    factors = Factors(torch.rand(u.shape[2]) + 0.5, torch.rand(u.shape[1]) + 0.5, torch.rand(A.shape[1]) + 0.5)
    scale = torch.rand(u.shape[1]) * 0.1 + 0.01
    quantizer = StateQuantizer(Spec(bits=8), scale * factors.step, factors.channel, factors.state)
    ours = ops.quantized_scan(*inputs, state=quantizer.scan_argument(), abar=None, bbar=None)
    literal = literal_scan(inputs, factors, scale, -128, 127)
    torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-4)
    assert (ours - ops.selective_scan(*inputs)).abs().max() > 1e-3


def test_without_rounding_the_factors_cancel() -> None:
    inputs = scan_inputs()
    u, _, A, _, _ = inputs
    factors = Factors(torch.rand(u.shape[2]) + 0.5, torch.rand(u.shape[1]) + 0.5, torch.rand(A.shape[1]) + 0.5)
    exact = literal_scan(inputs, factors, torch.full((u.shape[1],), 1e-7), -(2**31), 2**31 - 1)
    torch.testing.assert_close(exact, ops.selective_scan(*inputs), rtol=1e-4, atol=1e-5)


def test_folding_the_state_factor_keeps_the_function() -> None:
    torch.manual_seed(0)
    model = create_model(
        "vim", image_size=8, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=3
    )
    model.eval().requires_grad_(False)
    tokens, residual = torch.randn(2, 5, 16), torch.zeros(2, 5, 16)
    block = model.layers[1]
    before = block(tokens, residual)[0]
    for scan in ("scan", "scan_b"):
        fold_state_factor(*block.mixer.scan_projection(scan), torch.tensor([0.25, 3.0, 0.7, 1.9]))
    after = block(tokens, residual)[0]
    assert (after - before).norm() <= 1e-6 * before.norm()


def test_a_constant_moves_from_the_states_to_the_channels() -> None:
    factors = rank_one_factors(torch.rand(5, 4, 3) * 0.01 + 1e-4)
    moved = centred(factors)
    assert torch.allclose(moved.state.log().mean(), torch.zeros(()), atol=1e-6)
    product = [f.step[:, None, None] * f.channel[:, None] * f.state for f in (factors, moved)]
    assert torch.allclose(product[0], product[1], rtol=1e-5)
    assert torch.allclose(moved.state / moved.state[0], factors.state / factors.state[0], rtol=1e-5)
