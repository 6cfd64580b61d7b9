"""Temporal groups and the scales of the hidden state."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visq import ops
from visq.calibrate.state_search import (
    RecordedScan,
    StepRange,
    contiguous_groups,
    make_state_estimator,
    step_scales,
)
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.quantizer import StateQuantizer
from visq.transforms.state_factors import Factors


def cost(maximum: Tensor, labels: Tensor) -> float:
    return sum(
        float((labels == group).sum() * maximum[labels == group].max() ** 2) for group in labels.unique().tolist()
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_best_partition(values: list[float], k: int) -> None:
    maximum = torch.tensor(values, dtype=torch.double)
    length = len(values)
    if k > length:
        with pytest.raises(VisqError, match="only"):
            contiguous_groups(maximum, k)
        return
    labels = contiguous_groups(maximum, k)
    assert labels.unique().tolist() == list(range(k))
    assert (labels.diff() >= 0).all()
    brute = min(
        cost(maximum, torch.bucketize(torch.arange(length), torch.tensor(cuts, dtype=torch.long), right=True))
        for cuts in itertools.combinations(range(1, length), k - 1)
    )
    assert cost(maximum, labels) == pytest.approx(brute)


def test_a_jump_in_time_gets_a_group_of_its_own() -> None:
    maximum = torch.tensor([1.0, 1.1, 0.9, 30.0, 31.0, 1.0, 1.0, 1.2])
    assert contiguous_groups(maximum, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def scan(batch: int = 6, length: int = 16, channels: int = 8, states: int = 4) -> RecordedScan:
    """The state grows along the sequence, with a burst in the middle."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(batch, length, channels, generator=g) * torch.linspace(0.2, 3, length)[:, None]
    u[:, 7] *= 15
    delta = torch.exp(torch.rand(batch, length, channels, generator=g) * 3 - 4)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B, C = (torch.randn(batch, length, states, generator=g) for _ in range(2))
    return RecordedScan(u, delta, A, B, C, ops.selective_scan(u, delta, A, B, C))


def quantizer(inputs: RecordedScan, granularity: object, estimator: object, bits: int = 4) -> StateQuantizer:
    spec = Spec.model_validate({"bits": bits, "granularity": granularity, "estimator": estimator})
    factors = Factors(*(torch.ones(n) for n in (inputs.u.shape[2], inputs.u.shape[1], inputs.A.shape[1])))
    state = make_state_estimator(spec, "h")
    ranges = StepRange(state.percentile)
    for u, delta, B in zip(inputs.u.chunk(2), inputs.delta.chunk(2), inputs.B.chunk(2), strict=True):
        ranges.observe(u, delta, inputs.A, B, factors)
    step, groups = step_scales(ranges.result(), factors, spec)
    if state.search is not None:
        step = state.search(inputs, step, groups, factors, spec, {})
    return StateQuantizer(spec, step, factors.channel, factors.state, state.read_quantized)


def loss(inputs: RecordedScan, found: StateQuantizer) -> float:
    return inputs.loss(state=found.scan_argument())


def groups(k: int) -> dict[str, object]:
    return {"kind": "step_groups", "k": k}


def test_one_group_is_per_tensor_and_as_many_as_steps_is_per_step() -> None:
    inputs = scan()
    for estimator in ("minmax", "scan_output"):
        one, tensor = quantizer(inputs, groups(1), estimator), quantizer(inputs, "tensor", estimator)
        assert torch.equal(one.step, tensor.step)
        every, step = quantizer(inputs, groups(16), estimator), quantizer(inputs, "step", estimator)
        assert torch.equal(every.step, step.step)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_more_groups_lose_less(bits: int) -> None:
    inputs = scan()
    losses = [loss(inputs, quantizer(inputs, groups(k), "minmax", bits)) for k in (1, 4, 16)]
    assert losses[0] > losses[1] > losses[2]


def test_searched_scales_beat_the_full_range() -> None:
    inputs = scan()
    for estimator in ("mse", "scan_output"):
        assert loss(inputs, quantizer(inputs, groups(4), estimator)) < loss(
            inputs, quantizer(inputs, groups(4), "minmax")
        )


def test_the_greedy_search_is_for_what_y_reads() -> None:
    inputs = scan()
    rounded, of_sum = (quantizer(inputs, "step", {"name": "scan_output", "read": read}) for read in ("rounded", "sum"))
    assert rounded.read_quantized and not of_sum.read_quantized
    assert not of_sum.step.equal(rounded.step)
    assert loss(inputs, of_sum) < loss(inputs, rounded)


def test_mse_is_the_best_multiplier_of_each_group() -> None:
    inputs = scan()
    found = quantizer(inputs, groups(3), {"name": "mse", "candidates": 12})
    base = quantizer(inputs, groups(3), "minmax")
    h = ops.scan_states(inputs.u, inputs.delta, inputs.A, inputs.B)

    def errors(step: Tensor) -> Tensor:
        scale = step[:, None, None]
        return ((h / scale).round().clamp(-8, 7) * scale - h).square().sum((0, 2, 3))

    multipliers = torch.cat([torch.linspace(0.05, 1.2, 11), torch.ones(1)])
    everything = torch.stack([errors(base.step * m) for m in multipliers])
    for scale in base.step.unique():
        members = base.step == scale
        best = everything[:, members].sum(1).min()
        assert float(errors(found.step)[members].sum()) == pytest.approx(float(best), rel=1e-4)


def test_percentile_ranges() -> None:
    inputs = scan()
    h = ops.scan_states(inputs.u, inputs.delta, inputs.A, inputs.B).abs()
    found = quantizer(inputs, "step", {"name": "percentile", "percentile": 90}).step * 7
    expected = torch.quantile(h.movedim(1, 0).flatten(1), 0.9, dim=1)
    assert ((found / expected - 1).abs() < 0.06).all()
    full = quantizer(inputs, "step", {"name": "percentile", "percentile": 100}).step * 7
    torch.testing.assert_close(full, h.amax((0, 2, 3)))


def test_a_state_that_is_never_excited_gets_a_harmless_scale() -> None:
    spec = Spec(bits=8, granularity="step")
    step, _ = step_scales(torch.tensor([0.0, 1.0, 0.0]), Factors(*(torch.ones(n) for n in (2, 3, 2))), spec)
    assert (step > 0).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"estimator": "similarity"}, "knows estimators minmax, percentile, mse, scan_output"),
        ({"estimator": {"name": "mse", "p": 3}}, "estimator mse"),
        ({"codebook": "power"}, "uniformly"),
        ({"estimator": {"name": "percentile", "percentile": 3}}, "above 50"),
        ({"estimator": {"name": "minmax", "read": "twice"}}, "`rounded` or the `sum`, not twice"),
    ],
)
def test_bad_recipes_are_named(spec: dict[str, object], message: str) -> None:
    with pytest.raises(VisqError, match=message):
        StepRange(make_state_estimator(Spec.model_validate({"bits": 4, **spec}), "h").percentile)
