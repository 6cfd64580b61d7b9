"""Attention, appended channels and turns on the CUDA engine. `test_same_programs` runs more shapes and kinds."""

from __future__ import annotations

import pytest

from tests.runtime.cuda.agreement import check
from tests.runtime.programs import Maker, weight
from tests.runtime.test_attention import attention
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.integer.attention import FloatAttention, IntegerAttention
from visq.runtime.cuda.engine import CudaEngine

ASYMMETRIC = ("token asymmetric", "token one zero", "channel asymmetric", "channel asymmetric", "token asymmetric")


@pytest.mark.parametrize(
    ("kinds", "shape", "form"),
    [
        (("tensor", "tensor", "tensor", None, "unsigned"), (3, 2, 5, 2), IntegerAttention),
        (ASYMMETRIC, (18, 1, 9, 1), IntegerAttention),
        (("table", None, "token", "table", "tensor"), (3, 2, 5, 1), FloatAttention),
    ],
    ids=range(3),
)
def test_attention(kinds: tuple[str | None, ...], shape: tuple[int, int, int, int], form: type) -> None:
    maker, output, _ = attention(kinds, *shape)
    oracle = check(maker, output, batch=2 if shape[3] > 1 else 1)
    assert isinstance(oracle.forms[-1], form)


def test_zero_points_of_channels_are_added_up() -> None:
    """One scale and a zero point for each channel of q and k, and for each key of the probabilities."""
    kinds = ("channel asymmetric", "channel asymmetric", "tensor", None, "channel")
    maker, output, names = attention(kinds, 5, 2, 3, 1)
    source = maker.operations[-1]["source"]
    sites = [str(maker.tensors[name].site) for name in names[:2]] + [source.probs]
    for site in sites:
        codec = maker.bundle.sites[site]
        step = codec.step_channel[:1]
        zero = maker.rng.integers(-20, 20, codec.step_channel.size).astype("float32")
        changes = {"scale": step, "step_channel": step, "inverse_channel": 1 / step, "zero": zero}
        maker.bundle.sites[site] = codec.__class__(**{**vars(codec), **changes})
    assert isinstance(check(maker, output).forms[-1], IntegerAttention)


def test_what_follows_attention() -> None:
    """Codes are stored by the kernel of attention itself; a norm needs its row in memory; others read both."""
    maker = Maker(3)
    x = maker.random(9, 6, "tensor")
    site = maker.quantizer("unsigned", 9, 18, top=0.6)
    maker.operation(ir.Attention(q=x, k=x, v=x, heads=2, length=9, probs=site), 9, 6)
    codes = maker.store(maker.step(ir.Unary(op="gelu_tanh", dst=1, src=0), 6), "tensor")
    maker.step(ir.RmsNorm(dst=2, src=0, weight=ir.Constant(name=maker.parameter(6)), eps=1e-5), 6)
    normed = maker.store(2)
    maker.operation(ir.Linear(input=codes, weight=maker.site(weight(6, (6,), maker.rng))), 9, 6)
    maker.step(ir.Load(dst=1, tensor=normed), 6)
    output = maker.store(maker.step(ir.Binary(op="add", dst=2, a=0, b=1), 6))
    check(maker, output)
    kinds = [launch.kind for launch in CudaEngine(maker.program(output), maker.bundle).plan.launches]
    assert kinds[-2:] == ["attention", "attention body+linear"]


def test_heads_that_are_too_wide_are_refused_by_name() -> None:
    maker, output, _ = attention((None,) * 5, 2, 1, 257, 1)
    message = r"^operation op\d+: the engine on CUDA has no attention with more than 256 channels a head; .*'int'"
    with pytest.raises(VisqError, match=message):
        CudaEngine(maker.program(output), maker.bundle)


def test_appended_and_turned_channels() -> None:
    """Of tensors and computed values, of a row that was appended, in slices, and a turn of what was appended."""
    rows, widths = 3, (5, 31)
    maker = Maker(4)
    a, b = (maker.random(rows, width, kind) for width, kind in zip(widths, (None, "token asymmetric"), strict=True))
    maker.operation(ir.Concat(parts=((a, 0, rows),)), rows, widths[0])
    loaded = maker.step(ir.Load(dst=1, tensor=b), widths[1])
    rectified = maker.step(ir.Unary(op="relu", dst=2, src=loaded), widths[1])
    both = maker.step(ir.Append(dst=3, a=0, b=rectified), sum(widths))
    maker.store(both, "channel asymmetric")
    part = maker.step(ir.Slice(dst=4, src=both, offset=widths[0], width=widths[1]), widths[1])
    maker.store(maker.step(ir.Append(dst=5, a=part, b=both), widths[1] + sum(widths)))
    maker.store(maker.step(ir.Turn(dst=6, src=both), sum(widths)))
    odd = maker.step(ir.Slice(dst=7, src=6, offset=3, width=7), 7)
    maker.store(odd, "tensor")
    maker.store(maker.step(ir.Append(dst=8, a=loaded, b=odd), widths[1] + 7))
    check(maker, maker.store(maker.step(ir.Append(dst=9, a=loaded, b=loaded), 2 * widths[1])), batch=2)
