"""The selective scan as an ONNX `Scan` over chunks of steps.

States lie before channels, [B, N, C], so that the innermost axis is long; a chunk's exponentials are one node, and its
steps are unrolled in the body. Inside a loop each node costs more than its arithmetic, so fewer iterations are faster.
"""

from __future__ import annotations

import numpy as np

from visq.export.codes import nearest
from visq.export.graph import Graph, body
from visq.integer.arithmetic import Floats
from visq.integer.codecs import FactorCodec, StateCodec

#: Steps of a chunk, by runtime: what was the fastest there.
CHUNKS = {"onnxruntime": 8, "openvino": 33}
CHUNK = CHUNKS["onnxruntime"]


def selective_scan(
    graph: Graph,
    A: Floats,
    abar: FactorCodec | None,
    bbar: FactorCodec | None,
    h: StateCodec | None,
    inputs: tuple[str, str, str, str],
    length: int,
    reverse: bool,
    chunk: int = CHUNK,
) -> str:
    """Returns y [B, L, C]. `inputs` are u, delta [B, L, C] and B, C [B, L, N], decoded. A [C, N]."""
    u, delta, B, C = inputs
    w = delta
    if bbar is not None:
        w, u = graph.scaled(delta, np.float32(1) / bbar.channel), graph.scaled(u, bbar.channel)
    rest = -length % chunk
    chunks = (length + rest) // chunk

    def chunked(x: str, width: int) -> str:
        """[B, L, width] -> [chunks, steps, B, width], in scan order, zeros behind the last step."""
        x = graph.flip(x, 1) if reverse else x
        if rest:  # not Pad: OpenVINO 2026.4 fails when it moves one past a dequantization
            shape = graph.node("Concat", batch, graph.constant([rest, width], np.int64), axis=0)
            x = graph.node("Concat", x, graph.node("Expand", graph.constant(np.zeros((1, 1, 1))), shape), axis=1)
        x = graph.transpose(x, (1, 0, 2))
        shape = graph.node("Shape", x, start=1)
        return str(
            graph.node("Reshape", x, graph.node("Concat", graph.constant([chunks, chunk], np.int64), shape, axis=0))
        )

    names = ["u", "delta", "w", "B", "C"]
    channels, states = A.shape
    batch = graph.node("Shape", inputs[0], start=0, end=1)
    widths = (channels, channels, channels, states, states)
    sequences = [chunked(x, width) for x, width in zip((u, delta, w, B, C), widths, strict=True)]
    if h is not None:
        steps = np.pad(np.broadcast_to(h.step, length), (0, rest), constant_values=1)
        sequences.append(graph.constant(steps.reshape(chunks, chunk)))
        names.append("step")

    inner = Graph()
    inner._count = graph._count + 100_000  # names inside and outside must differ
    decay = inner.node("Exp", inner.mul(inner.node("Unsqueeze", "delta", _axes(inner, 2)), inner.constant(A.T)))
    decay = _rounded(inner, decay, abar)
    drive = inner.mul(inner.node("Unsqueeze", "w", _axes(inner, 2)), inner.node("Unsqueeze", "B", _axes(inner, 3)))
    drive = inner.mul(_rounded(inner, drive, bbar), inner.node("Unsqueeze", "u", _axes(inner, 2)))
    state = inner.node("Identity", "h")
    read = []
    for step in range(chunk):
        exact = inner.add(inner.mul(_at(inner, decay, step), state), _at(inner, drive, step))
        state = exact
        if h is not None:
            scale = inner.constant((h.channel[:, None] * h.state).T)
            scale = inner.mul(scale, inner.node("Gather", "step", inner.constant(step, np.int64)))
            code = inner.node("Round", inner.node("Div", exact, scale))
            limits = (inner.constant(np.float32(end)) for end in (h.low, h.high))
            state = inner.mul(inner.node("Clip", code, *limits), scale)
        read.append(exact if h is not None and not h.read_quantized else state)
    after = inner.node("Identity", state)
    stacked = inner.node("Concat", *(inner.node("Unsqueeze", x, _axes(inner, 0)) for x in read), axis=0)
    y = inner.node(
        "ReduceSum", inner.mul(stacked, inner.node("Unsqueeze", "C", _axes(inner, 3))), _axes(inner, 2), keepdims=0
    )

    ranks = {"step": 1}
    declared = [("h", [None] * 3), *((name, [None] * ranks.get(name, 3)) for name in names)]
    loop = body(inner, "scan_chunk", declared, (after, y))
    shape = graph.node("Concat", batch, graph.constant(A.T.shape, np.int64), axis=0)
    zeros = graph.node("ConstantOfShape", shape)
    _, ys = graph.node("Scan", zeros, *sequences, outputs=2, body=loop, num_scan_inputs=len(sequences))
    shape = graph.node("Shape", ys, start=2)
    flat = graph.node("Reshape", ys, graph.node("Concat", graph.constant([chunks * chunk], np.int64), shape, axis=0))
    y = graph.transpose(graph.slice(flat, 0, 0, length), (1, 0, 2))
    return graph.flip(y, 1) if reverse else y


def _axes(graph: Graph, axis: int) -> str:
    return graph.constant([axis], np.int64)


def _at(graph: Graph, x: str, step: int) -> str:
    return str(graph.node("Gather", x, graph.constant(step, np.int64)))


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
