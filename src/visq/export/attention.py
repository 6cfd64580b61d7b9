"""Self-attention in ONNX: two products of codes with a softmax between them."""

from __future__ import annotations

from visq.export.codes import Coded, encode
from visq.export.graph import Graph
from visq.integer.attention import FloatAttention, IntegerAttention
from visq.integer.codecs import Codec
from visq.integer.operations import Attention


def attention(
    graph: Graph, form: IntegerAttention | FloatAttention, source: Attention, inputs: tuple[str, str, str]
) -> str:
    """Returns x [B, L, C] of `inputs` q, k, v [B, L, C]: codes less their zero points, or values in the float form.

    Sums of codes are whole numbers that float32 holds, so they are the engine's.
    """
    q, k, v = inputs
    scores = graph.node("MatMul", _by_head(graph, q, form.heads), _by_head(graph, k, form.heads, (0, 2, 3, 1)))
    if isinstance(form, IntegerAttention):
        scores = graph.scaled(graph.scaled(scores, form.q_scale[:, None]), form.k_scale)
    else:
        scores = graph.mul(scores, graph.constant(form.scale))
    if form.scores is not None:
        rounded = _rounded(graph, source.scores, form.scores, scores)
        scores = _by_head(graph, rounded.decoded(graph), form.heads)
    probs = graph.node("Softmax", scores, axis=-1)
    if form.probs is not None:
        rounded = _rounded(graph, source.probs, form.probs, probs)
        integer = isinstance(form, IntegerAttention)
        probs = _by_head(graph, rounded.integers if integer else rounded.decoded(graph), form.heads)
    x = _by_query(graph, graph.node("MatMul", probs, _by_head(graph, v, form.heads)))
    if isinstance(form, IntegerAttention):
        x = graph.scaled(graph.scaled(x, form.v_scale), form.p_scale[:, None])
    return x


def _rounded(graph: Graph, site: str | None, codec: Codec, x: str) -> Coded:
    """Rounds heads [B, heads, L, L] as the tokens [B, L, heads L] that the site sees."""
    assert site is not None
    return encode(graph, site, codec, _by_query(graph, x), False)


def _by_head(graph: Graph, x: str, heads: int, order: tuple[int, ...] = (0, 2, 1, 3)) -> str:
    """Reorders tokens [B, L, heads W] to heads [B, heads, L, W], or to another order of [B, L, heads, W]."""
    return graph.transpose(graph.reshape(x, (0, 0, heads, -1)), order)


def _by_query(graph: Graph, x: str) -> str:
    """Reorders heads [B, heads, L, W] to tokens [B, L, heads W]."""
    return graph.reshape(graph.transpose(x, (0, 2, 1, 3)), (0, 0, -1))
