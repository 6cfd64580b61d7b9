"""Rounding with a gradient: what autograd makes of the formula, for every granularity, with less kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer


def positive(n: int) -> Tensor:
    return torch.linspace(0.3, 1.2, n)


#: The shape of x, and the quantizer's arguments.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "tensor": ((2, 3, 5), {"scale": positive(1)}),
    "channels": ((2, 3, 5), {"scale": positive(5), "axis": -1}),
    "groups": ((2, 3, 5), {"scale": positive(2), "axis": -1, "group": torch.tensor([0, 1, 1, 0, 1])}),
    "channels and smooth": ((2, 3, 5), {"scale": positive(5), "axis": -1, "smooth": positive(5).flip(0)}),
    "tokens": ((2, 3, 5), {"scale": positive(3), "axis": -2}),
    "tokens and smooth": ((2, 3, 5), {"scale": positive(3), "axis": -2, "smooth": positive(5)}),
    "rows of a weight": ((6, 5), {"scale": positive(6), "axis": 0}),
    "rows of a weight and smooth": ((6, 5), {"scale": positive(6), "axis": 0, "smooth": positive(5)}),
    "a table": ((2, 3, 5), {"scale": positive(1), "table": torch.tensor([-2.0, -0.5, 0.0, 1.5])}),
    "one value": ((1, 1, 1), {"scale": positive(1)}),
    "nothing": ((0, 3, 5), {"scale": positive(5), "axis": -1}),
}


def by_autograd(quantizer: Quantizer, x: Tensor) -> Tensor:
    """The formula, in which the difference that rounding makes is a constant."""
    v, zero = quantizer._in_steps(x)
    if quantizer.table is not None:
        inside = v.clamp(quantizer.table[0].item(), quantizer.table[-1].item())
        nearest = quantizer.table[torch.bucketize(v.detach(), (quantizer.table[1:] + quantizer.table[:-1]) / 2)]
        return quantizer._out_of_steps(inside + (nearest - inside).detach())
    v = v + (v.round() - v).detach()
    return quantizer._out_of_steps((v + zero).clamp(quantizer.spec.qmin, quantizer.spec.qmax) - zero)


@pytest.mark.parametrize("zeros", [False, True], ids=["no zero point", "zero points"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name: str, zeros: bool) -> None:
    torch.manual_seed(0)
    shape, options = CASES[name]
    zero_point = torch.randint(-2, 3, options["scale"].shape).float() if zeros else None
    x, weights = 2 * torch.randn(shape), torch.randn(shape)
    found: list[list[Tensor]] = []
    for function in (Quantizer.forward, by_autograd):
        quantizer = Quantizer(Spec(bits=3), zero_point=zero_point, **options)
        learned = [quantizer.scale, quantizer.smooth, None if quantizer.table is not None else quantizer.zero_point]
        leaves = [x.clone(), *(tensor for tensor in learned if tensor is not None)]
        for leaf in leaves:
            leaf.requires_grad_()
        result = function(quantizer, leaves[0])
        (result * weights).sum().backward()
        found.append([result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
        assert len(found[-1]) == 1 + len(leaves)
    if x.numel() > 1:
        assert 0 < (found[1][1] == 0).sum() < x.numel()  # some values are clamped, others are not
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0][0], quantizer.decode(quantizer.encode(x)))


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    quantizer = Quantizer(Spec(bits=3), torch.tensor([0.5]), smooth=torch.ones(3))
    x = torch.randn(2, 4, 3)
    assert not quantizer(x).requires_grad
    quantizer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and quantizer.scale.grad is None
    quantizer.scale.requires_grad_()
    quantizer(x.detach()).sum().backward()
    assert quantizer.scale.grad is not None and quantizer.smooth is not None and quantizer.smooth.grad is None
    with torch.no_grad():
        assert not quantizer(x).requires_grad


def test_the_gradient_of_a_logarithm_is_the_rounding_error() -> None:
    quantizer = Quantizer(Spec(bits=4), torch.tensor([1.0]))
    logarithm = torch.tensor([0.0], requires_grad=True)
    quantizer.scale = logarithm.exp()
    result = quantizer(torch.tensor([[[0.2, 0.9, 40.0]]]))
    result.sum().backward()
    assert result.flatten().tolist() == [0.0, 1.0, 7.0] and logarithm.grad is not None
    torch.testing.assert_close(logarithm.grad, torch.tensor([-0.2 + 0.1 + 7.0]))
