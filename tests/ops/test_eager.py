"""The engine's arithmetic in PyTorch, which runs on CUDA: the bits of the NumPy definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.test_fixed_scan import Case
from tests.ops.test_triton import needs_triton
from tests.other_device import HAS_GPU
from visq.integer.codecs import make_factor_codec, make_state_codec
from visq.integer.float_scan import FloatScan
from visq.integer.spec import Spec
from visq.ops import backends
from visq.quant.codebook import power
from visq.quant.codec import codec_of
from visq.quant.quantizer import Quantizer, StateQuantizer

DEVICE = "cuda" if HAS_GPU else "cpu"
HARD = torch.tensor([0.0, -0.0, 200.0, -200.0, 1e30, -1e30, float("inf"), -float("inf"), 1e-40])

#: Scans in all forms of fixed point.
CASES: list[dict[str, Any]] = [
    {},
    {"bits": 4, "asymmetric": True, "jump": 3.0},
    {"bits": 6, "table": True, "states": 16},
    {"divisors": True, "length": 17, "jump": 100.0},
    {"fused": True},
    {"fused": True, "bits": 4, "asymmetric": True, "jump": 3.0, "states": 16},
    {"ladder": True, "states": 24},
    {"ladder": True, "bits": 2, "states": 1, "channels": 1, "length": 1},
]


def same(op: str, *args: Any) -> None:
    there = (arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args)
    found = backends.implementation("exact", "torch")(op, *there).cpu().numpy()
    expected = backends.implementation("exact", "naive")(op, *args).numpy()
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=True), op


@pytest.mark.parametrize("function", ["silu", "softplus", "gelu", "neg"])
def test_functions(function: str) -> None:
    for scale in (1e-3, 1.0, 30.0):
        same(function, torch.randn(2, 37, 65) * scale)
    same(function, HARD.view(1, 1, -1))


@pytest.mark.parametrize("width", [1, 7, 16, 33, 192])
def test_norms_products_and_means(width: int) -> None:
    x, weight = torch.randn(2, 5, width) * 3, torch.linspace(-1, 2, width)
    same("rms_norm", x, weight, 1e-5)
    same("layer_norm", x, weight, weight.flip(0), 1e-5)
    same("mean", x)
    same("product", x, torch.randn(9, width))
    runs = width & -width  # the largest power of two that divides it
    for count in {1, runs}:
        same("rotate", x, torch.randn(width), torch.randn(width // count, width // count))


@pytest.mark.parametrize("rounded", ["nothing", "uniform", "tables", "sum"])
def test_scans_in_float32(rounded: str) -> None:
    A = -torch.exp(torch.randn(17, 5))
    u, delta, B, C = torch.randn(2, 9, 17), torch.rand(2, 9, 17), torch.randn(2, 9, 5), torch.randn(2, 9, 5)
    tables = rounded == "tables"
    abar = Quantizer(Spec(bits=4, signed=False), torch.tensor([1 / 15]), table=power(4, False, 0.5) if tables else None)
    smooth = torch.rand(17) + 0.5
    bbar = Quantizer(Spec(bits=4), torch.tensor([0.2]), smooth=smooth, table=power(4, True, 0.5) if tables else None)
    h = StateQuantizer(
        Spec(bits=8), torch.rand(9) * 0.02 + 0.01, torch.rand(17) + 0.5, torch.rand(5) + 0.5, rounded != "sum"
    )
    codecs = codec_of(abar, make_factor_codec), codec_of(bbar, make_factor_codec), codec_of(h, make_state_codec)
    parts = (None, None, None) if rounded == "nothing" else codecs
    same("float_scan", u, delta, B, C, FloatScan(A.numpy(), *parts, reason="test"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scans_in_fixed_point(case: dict[str, Any]) -> None:
    made = Case(**case)
    integers, plan = made.C_quantizer.integers(made.C), made.plan()
    for u in (made.u, torch.full_like(made.u, float("nan"))):
        there = [x.to(DEVICE) for x in (u, made.delta, made.B, integers)]
        found = backends.implementation("fixed_scan", "torch")(*there, plan).cpu()
        expected = backends.implementation("fixed_scan", "naive")(u, made.delta, made.B, integers, plan)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@needs_triton
@pytest.mark.parametrize("case", [{**case, "batch": 1} for case in CASES], ids=str)
def test_the_kernel_of_scans_in_fixed_point(case: dict[str, Any]) -> None:
    made = Case(**case)
    integers, plan = made.C_quantizer.integers(made.C), made.plan()
    there = [x.to(DEVICE) for x in (made.u, made.delta, made.B, integers)]
    found = backends.implementation("fixed_scan", "triton")(*there, plan).cpu()
    expected = backends.implementation("fixed_scan", "naive")(made.u, made.delta, made.B, integers, plan)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
