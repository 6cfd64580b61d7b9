"""Products and shifts of whole numbers in float32 against those of int64: in PTX on a GPU, in float64 elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visq.integer.arithmetic import exp2_coefficients, exp2_fixed, mulhrs

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from visq.runtime.cuda import lane_kernels as lanes  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNT = 1024


@triton.jit
def products(A, B, OUT, UNIT: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(OUT + i, lanes.product(tl.load(A + i) * UNIT, tl.load(B + i) * 0.000030517578125, UNIT) / UNIT)


@triton.jit
def decays(E, C, OUT, SHIFT: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    c0, c1, c2, c3 = lanes.four(C + i * 0)
    tl.store(OUT + i, lanes.decay(tl.load(E + i), c0, c1, c2, c3, SHIFT, 0.25, -2) / 0.25)


@triton.jit
def group_sums(X, OUT, GROUP: tl.constexpr):
    lane = tl.arange(0, 32)
    tl.store(OUT + lane, lanes.sum_of_group(tl.load(X + lane), GROUP))


def device(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).to(DEVICE)


@pytest.mark.parametrize("unit", [1.0, 2.0**-8])
def test_products_round_half_up(unit: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-32768, 32768, (2, COUNT))
    a[:64], b[:64] = np.repeat([-32768, -1, 1, 32767], 16), np.tile([-32768, -16384, 0, 16384, 32767, 3, 1, -1], 8)
    a[64:128] = rng.integers(-128, 128, 64) * 256 + 128  # halves: a * b is an odd multiple of 2^14
    b[64:128] = 128
    out = torch.empty(COUNT, device=DEVICE)
    products[(1,)](device(a.astype(np.float32)), device(b.astype(np.float32)), out, unit, COUNT)
    assert np.array_equal(out.cpu().numpy(), mulhrs(a, b))


@pytest.mark.parametrize("shift", [16, 20])
def test_decays(shift: int) -> None:
    e = np.random.default_rng(1).integers(0, 2**31 - 1, COUNT) >> np.arange(COUNT) % 16
    e[:3] = 0, (1 << shift) - 1, 1 << shift
    c = np.array(exp2_coefficients(16384.0), np.int64)
    expected = exp2_fixed((e >> (shift - 16)) & 0xFFFF, tuple(c)) >> np.minimum(e >> shift, 16)
    out = torch.empty(COUNT, device=DEVICE)
    given = device((c + np.array([lanes.WHOLE] * 3 + [0])).astype(np.float32))
    decays[(1,)](device(e.astype(np.int32)), given, out, shift, COUNT)
    assert np.array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_sums_of_groups(group: int) -> None:
    x = np.random.default_rng(2).integers(-(2**20), 2**20, 32).astype(np.int32)
    out = torch.empty(32, dtype=torch.int32, device=DEVICE)
    group_sums[(1,)](device(x), out, group, num_warps=1)
    assert np.array_equal(out.cpu().numpy(), np.repeat(x.reshape(-1, group).sum(1), group))
