"""Self-attention in integers: two products of activations, and a softmax by the engine's 2^x between them.

    s[i,j] = clamp((float(sum_d (q[i,d] - zero)(k[j,d] - zero)) * q_scale[i]) * k_scale[j])     rounded by `scores`
    e[i,j] = 2^((s[i,j] - max_j s[i,j]) log2(e))
    p[i,j] = e[i,j] * (1 / sum_j e[i,j])                                                        rounded by `probs`
    x[i,c] = (float(sum_j (p[i,j] - zero)(v[j,c] - zero)) * v_scale[c]) * p_scale[i]

for each head. Both sums are over codes less their zero points. In float32 they are over values, in the order of d
and j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import LOG2E, Floats, Ints, clamp, exp2, row_sum
from visq.integer.codecs import Codec

#: Scores beyond this count as this, and NaN as the upper bound.
LARGEST_SCORE = 3.0e38


@dataclass(frozen=True)
class IntegerAttention:
    """Attention whose four operands have codes.

    Attributes:
        heads: they share the channels out, in order.
        q_scale, k_scale: [L], of a query and of a key; the softmax's 1 / sqrt(d) is in q_scale.
        v_scale: [C].
        p_scale: [L], of a query's probabilities.
        scores: None where scores are not rounded.
    """

    heads: int
    q_scale: Floats
    k_scale: Floats
    v_scale: Floats
    p_scale: Floats
    scores: Codec | None
    probs: Codec


@dataclass(frozen=True)
class FloatAttention:
    """Attention in float32; `reason` says why. `scale` is 1 / sqrt(d)."""

    heads: int
    scale: np.float32
    scores: Codec | None
    probs: Codec | None
    reason: str


@dataclass(frozen=True)
class AttentionCodecs:
    """The codecs of attention's sites; None where a site has no quantizer."""

    q: Codec | None
    k: Codec | None
    v: Codec | None
    scores: Codec | None
    probs: Codec | None


def attention_form(
    codecs: AttentionCodecs, length: int, width: int, heads: int, scale: float
) -> IntegerAttention | FloatAttention:
    """Returns the form of attention over `length` tokens of `width` channels; `scale` is 1 / sqrt(d)."""
    q, k, v, probs = codecs.q, codecs.k, codecs.v, codecs.probs
    if q is None or k is None or v is None or probs is None:
        missing = next(name for name in ("q", "k", "v", "probs") if getattr(codecs, name) is None)
        return FloatAttention(heads, np.float32(scale), codecs.scores, probs, f"{missing} is not quantized")
    why = _no_integers(q, k, v, probs)
    if width // heads * _reach(q) * _reach(k) >= 2**31 or length * _reach(probs) * _reach(v) >= 2**31:
        why = "its sums do not fit into 32 bits"
    if why is not None:
        return FloatAttention(heads, np.float32(scale), codecs.scores, probs, why)
    factor = np.float32(np.float64(q.step_channel[0]) * np.float64(k.step_channel[0]) * scale)
    return IntegerAttention(
        heads=heads,
        q_scale=_tokens(q, length) * factor,
        k_scale=_tokens(k, length),
        v_scale=np.broadcast_to(v.step_channel * probs.step_channel[0], width).astype(np.float32),
        p_scale=_tokens(probs, length),
        scores=codecs.scores,
        probs=probs,
    )


def _no_integers(q: Codec, k: Codec, v: Codec, probs: Codec) -> str | None:
    """Returns why these codecs have no common factor of a sum, or None."""
    for name, codec in (("q", q), ("k", k), ("v", v), ("probs", probs)):
        if codec.table is not None:
            return f"{name} has a table"
        if name != "v" and (codec.step_channel != codec.step_channel[0]).any():
            return f"{name} has a scale per channel, which its product adds up over"
    return None if v.step_token is None else "v has a scale per token, which its product adds up over"


def _tokens(codec: Codec, length: int) -> Floats:
    """Returns a codec's scale per token [L]; ones where it has none."""
    return np.ones(length, np.float32) if codec.step_token is None else codec.step_token


def _reach(codec: Codec) -> int:
    """Returns a bound of the magnitude of a code less its zero point."""
    return 255 + int(np.abs(codec.zero + np.float32(codec.offset)).max())


def integer_attention(form: IntegerAttention, q: Ints, k: Ints, v: Ints) -> Floats:
    """Returns x [..., L, C] of codes less zero points, q, k, v [..., L, C] int64."""
    q, k, v = (_by_head(x.astype(np.float64), form.heads) for x in (q, k, v))
    # float64 holds these sums exactly, in any order.
    sums = (q @ k.swapaxes(-1, -2)).astype(np.float32)
    scores = sums * form.q_scale[:, None] * form.k_scale
    probabilities = _softmax(form.scores, scores)
    tokens = np.arange(q.shape[-2])
    codes = form.probs.encode(_by_query(probabilities), tokens)
    integers = _by_head(form.probs.integers(codes, tokens).astype(np.float64), form.heads)
    result: Floats = _by_query((integers @ v).astype(np.float32)) * form.v_scale * form.p_scale[:, None]
    return result


def float_attention(form: FloatAttention, q: Floats, k: Floats, v: Floats) -> Floats:
    """Returns x [..., L, C] of q, k, v [..., L, C] float32."""
    q, k, v = (_by_head(x, form.heads) for x in (q, k, v))
    probabilities = _softmax(form.scores, _ordered(q, k.swapaxes(-1, -2)) * form.scale)
    if form.probs is not None:
        tokens, by_query = np.arange(q.shape[-2]), _by_query(probabilities)
        probabilities = _by_head(form.probs.decode(form.probs.encode(by_query, tokens), tokens), form.heads)
    return _by_query(_ordered(probabilities, v))


def _softmax(codec: Codec | None, scores: Floats) -> Floats:
    """Returns probabilities of scores [..., heads, L, L], which are rounded before where they have a codec."""
    scores = clamp(scores, -LARGEST_SCORE, LARGEST_SCORE)
    if codec is not None:
        tokens, by_query = np.arange(scores.shape[-1]), _by_query(scores)
        scores = _by_head(codec.decode(codec.encode(by_query, tokens), tokens), scores.shape[-3])
    with np.errstate(over="ignore"):  # a difference may leave float32; 2^x then is the smallest it gives
        e = exp2((scores - scores.max(-1, keepdims=True)) * LOG2E)
    return e * (np.float32(1) / row_sum(e))


def _ordered(a: Floats, b: Floats) -> Floats:
    """Returns a [..., I, K] times b [..., K, J], added up in the order of K."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    return total


def _by_head(x: np.ndarray, heads: int) -> np.ndarray:
    """Reorders tokens [..., L, heads W] to heads [..., heads, L, W]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def _by_query(x: np.ndarray) -> np.ndarray:
    """Reorders heads [..., heads, L, W] to tokens [..., L, heads W]."""
    x = x.swapaxes(-2, -3)
    return np.ascontiguousarray(x.reshape(*x.shape[:-2], -1))
