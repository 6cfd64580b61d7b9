"""Tests the greedy search of state scales against its oracle, and the error that its scales reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ISAS, assert_same_bits, needs_cpp, scan_inputs, torch_threads
from visq.errors import VisqError
from visq.ops import StateRounding, Uniform, _native, quantized_scan, search_state_scales, selective_scan
from visq.ops._scan import Rounding

B, L, D, N = 3, 9, 19, 5
GROUPS = {
    "step": torch.arange(L),
    "tensor": torch.zeros(L, dtype=torch.int32),
    "some": torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 5]),
}


def problem() -> tuple[list[Tensor], dict[str, Tensor]]:
    inputs = scan_inputs(B, L, D, N)
    scales = {"base": torch.full((L,), 0.3), "channel": 0.5 + torch.rand(D), "state": 0.5 + torch.rand(N)}
    return [*inputs, selective_scan(*inputs)], {**scales, "candidates": torch.linspace(0.1, 1.9, 19)}


def quality(inputs: list[Tensor], scales: dict[str, Tensor], step: Tensor, read: bool) -> float:
    state = StateRounding(step, scales["channel"], scales["state"], -8, 7, read)
    y = quantized_scan(*inputs[:5], state=state)
    return float(torch.nn.functional.cosine_similarity(y, inputs[5], dim=-1).mean())


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "raw"])
@pytest.mark.parametrize("groups", GROUPS)
def test_matches_naive(groups: str, read: bool, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, scales = problem()
    results = []
    for name in ("cpp", "naive"):
        monkeypatch.setenv("VISQ_OPS", name)
        with _native.use_isa(isa):
            step = search_state_scales(
                *inputs,
                groups=GROUPS[groups],
                **scales,
                qmin=-8,
                qmax=7,
                read_quantized=read,
                abar=Uniform(1 / 255, 0, 255),
            )
        results.append(step)
    # A near-tie may fall either way and change later choices. The quality must stay the same.
    assert (results[0] == results[1]).float().mean() >= 0.6
    monkeypatch.delenv("VISQ_OPS")
    assert quality(inputs, scales, results[0], read) == pytest.approx(
        quality(inputs, scales, results[1], read), abs=0.02
    )


@pytest.mark.parametrize("groups", GROUPS)
def test_steps_are_base_times_a_candidate_per_group(groups: str) -> None:
    inputs, scales = problem()
    step = search_state_scales(*inputs, groups=GROUPS[groups], **scales, qmin=-8, qmax=7)
    multiplier = step / scales["base"]
    distance = (multiplier[:, None] - scales["candidates"]).abs().min(1).values
    assert (distance < 1e-6).all()
    for g in GROUPS[groups].unique():
        assert len(step[GROUPS[groups] == g].unique()) == 1


@pytest.mark.parametrize("read", [True, False], ids=["read", "raw"])
def test_beats_every_fixed_candidate(read: bool) -> None:
    inputs, scales = problem()
    step = search_state_scales(*inputs, groups=GROUPS["step"], **scales, qmin=-8, qmax=7, read_quantized=read)
    fixed = [quality(inputs, scales, scales["base"] * m, read) for m in scales["candidates"]]
    assert quality(inputs, scales, step, read) >= max(fixed) - 0.005


def test_ties_go_to_the_candidate_closest_to_one() -> None:
    inputs, scales = problem()
    silent = [inputs[0] * 0, *inputs[1:]]  # u = 0: every candidate scores 0
    scales["candidates"] = torch.tensor([0.2, 1.25, 0.75, 1.9])
    step = search_state_scales(*silent, groups=GROUPS["step"], **scales, qmin=-8, qmax=7)
    assert torch.equal(step, scales["base"] * 1.25)  # 1.25 is as close to 1 as 0.75, and comes first


@needs_cpp
@pytest.mark.parametrize("batch", [1, 20])
def test_same_bits_for_any_thread_count(batch: int) -> None:
    inputs = scan_inputs(batch, 5, 40, 4)
    y = selective_scan(*inputs)
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(
                search_state_scales(
                    *inputs,
                    y,
                    groups=torch.arange(5),
                    base=torch.full((5,), 0.2),
                    channel=torch.ones(40),
                    state=torch.ones(4),
                    candidates=torch.linspace(0.1, 1.9, 30),
                    qmin=-8,
                    qmax=7,
                )
            )
    for other in results[1:]:
        assert_same_bits(results[0], other)


def test_errors() -> None:
    inputs, scales = problem()
    quant = {"qmin": -8, "qmax": 7}
    with pytest.raises(VisqError, match="groups must start at 0 and never decrease"):
        search_state_scales(*inputs, groups=GROUPS["step"].flip(0), **scales, **quant)
    with pytest.raises(VisqError, match=r"groups must be int32 \[L\] = \[9\], got int64 \[3\]"):
        search_state_scales(*inputs, groups=torch.arange(3), **scales, **quant)
    with pytest.raises(VisqError, match="scales were made for L=4, but the input has L=9"):
        search_state_scales(*inputs, groups=GROUPS["step"], **{**scales, "base": torch.ones(4)}, **quant)
    with pytest.raises(VisqError, match="candidates must be"):
        search_state_scales(*inputs, groups=GROUPS["step"], **{**scales, "candidates": torch.zeros(2)}, **quant)
    broken = [inputs[0].clone(), *inputs[1:]]
    broken[0][:, 4] = float("nan")
    with pytest.raises(VisqError, match="no candidate gives a finite output at step"):
        search_state_scales(*broken, groups=GROUPS["step"], **scales, **quant)


def test_opcheck() -> None:
    inputs, s = problem()
    rounding = Rounding(s["base"], s["channel"], s["state"], [-8, 7], True, None, [], None, [])
    *scan, y_ref = inputs
    flat = (*scan, *rounding, y_ref, GROUPS["step"], s["candidates"])
    torch.library.opcheck(
        torch.ops.visq.search_state_scales.default, flat, test_utils=("test_schema", "test_faketensor")
    )
