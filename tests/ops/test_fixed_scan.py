"""Tests the fixed-point C++ scan against the NumPy definition, and both against the ideal quantized scan."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visq import ops
from visq.errors import VisqError
from visq.integer.codecs import make_codec, make_state_codec
from visq.integer.fixed_scan import FixedScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.scan_steps import ScanCodecs
from visq.integer.scans import IntegerScan, integer_form
from visq.integer.spec import Granularity, Named, Spec
from visq.native.extension import available, op_isas
from visq.ops import _native, backends
from visq.ops.fixed_scan import cpp
from visq.quant.codebook import power
from visq.quant.codec import codec_of
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.scan import ScanPlan
from visq.quant.site import SiteQuantizer

ISAS = op_isas()


class Case:
    """A scan with every operand quantized, its plan, and its inputs."""

    def __init__(
        self, bits: int = 8, batch: int = 2, length: int = 9, channels: int = 20, states: int = 5, seed: int = 0,
        table: bool = False, asymmetric: bool = False, jump: float = 1.0, divisors: bool = False, fused: bool = False,
        ladder: bool = False,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.A = -torch.exp(torch.randn(channels, states, generator=g))
        self.ladder = ladder
        if ladder:
            self.A = self.A[:, :1] * torch.arange(1, states + 1)
            fused = True
        high = 2 ** (bits - 1) - 1
        delta_spec = Spec(bits=bits, signed=False, granularity=Granularity(kind="channel"))
        scale = torch.rand(channels, generator=g) * 0.5 / (2 * high) + 1e-3
        self.delta_quantizer = Quantizer(delta_spec, scale, axis=-1)
        # Zero points across the whole range make C's integers need more than a byte.
        zero = torch.randint(0, 2 * high + 2, (length,), generator=g).float() if asymmetric else None
        C_spec = Spec(bits=bits, symmetric=not asymmetric, granularity="token" if asymmetric else "tensor")
        C_scale = torch.full((length if asymmetric else 1,), 3.0 / high)
        self.C_quantizer = Quantizer(C_spec, C_scale, zero, axis=-2 if asymmetric else None)
        codebook = Named(name="power") if table else Named(name="uniform")
        abar_table = 1 - power(bits, False, 0.5).flip(0) if table else None
        abar_scale = torch.ones(1) if table else torch.tensor([1 / (2 * high + 1)])
        self.abar = Quantizer(Spec(bits=bits, signed=False, codebook=codebook), abar_scale, table=abar_table)
        bbar_table = power(bits, True, 0.5) if table else None
        bbar_scale = torch.tensor([1.0]) if table else torch.tensor([1.0 / high])
        # Each channel's divisor is the largest delta of the channel (visq.quant.discretized.BbarByChannel).
        smooth = scale * (2 * high + 1) if divisors else None
        bbar_scale = bbar_scale * 4 if divisors else bbar_scale
        self.bbar = Quantizer(Spec(bits=bits, codebook=codebook), bbar_scale, table=bbar_table, smooth=smooth)
        B_zero = torch.randint(0, 2 * high + 2, (length,), generator=g).float() if asymmetric else None
        B_spec = Spec(bits=bits, symmetric=not asymmetric, granularity="token")
        B_scale = (torch.rand(length, generator=g) + 0.5) * 3.0 / high
        self.B_quantizer = Quantizer(B_spec, B_scale, B_zero, axis=-2) if fused else None
        step = torch.linspace(0.05, 0.08, length) * 127 / high
        step[length // 2 :] /= jump
        state_spec = Spec(bits=bits, granularity=Granularity(kind="step"))
        channel = torch.rand(channels, generator=g) + 0.5
        self.h = StateQuantizer(state_spec, step, channel, torch.ones(states), read_quantized=not fused)
        self.u = torch.randn(batch, length, channels, generator=g)
        self.delta = self.delta_quantizer(torch.rand(batch, length, channels, generator=g))
        self.B = torch.randn(batch, length, states, generator=g)
        if self.B_quantizer is not None:
            self.B, self.abar, self.bbar = self.B_quantizer(self.B), None, None
        self.C = self.C_quantizer(torch.randn(batch, length, states, generator=g))
        self.length = length

    def parts(self) -> tuple[SiteQuantizer | None, ...]:
        return self.delta_quantizer, self.B_quantizer, self.C_quantizer, self.abar, self.bbar, self.h

    def plan(self) -> IntegerScan:
        found = ScanPlan().get(self.length, self.A, self.parts(), self.ladder)
        form = LadderScan if self.ladder else FusedScan if self.B_quantizer is not None else FixedScan
        assert type(found) is form
        return found

    def run(self, name: str) -> np.ndarray:
        integers = self.C_quantizer.integers(self.C)
        function = backends.implementation("fixed_scan", name)
        return function(self.u, self.delta, self.B, integers, self.plan()).numpy()

    def ideal(self) -> np.ndarray:
        quantizers = {"abar": self.abar, "bbar": self.bbar, "state": self.h}
        arguments = {name: quantizer.scan_argument() for name, quantizer in quantizers.items() if quantizer is not None}
        return ops.quantized_scan(self.u, self.delta, self.A, self.B, self.C, **arguments).numpy()


needs_extension = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_kernel_has_the_bits_of_the_definition(isa: str, data: st.DataObject) -> None:
    case = Case(
        bits=data.draw(st.sampled_from([2, 3, 4, 6, 8])),
        batch=data.draw(st.integers(1, 3)),
        length=data.draw(st.sampled_from([1, 2, 7, 17])),
        channels=data.draw(st.sampled_from([1, 3, 16, 17, 40])),
        states=data.draw(st.sampled_from([1, 2, 3, 5, 8, 11, 16, 24])),
        seed=data.draw(st.integers(0, 1000)),
        table=data.draw(st.booleans()),
        asymmetric=data.draw(st.booleans()),
        jump=data.draw(st.sampled_from([0.2, 1.0, 1.9, 3.0, 100.0])),
        divisors=data.draw(st.booleans()),
        fused=data.draw(st.booleans()),
        ladder=data.draw(st.booleans()),
    )
    with _native.use_isa(isa):
        assert np.array_equal(case.run("cpp"), case.run("naive"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "form",
    [{"ladder": True}, {"fused": True}, {}, {"table": True}, {"divisors": True}, {"table": True, "divisors": True}],
)
def test_it_is_as_good_as_the_ideal_quantized_scan(bits: int, form: dict[str, bool]) -> None:
    """Fixed point increases the quantized scan's error against FP32 by less than a tenth."""
    case = Case(bits=bits, batch=8, length=40, channels=32, states=8, **form)
    exact = ops.selective_scan(case.u, case.delta, case.A, case.B, case.C).numpy()
    ideal, fixed = (float(np.square(y - exact).mean()) for y in (case.ideal(), case.run("naive")))
    assert fixed < 1.1 * ideal + 1e-6


@needs_extension
def test_threads_and_batches_do_not_matter() -> None:
    case = Case(batch=5)
    expected, threads = case.run("cpp"), torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            assert np.array_equal(case.run("cpp"), expected)
    finally:
        torch.set_num_threads(threads)


def test_the_plan_follows_its_quantizers() -> None:
    case, plan = Case(), ScanPlan()
    parts = case.parts()
    first = plan.get(case.length, case.A, parts)
    assert plan.get(case.length, case.A.clone(), parts) is first
    assert plan.get(case.length, 2 * case.A, parts) is not first
    second = plan.get(case.length, case.A, parts)
    with torch.no_grad():
        case.h.step.mul_(2)
    assert plan.get(case.length, case.A, parts) is not second
    assert plan.get(case.length, case.A, (*parts[:2], None, *parts[3:])) is None


@needs_extension
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_packed_kernels_go_with_their_parameters(asymmetric: bool, fused: bool) -> None:
    gc.collect()  # frees the kernels of other tests
    before = len(cpp._KERNELS)
    case = Case(asymmetric=asymmetric, fused=fused)
    scan = case.plan()
    ops.fixed_scan(case.u, case.delta, case.B, case.C_quantizer.integers(case.C), scan)
    assert len(cpp._KERNELS) == before + 1  # the kernel ran, not the definition
    del scan
    gc.collect()
    assert len(cpp._KERNELS) == before


def test_scales_that_float32_cannot_invert_are_refused() -> None:
    """A constructor refuses such a scale. If a scale changes later, its user refuses it."""
    case = Case(divisors=True)
    assert case.bbar.smooth is not None
    case.bbar.smooth.fill_(1e-38)
    with pytest.raises(VisqError, match="its scale leaves the range of float32"):
        ScanPlan().get(case.length, case.A, case.parts())


def test_shapes_are_checked() -> None:
    case = Case()
    with pytest.raises(VisqError, match=r"B must be \[B, L, N\]"):
        ops.fixed_scan(case.u, case.delta, case.B[:, 1:], case.C, case.plan())


@pytest.mark.parametrize("bits, share", [(4, 0.8), (8, 0.2)])
def test_fusing_leaves_less_error(bits: int, share: float) -> None:
    """A fused scan rounds neither Abar, Bbar nor the sums of y. Only the state's rounding remains."""
    errors = []
    for fused in (False, True):
        case = Case(bits=bits, batch=8, length=40, channels=32, states=8, fused=fused)
        exact = ops.selective_scan(case.u, case.delta, case.A, case.B, case.C).numpy()
        errors.append(float(np.square(case.run("naive") - exact).mean()))
    assert errors[1] < share * errors[0]


def unfused(**changes: object) -> str:
    """Returns the reason why a fused scan with `changes` to its quantizers has no fixed-point form."""
    case = Case(fused=True)
    makers = (*(make_codec,) * 3, None, None, make_state_codec)
    forms = [None if part is None else codec_of(part, make) for part, make in zip(case.parts(), makers, strict=True)]
    names = ("delta", "B", "C", "abar", "bbar", "h")
    for name, values in changes.items():
        forms[names.index(name)] = replace(forms[names.index(name)], **values)
    form = integer_form(case.length, case.A.numpy(), ScanCodecs(*forms))
    assert isinstance(form, str)
    return form


def test_what_cannot_be_fused() -> None:
    ones, table = np.ones(5, np.float32), np.arange(4, dtype=np.float32)
    assert unfused(h={"read_quantized": True}) == "y reads the state after it is rounded"
    assert unfused(h={"state": 2 * ones}) == "the state has a scale per state"
    assert unfused(h={"low": 0, "high": 255}) == "the state has unsigned codes"
    assert unfused(h={"channel": np.full(20, 1e-39, np.float32)}).endswith("too small for float32")
    assert unfused(B={"table": table}) == "B is not uniform with one scale per token"
    assert unfused(C={"smooth": 2 * ones}) == "C is not uniform with one scale per token"
    assert unfused(delta={"step_channel": np.full(20, 1e6, np.float32)}) == "delta * A spans too wide a range"
