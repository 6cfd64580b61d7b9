"""Codes in ONNX: QuantizeLinear and DequantizeLinear where a codec is uniform, comparisons where it is a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visq.errors import VisqError
from visq.export.graph import Graph
from visq.integer.arithmetic import Floats
from visq.integer.codecs import Codec

#: A table is searched by comparing with every threshold; more entries than this would take too long.
LARGEST_TABLE = 16

#: ONNX's numbers for types.
FLOAT, INT8 = 1, 3


@dataclass(frozen=True)
class Coded:
    """A tensor [B, rows, width] that was rounded.

    Attributes:
        integers: codes less their zero point, as float32.
        steps: what turns integers into values: constants that broadcast against [rows, width].
        values: the values, where one node makes them of the codes; None otherwise.
        is_bytes: whether `integers` and `values` are DequantizeLinear of bytes.
    """

    integers: str
    steps: tuple[Floats, ...]
    values: str | None = None
    is_bytes: bool = False

    def decoded(self, graph: Graph) -> str:
        """Returns the values the codes stand for."""
        if self.values is not None:
            return self.values
        x = self.integers
        for step in self.steps:
            x = graph.scaled(x, step)
        return x


def encode(graph: Graph, site: str, codec: Codec, x: str, reverse: bool, sequences: int = 1) -> Coded:
    """Rounds x [B, rows, width] with a codec; `reverse` counts its token scales from the last row.

    The rows are `sequences` of the same length, and the token scales are those of each.

    Raises:
        VisqError: the codec has a table with too many entries.
    """

    def by_token(vector: Floats) -> Floats:
        return np.tile(vector[:: -1 if reverse else 1], sequences)[:, None]

    token = None if codec.step_token is None else by_token(codec.step_token)
    steps = (codec.step_channel,) if token is None else (codec.step_channel, token)
    if codec.table is not None:
        return _by_table(graph, site, codec, x, steps)
    one_scale = token is None and codec.step_channel.size == 1 and codec.zero.size == 1
    if not one_scale:
        for step in steps:
            x = graph.scaled(x, np.float32(1) / step)
    narrow = (codec.low + codec.offset, codec.high + codec.offset) != (0, 255)
    # OpenVINO 2026.4 gives other codes where a scale per token meets a Clip and a QuantizeLinear.
    if codec.zero.size > 1 or (narrow and token is not None):
        zeros = by_token(codec.zero) if codec.zero_by_token else codec.zero
        low, high = graph.constant(codec.low - zeros), graph.constant(codec.high - zeros)
        rounded = graph.node("Round", x)
        return Coded(graph.node("Min", graph.node("Max", rounded, low), high), steps)
    zero = float(codec.zero.reshape(-1)[0])
    unit = float(codec.step_channel[0]) if one_scale else 1.0
    if narrow:
        ends = (graph.constant(np.float32((end - zero) * unit)) for end in (codec.low, codec.high))
        x = graph.node("Clip", x, *ends)
    # Bytes from 0, as the engine has them: onnxruntime 1.31 fails on its own rewriting of int8 activations.
    scale, zero_point = graph.constant(np.float32(unit)), graph.constant(zero + codec.offset, np.uint8)
    codes = graph.node("QuantizeLinear", x, scale, zero_point)
    if not one_scale:
        return Coded(graph.node("DequantizeLinear", codes, scale, zero_point), steps, is_bytes=True)
    values = graph.node("DequantizeLinear", codes, scale, zero_point)
    integers = graph.node("DequantizeLinear", codes, graph.constant(np.float32(1)), zero_point)
    return Coded(integers, steps, values, is_bytes=True)


def _by_table(graph: Graph, site: str, codec: Codec, x: str, steps: tuple[Floats, ...]) -> Coded:
    assert codec.table is not None and codec.thresholds is not None
    if len(codec.table) > LARGEST_TABLE:
        raise VisqError(
            f"{site}: a table of {len(codec.table)} values on an activation has no ONNX form; "
            f"export a recipe with uniform activations, or with at most {LARGEST_TABLE} values"
        )
    for step in steps:
        x = graph.scaled(x, np.float32(1) / step)
    return Coded(nearest(graph, x, codec.table), steps)


def nearest(graph: Graph, x: str, table: Floats) -> str:
    """Returns the nearest entry of an ascending table for each element of x, ties to the lower one."""
    thresholds = ((table[1:] + table[:-1]) / np.float32(2)).astype(np.float32)
    above = graph.node(
        "Greater", graph.node("Unsqueeze", x, graph.constant([-1], np.int64)), graph.constant(thresholds)
    )
    count = graph.node("ReduceSum", graph.node("Cast", above, to=7), graph.constant([-1], np.int64), keepdims=0)
    return str(graph.node("Gather", graph.constant(table), count))


def weight_values(graph: Graph, codes: np.ndarray, scale: Floats, axis: int) -> str:
    """Returns weights as values: codes of 8 or 4 bits, dequantized with a scale for each index of an axis."""
    stored = _stored(graph, codes)
    if stored.startswith("int4"):  # onnxruntime multiplies bytes, and not codes of 4 bits
        stored = graph.node("Cast", stored, to=INT8)
    return str(graph.node("DequantizeLinear", stored, graph.constant(scale), axis=axis))


def weight_codes(graph: Graph, codes: np.ndarray) -> str:
    """Returns weights as whole numbers, for a product whose other operand is no DequantizeLinear.

    Beside dequantized weights, onnxruntime and OpenVINO would round that operand to 8 bits by themselves.
    """
    return str(graph.node("Cast", _stored(graph, codes), to=FLOAT))


def _stored(graph: Graph, codes: np.ndarray) -> str:
    small = codes.size and codes.min() >= -8 and codes.max() <= 7
    return graph.int4(codes) if small else graph.constant(codes, np.int8)
