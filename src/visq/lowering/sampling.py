"""Lowers samples of maps, and gates of channels."""

from __future__ import annotations

from typing import Any

from visq.integer import operations as ir
from visq.lowering.context import Lowering
from visq.lowering.layers import lowers
from visq.lowering.values import LoweringError, Map, Value
from visq.models.layers import GateChannels
from visq.models.skipping import MergeSamples, SampleMap


@lowers(SampleMap)
def sample_map(lowering: Lowering, module: SampleMap, name: str, x: Map) -> Map:
    if not isinstance(x, Map):
        raise LoweringError(f"{name}: a sample is taken of a map")
    source = ir.Sample(
        input=lowering.builder.tensor(x.value),
        height=x.height,
        width=x.width,
        row=module.row,
        column=module.column,
        by_columns=module.by_columns,
    )
    height, width = source.size
    return Map(lowering.builder.operation(name, source, height * width, x.value.width), height, width)


@lowers(MergeSamples)
def merge_samples(lowering: Lowering, module: MergeSamples, name: str, *arguments: Any) -> Value:
    """Lowers the merge of four sequences. Raises LoweringError where one of them is flipped."""
    *parts, height, width = arguments
    if any(part.reverse for part in parts):
        raise LoweringError(f"{name}: a merge of flipped sequences")
    a, b, c, d = (lowering.builder.tensor(part) for part in parts)
    source = ir.MergeSamples(inputs=(a, b, c, d), height=height, width=width)
    return lowering.builder.operation(name, source, height * width, parts[0].width)


@lowers(GateChannels)
def gate_channels(lowering: Lowering, module: GateChannels, name: str, x: Value, gate: Value) -> Value:
    """Returns x times the only row of `gate`. Raises LoweringError where the two do not fit.

    The gate comes from all rows of x, so that the product belongs to an operation after the gate's.
    """
    if x.reverse or gate.rows != 1 or gate.width != x.width:
        raise LoweringError(f"{name}: a gate is one row with a factor for each channel")
    row = Value("select", x.rows, x.width, (gate,), {"row": 0})
    home = lowering.builder.rows(name, x.rows)
    return Value("binary", x.rows, x.width, (x, row), {"function": "mul", "home": home})
