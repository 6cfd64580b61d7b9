"""The selective scan as an ONNX `Scan` over chunks of steps, and its form in float32.

States lie before channels, [B, N, C], so that the innermost axis is long; a chunk's exponentials are one node, and its
steps are unrolled in the body. Inside a loop each node costs more than its arithmetic, so fewer iterations are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visq.export.codes import nearest
from visq.export.graph import Graph, body
from visq.integer.codecs import FactorCodec
from visq.integer.float_scan import FloatScan

#: Steps of a chunk, by runtime: what was the fastest there.
CHUNKS = {"onnxruntime": 8, "openvino": 33}
CHUNK = CHUNKS["onnxruntime"]


@dataclass(frozen=True)
class Sequences:
    """Holds what the steps of a scan read.

    Attributes:
        channels, states: values [B, L, C] and [B, L, N] by name, in the order of the rows.
        steps: numbers [L] by name, in scan order.
        length: L.
        reverse: whether the scan runs from the last row to the first.
    """

    channels: dict[str, str]
    states: dict[str, str]
    steps: dict[str, np.ndarray]
    length: int
    reverse: bool


class Chunk:
    """Builds the body of a scan over a chunk of steps; values are [steps, B, N, C], or broadcast against that."""

    def __init__(self, first: int, size: int) -> None:
        self.graph, self.size = Graph(), size
        self.graph._count = first  # names inside and outside must differ
        self.values: dict[str, str] = {}
        self._same: set[str] = set()

    def __getitem__(self, name: str) -> str:
        """Returns a value of `Sequences` by its name."""
        return self.values[name]

    def constant(self, value: np.ndarray | np.float32 | float) -> str:
        """Returns a constant that is the same in every step: a number, [C], or [N, C]."""
        name = self.graph.constant(np.asarray(value, np.float32))
        self._same.add(name)
        return name

    def at(self, x: str, step: int) -> str:
        """Returns the value of one step, [B, N, C] or what broadcasts against that."""
        return x if x in self._same else str(self.graph.node("Gather", x, self.graph.constant(step, np.int64)))

    def stacked(self, steps: list[str]) -> str:
        """Returns the values of all steps as one."""
        axis = self.graph.constant([0], np.int64)
        return str(self.graph.node("Concat", *(self.graph.node("Unsqueeze", x, axis) for x in steps), axis=0))

    def read(self, states: list[str], offset: str | None = None) -> str:
        """Returns y [steps, B, C], the sum over N of each step's state, `offset` added, times C."""
        stacked = self.stacked(states)
        if offset is not None:
            stacked = self.graph.add(stacked, offset)
        weighted, axis = self.graph.mul(stacked, self["C"]), self.graph.constant([2], np.int64)
        return str(self.graph.node("ReduceSum", weighted, axis, keepdims=0))


#: (a chunk, the state [B, N, C] before it) -> the state after it, and y [steps, B, C].
Write = Callable[[Chunk, str], tuple[str, str]]


def chunked_scan(graph: Graph, shape: tuple[int, int], read: Sequences, chunk: int, write: Write) -> str:
    """Returns y [B, L, C] in scan order; `shape` [C, N] is the state's, and `write` computes a chunk."""
    rest = -read.length % chunk
    chunks = (read.length + rest) // chunk
    batch = graph.node("Shape", next(iter(read.channels.values())), start=0, end=1)

    def chunked(x: str, width: int) -> str:
        """[B, L, width] -> [chunks, steps, B, width], in scan order, zeros behind the last step."""
        x = graph.flip(x, 1) if read.reverse else x
        if rest:  # not Pad: OpenVINO 2026.4 fails when it moves one past a dequantization
            size = graph.node("Concat", batch, graph.constant([rest, width], np.int64), axis=0)
            x = graph.node("Concat", x, graph.node("Expand", graph.constant(np.zeros((1, 1, 1))), size), axis=1)
        x = graph.transpose(x, (1, 0, 2))
        size = graph.node("Shape", x, start=1)
        return str(
            graph.node("Reshape", x, graph.node("Concat", graph.constant([chunks, chunk], np.int64), size, axis=0))
        )

    inside = Chunk(graph._count + 100_000, chunk)
    sequences, declared = [], [("h", [None] * 3)]
    for widths, axis, values in ((shape[0], 2, read.channels), (shape[1], 3, read.states)):
        for name, x in values.items():
            sequences.append(chunked(x, widths))
            declared.append((name, [None] * 3))
            inside.values[name] = inside.graph.node("Unsqueeze", name, inside.graph.constant([axis], np.int64))
    for name, steps in read.steps.items():
        if (steps == steps[0]).all():
            inside.values[name] = inside.constant(steps[0])
            continue
        padded = np.pad(steps, (0, rest), mode="edge").astype(np.float32)
        sequences.append(graph.constant(padded.reshape(chunks, chunk, 1, 1, 1)))
        declared.append((name, [None] * 4))
        inside.values[name] = name

    state, y = write(inside, inside.graph.node("Identity", "h"))
    loop = body(inside.graph, "scan_chunk", declared, (inside.graph.node("Identity", state), y))
    size = graph.node("Concat", batch, graph.constant(shape[::-1], np.int64), axis=0)
    zeros = graph.node("ConstantOfShape", size)
    _, ys = graph.node("Scan", zeros, *sequences, outputs=2, body=loop, num_scan_inputs=len(sequences))
    size = graph.node("Shape", ys, start=2)
    flat = graph.node("Reshape", ys, graph.node("Concat", graph.constant([chunks * chunk], np.int64), size, axis=0))
    return graph.transpose(graph.slice(flat, 0, 0, read.length), (1, 0, 2))


def float_scan(
    graph: Graph, scan: FloatScan, inputs: tuple[str, str, str, str], length: int, reverse: bool, chunk: int = CHUNK
) -> str:
    """Returns y [B, L, C]. `inputs` are u, delta [B, L, C] and B, C [B, L, N], decoded."""
    u, delta, B, C = inputs
    w, h = delta, scan.h
    if scan.bbar is not None:
        w, u = graph.scaled(delta, np.float32(1) / scan.bbar.channel), graph.scaled(u, scan.bbar.channel)
    steps = {} if h is None else {"step": np.broadcast_to(h.step, length)}
    read = Sequences({"u": u, "delta": delta, "w": w}, {"B": B, "C": C}, steps, length, reverse)

    def write(chunk: Chunk, state: str) -> tuple[str, str]:
        inner = chunk.graph
        decay = _rounded(inner, inner.node("Exp", inner.mul(chunk["delta"], chunk.constant(scan.A.T))), scan.abar)
        drive = inner.mul(_rounded(inner, inner.mul(chunk["w"], chunk["B"]), scan.bbar), chunk["u"])
        kept = []
        for step in range(chunk.size):
            exact = inner.add(inner.mul(chunk.at(decay, step), state), chunk.at(drive, step))
            state = exact
            if h is not None:
                scale = inner.mul(chunk.constant((h.channel[:, None] * h.state).T), chunk.at(chunk["step"], step))
                code = inner.node("Round", inner.node("Div", exact, scale))
                limits = (inner.constant(np.float32(end)) for end in (h.low, h.high))
                state = inner.mul(inner.node("Clip", code, *limits), scale)
            kept.append(exact if h is not None and not h.read_quantized else state)
        return state, chunk.read(kept)

    y = chunked_scan(graph, scan.A.shape, read, chunk, write)
    return graph.flip(y, 1) if reverse else y


def _rounded(graph: Graph, x: str, codec: FactorCodec | None) -> str:
    """Returns Abar or Bbar as its codec rounds it."""
    if codec is None:
        return x
    if codec.table is not None:
        return nearest(graph, x, codec.table)
    step = graph.constant(np.float32(codec.step))
    code = graph.node("Round", graph.node("Div", x, step))
    limits = (graph.constant(np.float32(end)) for end in (codec.low, codec.high))
    return graph.mul(graph.node("Clip", code, *limits), step)
