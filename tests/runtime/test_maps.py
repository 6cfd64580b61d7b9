"""Checks sources over maps: the oracle against PyTorch, and the kernels against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, Maker, quantizer, weight
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.integer.forms import FloatConv2d, IntegerConv2d, IntegerLinear
from visq.native.extension import available
from visq.runtime.bundle import Weight
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


def decoded(maker: Maker, oracle: Oracle, name: str) -> np.ndarray:
    """Returns a tensor of the last image, decoded, [rows, width] float32."""
    decl, data = maker.tensors[name], oracle.tensors[name]
    if decl.site is None:
        return data
    order = np.arange(decl.rows)[:: -1 if decl.reverse else 1]
    return maker.bundle.codec(decl.site).decode(data, order)


def as_map(x: np.ndarray, side: int) -> torch.Tensor:
    """Returns rows [side * side, C] as a map [1, C, side, side] float64."""
    return torch.from_numpy(x).double().reshape(1, side, side, -1).permute(0, 3, 1, 2)


def as_rows(x: torch.Tensor) -> np.ndarray:
    return x[0].flatten(1).T.numpy()


# --- windows


@pytest.mark.parametrize(("patch", "stride", "padding"), [(3, 2, 1), (3, 1, 2), (1, 1, 0), (5, 3, 2), (2, 2, 1)])
@pytest.mark.parametrize("size", [4, 7])
def test_windows_of_the_image(patch: int, stride: int, padding: int, size: int) -> None:
    maker = Maker(1, size=size)
    side = (size + 2 * padding - patch) // stride + 1
    maker.operation(ir.Patches(patch=patch, stride=stride, padding=padding), side * side, 3 * patch * patch)
    maker.store(kind="tensor asymmetric")
    output = maker.store()
    images = maker.images(1)
    found = Oracle(maker.program(output), maker.bundle)
    found(images)
    expected = F.unfold(torch.from_numpy(images), patch, padding=padding, stride=stride)[0].T.numpy()
    assert np.array_equal(found.tensors[output], expected)
    check(maker, output, batch=2)


@pytest.mark.parametrize("kind", [None, "tensor asymmetric", "token", "channel", "table"])
@pytest.mark.parametrize(
    ("side", "width", "patch", "stride", "padding"),
    [(1, 1, 1, 1, 0), (1, 3, 3, 2, 1), (5, 17, 3, 2, 1), (6, 16, 2, 2, 0), (4, 5, 4, 1, 3)],
)
def test_windows_of_a_map(kind: str | None, side: int, width: int, patch: int, stride: int, padding: int) -> None:
    maker = Maker(2)
    x = maker.random(side * side, width, kind)
    count = (side + 2 * padding - patch) // stride + 1
    source = ir.Patches(patch=patch, stride=stride, padding=padding, input=x)
    maker.operation(source, count * count, width * patch * patch)
    maker.store(kind="tensor")
    oracle = check(maker, maker.store())
    expected = F.unfold(as_map(decoded(maker, oracle, x), side), patch, padding=padding, stride=stride)[0].T.numpy()
    assert np.array_equal(oracle.tensors[list(maker.tensors)[-1]], expected)


def test_a_dense_convolution_is_windows_and_a_product() -> None:
    side, width, outputs = 7, 19, 35
    maker = Maker(3)
    x = maker.random(side * side, width)
    maker.operation(ir.Patches(patch=3, stride=2, padding=1, input=x), 16, width * 9)
    windows = maker.store(kind="tensor asymmetric")
    w, bias = maker.site(weight(outputs, (width, 3, 3), maker.rng)), maker.parameter(outputs)
    maker.operation(ir.Linear(input=windows, weight=w, bias=bias), 16, outputs)
    oracle = check(maker, maker.store(), threads=(1, 3), batch=2)
    assert isinstance(oracle.forms[-1], IntegerLinear)
    codes = maker.bundle.sites[maker.tensors[windows].site]
    rounded = codes.decode(codes.encode(oracle.tensors[x], np.arange(side * side)), np.arange(side * side))
    values = torch.from_numpy(maker.bundle.sites[w].decoded()).double()
    bias_values = torch.from_numpy(maker.bundle.tensors[bias]).double()
    expected = as_rows(F.conv2d(as_map(rounded, side), values, bias_values, stride=2, padding=1))
    np.testing.assert_allclose(oracle.tensors[list(maker.tensors)[-1]], expected, rtol=1e-4, atol=1e-4)


# --- the depthwise convolution


def convolution(maker: Maker, x: str, side: int, width: int, kernel: int, padding: int, codes: bool = True) -> str:
    count = side + 2 * padding - kernel + 1
    w = weight(width, (1, kernel, kernel), maker.rng)
    name = maker.site(w) if codes else maker.parameter(width, 1, kernel, kernel)
    source = ir.Conv2d(input=x, weight=name, bias=maker.parameter(width), kernel=kernel, padding=padding)
    maker.operation(source, count * count, width)
    maker.store(kind="tensor")
    return maker.store()


@pytest.mark.parametrize("kind", ["tensor", "tensor asymmetric", "channel asymmetric", "token", "table", None])
@pytest.mark.parametrize(
    ("side", "width", "kernel", "padding"),
    [(1, 1, 1, 0), (1, 5, 3, 1), (2, 16, 3, 1), (5, 49, 3, 1), (7, 33, 3, 0), (6, 20, 5, 4), (4, 3, 4, 1)],
)
def test_depthwise_convolution(kind: str | None, side: int, width: int, kernel: int, padding: int) -> None:
    maker = Maker(4)
    x = maker.random(side * side, width, kind)
    output = convolution(maker, x, side, width, kernel, padding)
    oracle = check(maker, output)
    integer = kind in ("tensor", "tensor asymmetric", "channel asymmetric")
    assert isinstance(oracle.forms[-1], IntegerConv2d if integer else FloatConv2d)
    source = maker.operations[-1]["source"]
    values = torch.from_numpy(maker.bundle.sites[source.weight].decoded()).double()
    bias = torch.from_numpy(maker.bundle.tensors[source.bias]).double()
    expected = F.conv2d(as_map(decoded(maker, oracle, x), side), values, bias, padding=padding, groups=width)
    np.testing.assert_allclose(oracle.tensors[output], as_rows(expected), rtol=1e-4, atol=1e-4)


def test_depthwise_convolution_of_a_weight_in_float() -> None:
    maker = Maker(5)
    output = convolution(maker, maker.random(25, 18, "tensor"), 5, 18, 3, 1, codes=False)
    assert isinstance(check(maker, output).forms[-1], FloatConv2d)


def test_depthwise_convolution_with_the_largest_sums() -> None:
    """The largest sums come from the largest kernel, codes of 255 with zero point 0, and weights of -128."""
    maker = Maker(6)
    x = maker.random(15 * 15, 17, "unsigned", scale=1e6)
    w = Weight(np.full((17, 1, 15, 15), -128), np.ones(1, np.float32), np.ones(1, np.float32))
    maker.operation(ir.Conv2d(input=x, weight=maker.site(w), kernel=15, padding=14), 29 * 29, 17)
    output = maker.store()
    oracle = check(maker, output, threads=(1,))
    assert np.abs(oracle.tensors[output]).max() > 1e6


def test_a_zero_point_beyond_the_codes_adds_nothing_outside() -> None:
    maker = Maker(7)
    values = quantizer("tensor asymmetric", 9, 5, maker.rng)
    object.__setattr__(values, "zero", np.full(1, 9000, np.float32))
    x = maker.random(9, 5)
    maker.operation(ir.Concat(parts=((x, 0, 9),)), 9, 5)
    site = maker.site(values)
    maker.tensors["codes"] = ir.TensorDecl(rows=9, width=5, site=site)
    maker.operations[-1]["body"].append(ir.Store(src=0, tensor="codes"))
    check(maker, convolution(maker, "codes", 3, 5, 3, 1))


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6), st.data())
@settings(max_examples=15, deadline=None)
def test_random_maps(seed: int, side: int, width: int, kernel: int, data: st.DataObject) -> None:
    padding = data.draw(st.integers(max(0, (kernel - side + 1) // 2), kernel - 1))
    maker = Maker(seed)
    kind = data.draw(st.sampled_from(["tensor asymmetric", "channel", None]))
    check(maker, convolution(maker, maker.random(side * side, width, kind), side, width, kernel, padding), threads=(2,))


# --- rows that move, and their mean


@pytest.mark.parametrize("kind", [None, "token asymmetric", "channel"])
@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 1), (1, 7, 16), (5, 3, 33), (6, 6, 20)])
def test_transpose(kind: str | None, height: int, width: int, channels: int) -> None:
    maker = Maker(8)
    x = maker.random(height * width, channels, kind)
    maker.operation(ir.Transpose(input=x, height=height, width=width), height * width, channels)
    turned = maker.store()
    maker.store(kind="token", reverse=True)
    maker.operation(ir.Transpose(input=turned, height=width, width=height), height * width, channels)
    back = maker.store()
    oracle = check(maker, back, threads=(1, 3))
    expected = decoded(maker, oracle, x).reshape(height, width, channels)
    assert np.array_equal(oracle.tensors[turned], expected.transpose(1, 0, 2).reshape(-1, channels))
    assert np.array_equal(oracle.tensors[back], expected.reshape(-1, channels))


@pytest.mark.parametrize("kind", [None, "token", "tensor asymmetric"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 16), (50, 37)])
def test_mean(kind: str | None, rows: int, width: int) -> None:
    maker = Maker(9)
    x = maker.random(rows, width, kind)
    maker.operation(ir.Mean(input=x), 1, width)
    maker.store(kind="tensor")
    output = maker.store()
    oracle = check(maker, output)
    exact = decoded(maker, oracle, x).astype(np.float64).mean(0)
    np.testing.assert_allclose(oracle.tensors[output][0], exact, rtol=1e-4, atol=1e-5)


# --- whole programs


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_operations_over_maps_wait_for_all_rows(threads: int) -> None:
    """Each operation reads other rows of the tensor just written, in memory that is used again."""
    side, width = 6, 24
    maker = Maker(10)
    x = maker.random(side * side, width, "tensor")
    for _ in range(3):
        x = convolution(maker, x, side, width, 3, 1)
        maker.operation(ir.Transpose(input=x, height=side, width=side), side * side, width)
        maker.step(ir.Load(dst=1, tensor=x), width)
        x = maker.store(maker.step(ir.Binary(op="add", dst=2, a=0, b=1), width), "tensor")
    maker.operation(ir.Patches(patch=3, stride=1, padding=1, input=x), side * side, width * 9)
    windows = maker.store(kind="tensor")
    maker.operation(ir.Linear(input=windows, weight=maker.site(weight(7, (width, 3, 3), maker.rng))), side * side, 7)
    maker.operation(ir.Mean(input=maker.store()), 1, 7)
    output = maker.store()
    for batch in (1, 3):
        check(maker, output, isas=ISAS[:1], threads=(threads,), batch=batch)


def test_weights_of_another_kernel_are_refused() -> None:
    maker = Maker(11)
    x = maker.random(9, 5, "tensor")
    w = maker.site(weight(5, (1, 5, 5), maker.rng))
    maker.operation(ir.Conv2d(input=x, weight=w, kernel=3, padding=1), 9, 5)
    with pytest.raises(VisqError, match=r"expected \[5, 1, 3, 3\]"):
        CpuEngine(maker.program(maker.store()), maker.bundle)
