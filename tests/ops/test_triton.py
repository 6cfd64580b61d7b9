"""Tests the Triton kernels against their oracles: in Triton's interpreter on the CPU, or on a GPU where there is one.

The interpreter is chosen when Triton is imported (tests/conftest.py), so that a machine with a GPU tests real code.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import scan_inputs
from visq.ops import _triton, backends
from visq.ops._scan import ScanInputs
from visq.ops.causal_conv1d import naive as conv_naive
from visq.ops.causal_conv1d import triton as conv
from visq.ops.fake_quantize import naive as quantize_naive
from visq.ops.fake_quantize import triton as quantize
from visq.ops.selective_scan import naive as scan_naive
from visq.ops.selective_scan import triton as scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = (
    "causal_conv1d",
    "causal_conv1d_backward",
    "fake_quantize",
    "fixed_scan",
    "quantized_scan",
    "quantized_scan_backward",
    "scan_states",
    "search_state_scales",
    "selective_scan",
    "selective_scan_backward",
    "similarity_sums",
)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# (B, L, d_inner, N): below, at and beyond the blocks of 16 channels and of 8 steps.
SCANS = [
    (1, 1, 1, 1),
    (2, 5, 17, 3),
    (1, 8, 16, 8),
    (1, 9, 33, 16),
    pytest.param((1, 197, 20, 16), marks=pytest.mark.slow),
]
# (B, L, d_inner, taps): below, at and beyond the blocks of 16 tokens and 64 channels.
CONVS = [(1, 1, 1, 1), (2, 5, 7, 4), (1, 16, 64, 4), (2, 37, 65, 3), (1, 197, 70, 4)]


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [x.to(DEVICE) for x in tensors]


@needs_triton
@pytest.mark.parametrize("shape", SCANS, ids=str)
def test_scan_and_its_gradients(shape: tuple[int, int, int, int]) -> None:
    inputs = ScanInputs(*on_device(*scan_inputs(*shape)))  # u, B and C are slices of wider tensors
    grad_y = torch.randn(shape[:3]).to(DEVICE)
    torch.testing.assert_close(scan.forward(inputs), scan_naive.forward(inputs), rtol=1e-5, atol=1e-5)
    found, expected = scan.backward(inputs, grad_y), scan_naive.backward(inputs, grad_y)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_triton
def test_scan_of_views() -> None:
    u, delta, A, B, C = on_device(*scan_inputs(2, 6, 9, 4, strided=False))
    views = ScanInputs(
        u.transpose(1, 2).contiguous().transpose(1, 2),
        delta[:1].expand(2, -1, -1),
        A.t().contiguous().t(),
        B.flip(1),
        C[:, :1].expand(-1, 6, -1),
    )
    grad_y = torch.ones(1, 1, 1, device=DEVICE).expand(2, 6, 9)  # the gradient of a sum
    torch.testing.assert_close(scan.forward(views), scan_naive.forward(views), rtol=1e-5, atol=1e-5)
    for a, e in zip(scan.backward(views, grad_y), scan_naive.backward(views, grad_y), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scan_and_convolution_of_half_precision(dtype: torch.dtype) -> None:
    u, delta, A, B, C = on_device(*scan_inputs(1, 9, 17, 4))
    half = ScanInputs(u.to(dtype), delta.to(dtype), A, B.to(dtype), C.to(dtype))
    y = scan.forward(half)
    exact = scan_naive.forward(ScanInputs(*(x.float() for x in half)))
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype))
    weight = torch.randn(17, 4, device=DEVICE).to(dtype)
    expected = conv_naive.forward(half.u.float(), weight.float(), None).to(dtype)
    torch.testing.assert_close(conv.forward(half.u, weight, None), expected)


@needs_triton
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_convolution_and_its_gradients(shape: tuple[int, int, int, int], with_bias: bool) -> None:
    batch, length, channels, taps = shape
    wide, weight, bias, grad_y = on_device(
        torch.randn(batch, length, 2 * channels),
        torch.randn(channels, taps),
        torch.randn(channels),
        torch.randn(batch, length, channels),
    )
    x = wide[..., channels:]
    optional = bias if with_bias else None
    torch.testing.assert_close(conv.forward(x, weight, optional), conv_naive.forward(x, weight, optional))
    found, expected = conv.backward(x, weight, grad_y), conv_naive.backward(x, weight, grad_y)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("axis", ["tensor", "channel", "token"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_fake_quantize_to_the_bit(axis: str, zero: bool, smooth: bool) -> None:
    for length, channels in [(1, 1), (5, 65), (37, 7)]:
        size = {"tensor": 1, "channel": channels, "token": length}[axis]
        x = torch.randn(2, length, 2 * channels)[..., channels:] * 3
        scale, factors = torch.rand(size) * 0.1 + 0.01, torch.rand(channels) + 0.5
        zeros = torch.randint(-5, 6, (size,)).float()
        args = on_device(x, scale, zeros, factors)
        arguments: list[Any] = [args[0], args[1], args[2] if zero else None, args[3] if smooth else None]
        assert_equal(arguments, axis)


def assert_equal(arguments: list[Any], axis: str) -> None:
    found = quantize.forward(*arguments, -128, 127, axis)
    expected = quantize_naive.forward(*arguments, -128, 127, axis)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@needs_triton
def test_fake_quantize_of_ties_and_extremes() -> None:
    ties = torch.arange(-130, 131) * 0.5
    x = torch.cat([ties, torch.tensor([8388609.0, -8388609.0, 3e38, float("inf"), -float("inf"), -0.0, 1e-45])])
    one = torch.ones(1)
    assert_equal([*on_device(x.view(1, 1, -1), one), None, None], "tensor")
    nan = quantize.forward(*on_device(torch.full((1, 1, 1), float("nan")), one), None, None, -8, 7, "tensor")
    assert nan.isnan().all()


@needs_triton
def test_empty_tensors() -> None:
    inputs = ScanInputs(*on_device(*scan_inputs(2, 0, 3, 2)))
    assert scan.forward(inputs).shape == (2, 0, 3)
    assert [g.shape for g in scan.backward(inputs, inputs.u)] == [x.shape for x in inputs]
    assert conv.forward(inputs.u, torch.ones(3, 4, device=DEVICE), None).shape == (2, 0, 3)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from visq.ops.causal_conv1d import triton_kernels as conv
from visq.ops.fake_quantize import triton_kernels as quantize
from visq.ops.fixed_scan import triton_kernels as fixed
from visq.ops.quantized_scan import triton_kernels as quantized
from visq.ops.scan_states import triton_kernels as states
from visq.ops.search_state_scales import triton_kernels as search
from visq.ops.selective_scan import triton_kernels as scan
from visq.ops.similarity_sums import triton_kernels as sums
from visq.runtime.cuda.engine import refuse_lost_sums

steps = dict(L=197, N=16, WIDTH=16, BLOCK=16, AHEAD=8)
group = dict(STEPS=1, N=16, WIDTH=16, BLOCK=16)
rounded = lambda a, b: dict(ABAR=a, KA=16, BITS_A=4, BBAR=b, KB=16, BITS_B=4, STATE=True, READ=True)
tiles = dict(ROWS=16, BLOCK=64)
kernels = [
    (scan.forward, dict(steps, SAVE=False), 1),
    (scan.forward, dict(steps, SAVE=True), 1),
    (scan.backward, steps, 1),
    (states.forward, steps, 1),
    *((kernel, dict(sizes, **rounded(kind, kind)), 1) for kind in (1, 2) for kernel, sizes in (
        (quantized.forward, dict(steps, SAVE=False)), (quantized.backward, steps), (search.run_group, group))),
    *((fixed.recurrence, dict(FORM=form, SHIFT=24, POINT=4, LOW=-128, HIGH=127, KEPT=16384, ABAR_FRACTION=8,
        ABAR_HIGH=255, ABAR_BITS=8, BBAR_LOW=-128, BBAR_HIGH=127, BBAR_BITS=8, TABLE_A=table, TABLE_B=table, L=197,
        N=16, WIDTH=16, BLOCK=16), 1)
      for form, table in (("fixed", False), ("fixed", True), ("fused", False), ("ladder", False))),
    *((sums.forward, dict(G=4, K=101, C=384, BY_TOKEN=token, METRIC=metric, HAS_WEIGHT=True, COLUMNS=32, BLOCK=32), 4)
      for token, metric in ((True, "cosine"), (False, "l2"))),
    (conv.forward, dict(tiles, L=197, TAPS=4, HAS_BIAS=True, TURNED=False), 4),
    (conv.backward, dict(tiles, L=197, TAPS=4), 4),
    *((quantize.forward, dict(tiles, AXIS=axis, HAS_ZERO=True, HAS_SMOOTH=True), 4)
      for axis in ("tensor", "channel", "token")),
]
exact = {quantize.forward, quantized.forward, quantized.backward, search.run_group, sums.forward}
for kernel, constants, warps in kernels:
    sizes = {"D", "L"} if "DELTA" in kernel.arg_names else {"L", "C", "D"}
    kinds = {name: "*fp32" if name.isupper() and name not in sizes else "i32" for name in kernel.arg_names}
    kinds.update((name, "fp32") for name in ("low", "high") if name in kinds)
    kinds.update((name, kind) for name, kind in (("SUMS", "*fp64"), ("LABELS", "*i32")) if name in kinds)
    if kernel is fixed.recurrence:
        kinds = {name: "*i32" if name.isupper() else "i32" for name in kernel.arg_names}
    kinds.update((name, "constexpr") for name in constants)
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for capability in (80, 90):
        options = {"num_warps": warps, "enable_fp_fusion": kernel not in exact}
        target = GPUTarget("cuda", capability, 32)
        code = triton.compile(ASTSource(kernel, kinds, values), target=target, options=options)
        ptx = code.asm["ptx"]
        assert code.asm["cubin"] and f"sm_{capability}" in ptx and ".local" not in ptx
        refuse_lost_sums(str(kernel), code)
        if kernel in exact:  # single IEEE operations
            assert "fma" not in ptx and "div.rn.f32" in ptx
        print("compiled")
"""


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_gpus(tmp_path: Any) -> None:
    """Without a GPU: Triton brings the assembler."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    source = tmp_path / "compile_kernels.py"
    source.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(source)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compiled"] * 42


@pytest.mark.parametrize("op", OPS)
def test_a_cpu_without_a_gpu_keeps_its_kernels(op: str) -> None:
    assert backends.describe("cpu")[op].kernel != "triton"


@pytest.fixture
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("_no_interpreter")
def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _triton.usable() == (False, "this PyTorch is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "its driver is too old" in _triton.usable()[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert _triton.usable() == (False, "needs compute capability 8.0, and this GPU has 7.5")
    assert backends.describe("cuda")["selective_scan"].kernel == "naive"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert [backends.describe("cuda")[op].kernel for op in OPS] == ["triton"] * len(OPS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reasons = dict(backends.describe("cuda")["selective_scan"].not_used)
    assert reasons["triton"] == "Triton is not installed: pip install 'visq[gpu]'"
