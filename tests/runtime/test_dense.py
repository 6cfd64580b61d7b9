"""Checks dense convolutions and pixel shuffles: the oracle against PyTorch, and the kernels against the oracle."""

from __future__ import annotations

import dataclasses

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
from visq.integer.forms import FloatLinear, IntegerLinear
from visq.integer.program import Program
from visq.native.extension import available
from visq.runtime.bundle import Weight
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


def a_map(maker: Maker, height: int, width: int, channels: int, kind: str | None) -> str:
    name = maker.random(height * width, channels, kind)
    if height != width:
        maker.tensors[name] = maker.tensors[name].model_copy(update={"height": height})
    return name


def convolution(
    maker: Maker,
    x: str,
    size: tuple[int, int],
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    bits: int | None = 8,
) -> str:
    channels = maker.tensors[x].width
    shape = (channels, *kernel)
    name = (
        maker.parameter(outputs, *shape) if bits is None else maker.site(weight(outputs, shape, maker.rng, bits=bits))
    )
    down, across = ((s + 2 * p - k) // t + 1 for s, k, t, p in zip(size, kernel, stride, padding, strict=True))
    source = ir.DenseConv2d(
        input=x, weight=name, bias=maker.parameter(outputs), kernel=kernel, stride=stride, padding=padding
    )
    maker.operation(source, down * across, outputs)
    maker.store(kind="tensor")
    return maker.store()


def expected(maker: Maker, oracle: Oracle, x: str, size: tuple[int, int]) -> np.ndarray:
    """Returns PyTorch's convolution of the tensor's values in float64, as rows."""
    decl, data, source = maker.tensors[x], oracle.tensors[x], maker.operations[-1]["source"]
    values = data if decl.site is None else maker.bundle.codec(decl.site).decode(data, np.arange(decl.rows))
    maps = torch.from_numpy(values).double().reshape(1, *size, -1).permute(0, 3, 1, 2)
    w = maker.bundle.weight(source.weight)
    w = torch.from_numpy(w.decoded() if isinstance(w, Weight) else w).double()
    bias = torch.from_numpy(maker.bundle.tensors[source.bias]).double()
    found = F.conv2d(maps, w, bias, stride=source.stride, padding=source.padding)
    return found[0].flatten(1).T.numpy()


SHAPES = [
    ((1, 1), 1, 1, (1, 1), (1, 1), (0, 0)),
    ((1, 7), 3, 5, (1, 3), (1, 2), (0, 1)),
    ((5, 3), 60, 17, (3, 3), (1, 1), (1, 1)),
    ((6, 9), 64, 64, (3, 3), (2, 2), (1, 1)),
    ((7, 4), 65, 66, (3, 2), (2, 1), (2, 0)),
    ((4, 6), 16, 33, (4, 1), (4, 3), (1, 0)),
]


@pytest.mark.parametrize("kind", ["tensor", "tensor asymmetric", "unsigned", "channel", "token", "table", None])
@pytest.mark.parametrize(("size", "channels", "outputs", "kernel", "stride", "padding"), SHAPES)
def test_dense_convolution(kind, size, channels, outputs, kernel, stride, padding) -> None:
    maker = Maker(1)
    x = a_map(maker, *size, channels, kind)
    output = convolution(maker, x, size, outputs, kernel, stride, padding)
    oracle = check(maker, output)
    integer = kind in ("tensor", "tensor asymmetric", "unsigned") or (kind == "channel" and channels == 1)
    assert isinstance(oracle.forms[-1], IntegerLinear if integer else FloatLinear)
    np.testing.assert_allclose(oracle.tensors[output], expected(maker, oracle, x, size), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, None])
def test_weights_of_four_bits_and_in_float(bits: int | None) -> None:
    maker = Maker(2)
    x = a_map(maker, 5, 6, 20, "tensor asymmetric")
    output = convolution(maker, x, (5, 6), 70, (3, 3), padding=(1, 1), bits=bits)
    oracle = check(maker, output, batch=2)
    assert isinstance(oracle.forms[-1], FloatLinear if bits is None else IntegerLinear)
    np.testing.assert_allclose(oracle.tensors[output], expected(maker, oracle, x, (5, 6)), rtol=1e-4, atol=1e-4)


def test_a_map_that_fills_tiles() -> None:
    """At least 16 rows and 64 elements of a sum: AMX computes these in tiles."""
    maker = Maker(3)
    output = convolution(maker, a_map(maker, 9, 11, 30, "tensor asymmetric"), (9, 11), 50, (3, 3), padding=(1, 1))
    check(maker, output, threads=(1, 3), batch=2)


def test_the_largest_sums() -> None:
    maker = Maker(4)
    x = maker.random(36, 128, "unsigned", scale=1e6)
    w = Weight(np.full((3, 128, 5, 5), -128), np.ones(1, np.float32), np.ones(1, np.float32))
    maker.operation(ir.DenseConv2d(input=x, weight=maker.site(w), kernel=(5, 5), padding=(4, 4)), 100, 3)
    output = maker.store()
    assert np.abs(check(maker, output, threads=(1,)).tensors[output]).max() > 1e6


def test_a_zero_point_beyond_the_codes_runs_in_float() -> None:
    maker = Maker(5)
    values = dataclasses.replace(quantizer("tensor asymmetric", 9, 5, maker.rng), zero=np.full(1, 300, np.float32))
    x = maker.random(9, 5)
    maker.operation(ir.Concat(parts=((x, 0, 9),)), 9, 5)
    maker.tensors["codes"] = ir.TensorDecl(rows=9, width=5, site=maker.site(values))
    maker.operations[-1]["body"].append(ir.Store(src=0, tensor="codes"))
    oracle = check(maker, convolution(maker, "codes", (3, 3), 4, (3, 3), padding=(1, 1)))
    assert isinstance(oracle.forms[-1], FloatLinear)


def test_it_equals_windows_and_a_product() -> None:
    """The operation has the bits of the two that it replaces."""
    maker = Maker(6)
    x = maker.random(49, 19)
    maker.operation(ir.Concat(parts=((x, 0, 49),)), 49, 19)
    codes = maker.store(kind="tensor asymmetric")
    direct = convolution(maker, codes, (7, 7), 35, (3, 3), (2, 2), (1, 1))
    dense = maker.operations[-1]["source"]
    maker.operation(ir.Patches(patch=3, stride=2, padding=1, input=x), 16, 19 * 9)
    windows = maker.store(kind="tensor asymmetric")
    maker.bundle.sites[maker.tensors[windows].site] = maker.bundle.sites[maker.tensors[codes].site]
    maker.operation(ir.Linear(input=windows, weight=dense.weight, bias=dense.bias), 16, 35)
    output = maker.store()
    oracle = check(maker, output)
    assert np.array_equal(oracle.tensors[output], oracle.tensors[direct])


@given(st.integers(0, 99), st.tuples(st.integers(1, 8), st.integers(1, 8)), st.integers(1, 70), st.data())
@settings(max_examples=15, deadline=None)
def test_random_convolutions(seed: int, size: tuple[int, int], channels: int, data: st.DataObject) -> None:
    kernel = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    least = [max(0, -(-(k - side) // 2)) for side, k in zip(size, kernel, strict=True)]
    padding = tuple(data.draw(st.integers(low, k - 1)) for low, k in zip(least, kernel, strict=True))
    stride = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    maker = Maker(seed)
    kind = data.draw(st.sampled_from(["tensor asymmetric", "tensor", "channel", None]))
    x = a_map(maker, *size, channels, kind)
    check(maker, convolution(maker, x, size, data.draw(st.integers(1, 40)), kernel, stride, padding), threads=(2,))


# --- pixel shuffles, and results that are maps


@pytest.mark.parametrize("kind", [None, "tensor asymmetric", "channel"])
@pytest.mark.parametrize(("size", "channels", "scale"), [((1, 1), 1, 1), ((3, 5), 3, 4), ((4, 4), 17, 2)])
def test_pixel_shuffle(kind: str | None, size: tuple[int, int], channels: int, scale: int) -> None:
    maker = Maker(7)
    x = a_map(maker, *size, channels * scale**2, kind)
    maker.operation(ir.PixelShuffle(input=x, scale=scale), size[0] * size[1] * scale**2, channels)
    output = maker.store(maker.step(ir.AddValues(dst=1, src=0, values=tuple(range(channels))), channels))
    oracle = check(maker, output)
    decl = maker.tensors[x]
    values = oracle.tensors[x]
    if decl.site is not None:
        values = maker.bundle.codec(decl.site).decode(values, np.arange(decl.rows))
    maps = torch.from_numpy(values).reshape(1, *size, -1).permute(0, 3, 1, 2)
    shuffled = F.pixel_shuffle(maps, scale)[0] + torch.arange(channels)[:, None, None]
    assert np.array_equal(oracle.tensors[output], shuffled.flatten(1).T.numpy())


@pytest.mark.parametrize("kind", [None, "tensor asymmetric", "token asymmetric"])
def test_a_map_is_returned_with_its_channels_first(kind: str | None) -> None:
    maker = Maker(8, size=6)
    maker.operation(ir.Patches(patch=3, stride=1, padding=1), 36, 27)
    output = maker.store(kind=kind)
    program = maker.program(output).model_copy(update={"output_map": True})
    images = maker.images(5)
    found = Oracle(program, maker.bundle)(images)
    assert found.shape == (5, 27, 6, 6)
    for isa in ISAS:
        for threads in (1, 3):
            assert np.array_equal(CpuEngine(program, maker.bundle, threads=threads, isa=isa)(images), found), isa
    if kind is None:
        assert np.array_equal(found.reshape(5, 27, 36), F.unfold(torch.from_numpy(images), 3, padding=1).numpy())


def test_an_image_that_is_not_square() -> None:
    maker = Maker(9)
    maker.size = (5, 8)  # type: ignore[assignment]
    maker.operation(ir.Patches(patch=3, stride=2, padding=1), 12, 27)
    decl = maker.tensors[maker.store(kind="tensor")]
    maker.tensors = {"t0": decl.model_copy(update={"height": 3})}
    output = convolution(maker, "t0", (3, 4), 8, (3, 3), padding=(1, 1))
    maker.tensors[output] = maker.tensors[output].model_copy(update={"height": 3})
    program = maker.program(output).model_copy(update={"output_map": True})
    assert program.output_shape == (8, 3, 4)
    assert Program.model_validate(program.to_json()) == program
    images = maker.rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    found = Oracle(program, maker.bundle)(images)
    for isa in ISAS:
        assert np.array_equal(CpuEngine(program, maker.bundle, threads=2, isa=isa)(images), found), isa


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding": (3, 1)}, "windows that lie outside"),
        ({"kernel": (9, 9), "padding": (1, 1)}, "larger than the image"),
        ({"stride": (2, 1)}, "rows are not the number of patches"),
    ],
)
def test_windows_that_do_not_fit_are_refused(change: dict[str, tuple[int, int]], message: str) -> None:
    maker = Maker(10)
    output = convolution(maker, maker.random(25, 4, "tensor"), (5, 5), 6, (3, 3), padding=(1, 1))
    source = maker.operations[-1]["source"]
    maker.operations[-1]["source"] = source.model_copy(update=change)
    with pytest.raises(ValueError, match=message):
        maker.program(output)


def test_weights_of_another_kernel_are_refused() -> None:
    maker = Maker(11)
    output = convolution(maker, maker.random(25, 4, "tensor"), (5, 5), 6, (3, 3), padding=(1, 1))
    source = maker.operations[-1]["source"]
    maker.bundle.sites[source.weight] = weight(6, (4, 1, 3), maker.rng)
    with pytest.raises(VisqError, match=r"expected \[6, 4, 3, 3\]"):
        CpuEngine(maker.program(output), maker.bundle)
