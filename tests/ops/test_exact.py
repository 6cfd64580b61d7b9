"""Tests the engine's float32 kernels against the NumPy definition, and both against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visq import ops
from visq.errors import VisqError
from visq.integer.codecs import make_factor_codec, make_state_codec
from visq.integer.float_scan import FloatScan
from visq.integer.spec import Spec
from visq.native.extension import available, op_isas
from visq.ops import _native, backends, exact
from visq.quant.codec import codec_of
from visq.quant.quantizer import Quantizer, StateQuantizer

ISAS = op_isas()
WIDTHS = [1, 2, 7, 15, 16, 17, 31, 64, 65, 200]
needs_extension = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


def both(op: str, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the results of the kernel and of the definition."""
    with torch.no_grad():
        found, defined = (backends.implementation("exact", name)(op, *args).numpy() for name in ("cpp", "naive"))
    return found, defined


def values(data: st.DataObject, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, generator=generator) * data.draw(st.sampled_from([1e-3, 1.0, 30.0]))
    # Large inputs test saturation.
    x.view(-1)[:: data.draw(st.integers(5, 50))] = data.draw(st.sampled_from([0.0, -200.0, 200.0, 1e30]))
    return x


def size(data: st.DataObject) -> tuple[int, int, int]:
    """Draws images, tokens and channels; some draws have more tokens than one task takes."""
    return (
        data.draw(st.integers(0, 3)),
        data.draw(st.sampled_from([1, 2, 63, 65, 130])),
        data.draw(st.sampled_from(WIDTHS)),
    )


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", ["silu", "softplus", "gelu"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_functions_have_the_bits_of_the_definition(function: str, isa: str, data: st.DataObject) -> None:
    x = values(data, *size(data)[1:])
    with _native.use_isa(isa):
        found, defined = both(function, x)
    assert found.shape == tuple(x.shape) and np.array_equal(found, defined)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_norms_have_the_bits_of_the_definition(isa: str, data: st.DataObject) -> None:
    images, tokens, width = size(data)
    x = torch.randn(images, tokens, width, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    weight, bias = torch.linspace(-1, 2, width), torch.linspace(1, -1, width)
    with _native.use_isa(isa):
        for op, parameters in (("rms_norm", (weight,)), ("layer_norm", (weight, bias))):
            found, defined = both(op, x, *parameters, 1e-5)
            assert found.shape == tuple(x.shape) and np.array_equal(found, defined), op


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_products_and_means_have_the_bits_of_the_definition(isa: str, data: st.DataObject) -> None:
    images, tokens, width = size(data)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(images, tokens, width, generator=generator)
    weight = torch.randn(data.draw(st.sampled_from(WIDTHS)), width, generator=generator)
    with _native.use_isa(isa):
        found, defined = both("product", x, weight)
        assert found.shape == (images, tokens, len(weight)) and np.array_equal(found, defined)
        inverse = torch.randn(width, generator=generator)
        odd = width // (width & -width)
        for runs in {1, 2, width // odd} & {width // n for n in range(1, width + 1) if width % n == 0}:
            found, defined = both("rotate", x, inverse, torch.randn(width // runs, width // runs, generator=generator))
            assert found.shape == x.shape and np.array_equal(found, defined)
        found, defined = both("mean", x)
        assert found.shape == (images, width) and np.array_equal(found, defined)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_scans_have_the_bits_of_the_definition(isa: str, data: st.DataObject) -> None:
    length, channels = data.draw(st.sampled_from([1, 2, 9])), data.draw(st.sampled_from([1, 3, 16, 17, 40]))
    states = data.draw(st.sampled_from([1, 2, 5, 16]))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    A = -torch.exp(torch.randn(channels, states, generator=g))
    u, delta = torch.randn(2, length, channels, generator=g), torch.rand(2, length, channels, generator=g)
    B, C = (torch.randn(2, length, states, generator=g) for _ in range(2))
    abar = Quantizer(Spec(bits=8, signed=False), torch.tensor([1 / 255]))
    bbar = Quantizer(Spec(bits=8), torch.tensor([0.02]), smooth=torch.rand(channels, generator=g) + 0.5)
    h = StateQuantizer(Spec(bits=8), torch.full((1,), 0.01), torch.ones(channels), torch.ones(states))
    picked = [data.draw(st.booleans()) for _ in range(3)]
    makers = ((abar, make_factor_codec), (bbar, make_factor_codec), (h, make_state_codec))
    parts = (codec_of(q, make) if chosen else None for chosen, (q, make) in zip(picked, makers, strict=True))
    form = FloatScan(A.numpy(), *parts, reason="test")
    with _native.use_isa(isa):
        found, defined = both("float_scan", u, delta, B, C, form)
    assert np.array_equal(found, defined)
    if not any(picked):
        expected = ops.selective_scan(u, delta, A, B, C).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "found, expected",
    [
        (partial(exact.unary, "silu"), F.silu),
        (partial(exact.unary, "softplus"), F.softplus),
        (partial(exact.unary, "gelu"), F.gelu),
        (lambda x: exact.rms_norm(x, torch.ones(5), 1e-5), lambda x: F.rms_norm(x, (5,), eps=1e-5)),
        (lambda x: exact.layer_norm(x, torch.ones(5), torch.ones(5), 1e-5), lambda x: F.layer_norm(x, (5,)) + 1),
        (lambda x: exact.product(x, torch.eye(5)[:3]), lambda x: x[..., :3]),
        (lambda x: exact.rotate(x, torch.eye(5).flip(0), torch.full((5,), -2.0)), lambda x: x.flip(-1) / -2),
        (exact.mean, lambda x: x.mean(1)),
    ],
)
def test_they_are_the_functions_of_pytorch(
    found: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]
) -> None:
    x = 4 * torch.randn(3, 70, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(x), expected(x), rtol=1e-5, atol=2e-6)
    assert not found(x.requires_grad_()).requires_grad


@needs_extension
def test_threads_do_not_matter() -> None:
    x, threads = torch.randn(5, 100, 33), torch.get_num_threads()
    expected = exact.unary("silu", x)
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            assert exact.unary("silu", x).equal(expected)
    finally:
        torch.set_num_threads(threads)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(VisqError, match="weight"):
        exact.product(torch.zeros(2, 3, 4), torch.zeros(5, 3))
    with pytest.raises(VisqError, match="divisor"):
        exact.rotate(torch.zeros(2, 3, 4), torch.eye(4), torch.ones(3))
    with pytest.raises(VisqError, match="matrix"):
        exact.rotate(torch.zeros(2, 3, 12), torch.eye(4), torch.ones(12))
    form = FloatScan(-np.ones((4, 2), np.float32), None, None, None, "test")
    ok = {"u": (1, 3, 4), "delta": (1, 3, 4), "B": (1, 3, 2), "C": (1, 3, 2)}
    for name in ok:
        tensors = [torch.zeros(*shape[:2], shape[2] + (key == name)) for key, shape in ok.items()]
        with pytest.raises(VisqError, match=f"float_scan: {name}"):
            exact.float_scan(*tensors, form)
