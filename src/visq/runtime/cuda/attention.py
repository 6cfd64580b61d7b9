"""Writes the kernel of self-attention: one program takes a tile of queries and one head through all keys.

Scores stay in registers. They are computed three times: for the largest, for the sum of the powers, and for the
probabilities. So no tensor of queries times keys is written. `visq.integer.attention` is the definition.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visq.integer.arithmetic import LANES
from visq.integer.attention import LARGEST_SCORE, FloatAttention, IntegerAttention
from visq.integer.forms import Form
from visq.integer.operations import Attention
from visq.runtime.cuda.bodies import Body, read, unsupported
from visq.runtime.cuda.codecs import SiteCodes, site_codes
from visq.runtime.cuda.text import At, Text, power_of_two

#: Queries of a program.
QUERIES = 16

#: Keys computed at once: as many as a sum has lanes, and as many as a product of bytes takes at least.
SUM_KEYS, PRODUCT_KEYS = LANES, 32

#: Most channels of a head that a program can hold.
MOST_CHANNELS = 256

#: Writes what becomes of the result, given the kernel, its rows and channels, and the result's name.
Store = Callable[[Text, At, str], None]


class AttentionText:
    """The kernel of attention under construction: queries lie along the first axis.

    `i` is a query's number in its sequence, `j` a key's, `d` a channel's in its head and `c` in the row. `has_i`,
    `has_j` and `has_d` say what is inside. Names that end in `t` hold the same along the other axis.
    """

    #: The type of the sums over keys, and how many keys are added at once.
    total, keys = "tl.int32", PRODUCT_KEYS

    def __init__(self, body: Body, form: Any, store: Store) -> None:
        source = body.operation.source
        assert isinstance(source, Attention)
        self.body, self.form, self.store, self.source = body, form, store, source
        self.length, self.width = source.length, body.operation.width
        self.depth = self.width // source.heads
        self.padded = max(power_of_two(self.depth), 32)
        self.text = Text()

    def write(self) -> Text:
        """Returns the whole kernel."""
        text = self.text
        queries = self.begin()
        text.line(f"largest = tl.full([{QUERIES}, 1], float('-inf'), tl.float32)")
        with self.over_keys(SUM_KEYS):
            score = text.let(f"tl.where(has_j, {self.rounded_score(SUM_KEYS)}, float('-inf'))")
            text.line(f"largest = tl.maximum(largest, tl.max({score}, 1)[:, None])")
        text.line(f"lanes = tl.zeros([{QUERIES}, {SUM_KEYS}], tl.float32)")
        with self.over_keys(SUM_KEYS):
            text.line(f"lanes = lanes + {self.power(SUM_KEYS)}")
        text.line("inverse = k.inverse(k.fold(lanes))")
        text.line(f"total = tl.zeros([{QUERIES}, {self.padded}], {self.total})")
        with self.over_keys(self.keys):
            self.add(text.let(f"{self.power(self.keys)} * inverse"))
        self.store(text, queries, self.result(queries))
        return text

    def begin(self) -> At:
        """Writes what comes before the first key, and returns the rows and channels of the queries."""
        text, length = self.text, self.length
        tiles = -(-length // QUERIES)
        text.line(f"sequence = tl.program_id(0) // {tiles}")
        text.line(f"i = (tl.program_id(0) % {tiles} * {QUERIES} + tl.arange(0, {QUERIES}))[:, None]")
        text.line(f"has_i = i < {length}")
        text.line(f"begin = sequence.to(tl.int64) * {length}")
        text.line(f"first = sequence % {self.body.operation.rows // length} * {length}")
        text.line("head = tl.program_id(1)")
        for name, axis in (("", "[None, :]"), ("t", "[:, None]")):
            text.line(f"d{name} = tl.arange(0, {self.padded}){axis}")
            text.line(f"has_d{name} = d{name} < {self.depth}")
            text.line(f"c{name} = head * {self.depth} + d{name}")
        return At("(begin + i)", "(first + i)", "c", "has_i", "has_d")

    @contextlib.contextmanager
    def over_keys(self, keys: int) -> Iterator[None]:
        """Writes a loop over so many keys at once."""
        with self.text.loop(f"for start in range(0, {self.length}, {keys}):"):
            for name, axis in (("", "[None, :]"), ("t", "[:, None]")):
                self.text.line(f"j{name} = start + tl.arange(0, {keys}){axis}")
                self.text.line(f"has_j{name} = j{name} < {self.length}")
            yield

    def rounded_score(self, keys: int) -> str:
        """Writes the scores of the queries and keys, with codes and back where they have some."""
        score = self.text.let(f"k.clamp({self.score(keys)}, {-LARGEST_SCORE}, {LARGEST_SCORE})")
        return self.rounded(score, self.source.scores)

    def power(self, keys: int) -> str:
        """Writes what a key has in the softmax before it is divided by the sum; 0 beyond the last key."""
        return self.text.let(f"tl.where(has_j, k.power({self.rounded_score(keys)}, largest), 0.0)")

    def rounded(self, x: str, site: str | None) -> str:
        """Writes x [queries, keys] as a site's codes and back."""
        if site is None:
            return x
        codes, at = self.codes_of_pairs(site), self.pairs
        return codes.decode(self.text, codes.encode(self.text, x, at), at)

    def codes_of_pairs(self, site: str) -> SiteCodes:
        """Returns the codes of a site that has a row for each query and a channel for each head and key."""
        return site_codes(self.body.bundle, site, self.length, self.source.heads * self.length, False, None)

    @property
    def pairs(self) -> At:
        """The queries and keys in such a site."""
        return At("i", "i", self.text.let(f"head * {self.length} + j"), "has_i", "has_j")

    # --- what a form says

    def score(self, keys: int) -> str:
        """Writes the scores of the queries and keys."""
        raise NotImplementedError

    def add(self, p: str) -> None:
        """Adds the values of keys to `total`, given their probabilities."""
        raise NotImplementedError

    def result(self, queries: At) -> str:
        """Returns the result."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Operand:
    """One side of a product of codes.

    Attributes:
        bytes: the name of `byte - 128`, int8; 0 outside.
        at: where its elements are, terms of the sum along the second axis for the first operand.
        turned: the same with terms along the other axis.
        inner: whether its zero points differ between terms of the sum.
    """

    codes: SiteCodes
    bytes: str
    at: At
    turned: At
    inner: bool


class IntegerText(AttentionText):
    """Attention whose operands have codes.

    A code less its zero point is `byte - 128`, which fits into 8 bits, plus a lift. The product is of the former, and
    the lifts add sums over one operand.
    """

    def begin(self) -> At:
        at = super().begin()
        self.q = self.operand(self.source.q, at, replace(at, column="ct", has_column="has_dt"), by_channel=True)
        return at

    def score(self, keys: int) -> str:
        text, form = self.text, self.form
        at = At("(begin + j)", "(first + j)", "ct", "has_j", "has_dt")
        k = self.operand(self.source.k, at, replace(at, column="c", has_column="has_d"), by_channel=True)
        total = text.let(f"tl.dot({self.q.bytes}, {k.bytes}, out_dtype=tl.int32)")
        total = text.let(" + ".join([total, *self.lifts(self.q, k)]))
        scale = text.vector(form.q_scale, "i", "has_i", "0.0"), text.vector(form.k_scale, "j", "has_j", "0.0")
        return text.let(f"{total}.to(tl.float32) * {scale[0]} * {scale[1]}")

    def add(self, p: str) -> None:
        text, pairs = self.text, self.pairs
        codes = self.codes_of_pairs(str(self.source.probs))
        byte = text.let(f"tl.where(has_j, {codes.encode(text, p, pairs)} ^ 128, 0).to(tl.int8)")
        turned = At("it", "it", text.let(f"head * {self.length} + jt"), "has_i", "has_jt")
        probabilities = _Operand(codes, byte, pairs, turned, codes.zero_by_channel)
        at = At("(begin + jt)", "(first + jt)", "c", "has_jt", "has_d")
        v = self.operand(self.source.v, at, at, by_channel=False)
        text.line(f"total = tl.dot({byte}, {v.bytes}, total, out_dtype=tl.int32)")
        for term in self.lifts(probabilities, v):
            text.line(f"total = total + {term}")

    def result(self, queries: At) -> str:
        text, form = self.text, self.form
        scale = text.vector(form.v_scale, "c", "has_d", "0.0"), text.vector(form.p_scale, "i", "has_i", "0.0")
        return text.let(f"total.to(tl.float32) * {scale[0]} * {scale[1]}")

    def operand(self, tensor: str, at: At, turned: At, by_channel: bool) -> _Operand:
        """Writes the load of a tensor's codes; `by_channel` says that channels are the terms of the sum."""
        place, codes = self.body.places[tensor], self.body.codes_of(tensor)
        assert codes is not None  # or attention would run in float32
        byte = self.text.load(f"{self.text.place(place)} + {at.row} * {place.width} + {at.column}", at.has, "128")
        name = self.text.let(f"({byte} ^ 128).to(tl.int8, bitcast=True)")
        return _Operand(codes, name, at, turned, by_channel and codes.zero_by_channel)

    def lifts(self, a: _Operand, b: _Operand) -> list[str]:
        """Writes what the lifts add to the product of bytes a [., terms] and b [terms, .]."""
        text, terms = self.text, []
        own = a.codes.lift(text, a.at)
        if own is not None:
            across = text.let(f"{b.bytes}.to(tl.int32)")
            if a.inner:
                terms.append(text.let(f"tl.sum({a.codes.lift(text, a.turned)} * {across}, 0)[None, :]"))
            else:
                terms.append(text.let(f"{own} * tl.sum({across}, 0)[None, :]"))
        lift = b.codes.lift(text, b.turned if b.inner else b.at)
        if lift is not None:
            codes = text.let(f"{a.bytes}.to(tl.int32) + {own or 0}")
            codes = text.let(f"tl.where({a.at.has}, {codes}, 0)")
            if b.inner:
                terms.append(text.let(f"tl.sum({codes} * {lift}, 1)[:, None]"))
            else:
                terms.append(text.let(f"tl.sum({codes}, 1)[:, None] * {lift}"))
        return terms


class FloatText(AttentionText):
    """Attention in float32. Its sums have the order of the channels and of the keys."""

    total, keys = "tl.float32", SUM_KEYS

    def score(self, keys: int) -> str:
        text = self.text
        score = text.fresh()
        text.line(f"{score} = tl.zeros([{QUERIES}, {keys}], tl.float32)")
        with text.loop(f"for e in range({self.depth}):"):
            column = text.let(f"head * {self.depth} + e")
            q = self.read(self.source.q, At("(begin + i)", "(first + i)", column, "has_i", None))
            k = self.read(self.source.k, At("(begin + j)", "(first + j)", column, "has_j", None))
            text.line(f"{score} = {score} + {q} * {k}")
        scale = text.load(text.parameter(np.array([self.form.scale], np.float32)), None)
        return text.let(f"{score} * {scale}")

    def add(self, p: str) -> None:
        text = self.text
        p = text.let(f"tl.where(has_j, {self.rounded(p, self.source.probs)}, 0.0)")
        with text.loop(f"for e in range({self.keys}):"):
            key = text.let("start + e + tl.zeros([1, 1], tl.int32)")
            inside = text.let(f"{key} < {self.length}")
            v = self.read(self.source.v, At(f"(begin + {key})", f"(first + {key})", "c", inside, "has_d"))
            one = text.let(f"tl.sum(tl.where(j == {key}, {p}, 0.0), 1)[:, None]")
            text.line(f"total = total + {one} * {v}")

    def result(self, queries: At) -> str:
        return "total"

    def read(self, tensor: str, at: At) -> str:
        return read(self.text, self.body.places[tensor], self.body.codes_of(tensor), at)


#: Writes attention, by the type of its form.
_TEXTS: dict[type, type[AttentionText]] = {IntegerAttention: IntegerText, FloatAttention: FloatText}


def attention_text(body: Body, form: Form, store: Store) -> Text:
    """Returns the text of attention; `store` writes what becomes of the result at rows and channels.

    Raises:
        VisqError: a head has more channels than a program can hold.
    """
    text = _TEXTS[type(form)](body, form, store)
    if text.depth > MOST_CHANNELS:
        raise unsupported(body.operation, f"attention with more than {MOST_CHANNELS} channels a head")
    return text.write()


def tiles(source: Attention, rows: int) -> int:
    """Returns how many tiles of queries an image of so many rows has."""
    return rows // source.length * -(-source.length // QUERIES)


def warps(channels: int) -> int:
    """Returns the warps of a program, given a head's channels. With fewer, cuobjdump shows registers on the stack."""
    return min(max(power_of_two(channels) // 32, 1), 8)
