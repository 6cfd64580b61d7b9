"""Ranges that few images made are widened; those of enough images are left, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visq.integer.spec import Spec
from visq.quant.estimators import make_estimator
from visq.quant.few_images import ENOUGH, MARGIN, doubt, share, widened, widened_scales
from visq.quant.quantizer import Quantizer


def quantizer(granularity: str, symmetric: bool, x: Tensor) -> Quantizer:
    estimator = make_estimator(Spec(bits=8, granularity=granularity, symmetric=symmetric), "activation")
    estimator.observe(x)
    estimator.end_pass()
    return estimator.result()


def reach(found: Quantizer) -> tuple[Tensor, Tensor]:
    zero = 0.0 if found.zero_point is None else found.zero_point
    return (found.spec.qmin - zero) * found.scale, (found.spec.qmax - zero) * found.scale


def test_doubt_falls_from_one_to_nothing() -> None:
    doubts = [doubt(n) for n in range(1, ENOUGH + 2)]
    assert doubts[0] == 1 and doubts[-2:] == [0, 0] and doubts == sorted(doubts, reverse=True)
    assert abs(doubts[7] - 1 / 8) < 0.01
    assert share(1, 8) == 1 and share(ENOUGH, 8) == 0
    # No step is finer than that of 8 bits over the whole range, whatever the bits.
    assert share(1, 4) == 2.0**-4


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "token"])
def test_no_range_is_far_below_the_widest(granularity: str, symmetric: bool) -> None:
    x = torch.randn(4, 6, 6) * torch.logspace(-3, 1, 6).view((6,) if granularity == "channel" else (6, 1))
    found = quantizer(granularity, symmetric, x)
    part, grown = share(4, 8), 1 + MARGIN * doubt(4)
    wide = widened(found, 4)
    (low, high), (wide_low, wide_high) = reach(found), reach(wide)
    half = wide.scale / 2 + 1e-6  # a zero point is rounded
    assert (wide_low <= grown * torch.minimum(low, part * low.min()) + half).all()
    assert (wide_high >= grown * torch.maximum(high, part * high.max()) - wide.scale - half).all()
    assert (wide.scale[-1] / found.scale[-1]).item() == pytest.approx(grown, rel=1e-4)
    assert widened(found, ENOUGH) is found


def test_one_range_and_shared_ranges_stay() -> None:
    x = torch.randn(1, 6, 6)
    for granularity in ("tensor", {"kind": "channel_groups", "k": 2}):
        found = quantizer(granularity, True, x)  # type: ignore[arg-type]
        assert widened(found, 1) is found


def test_one_image_gives_all_channels_one_scale() -> None:
    scale = torch.tensor([1e-6, 0.5, 1.0])
    assert widened_scales(scale, 1, 8).tolist() == [1 + MARGIN] * 3
    assert widened_scales(scale, ENOUGH, 8).equal(scale)


def test_a_dead_channel_can_come_alive() -> None:
    x = torch.randn(2, 6, 3)
    x[..., 1] = 0
    later = torch.randn(2, 6, 3)
    before, after = quantizer("channel", False, x), widened(quantizer("channel", False, x), 2)
    assert before(later)[..., 1].abs().max() < 1e-9
    assert (after(later) - later)[..., 1].abs().mean() < 0.2 * later[..., 1].abs().mean()
