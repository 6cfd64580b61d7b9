"""The kernel of similarity_sums. A program takes one row, one group and a block of candidates."""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops._shared.triton_kernels import clamp, one_over, rint


@triton.jit
def forward(
    X, REFERENCE, WEIGHT, LABELS, CANDIDATES, FIRST, SECOND, qmin, qmax,
    G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BY_TOKEN: tl.constexpr, METRIC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes FIRST and, for the cosine, SECOND [R, groups, K]; by token a row has one group, its own.

    Columns of other groups add nothing. They are added up COLUMNS at a time, in their order.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    has_k = k < K
    group = part
    if BY_TOKEN:
        group = tl.load(LABELS + row)
    scale = tl.load(CANDIDATES + group * K + k, mask=has_k, other=1.0)
    inverse = one_over(scale)
    low, high = qmin * 1.0, qmax * 1.0
    first = tl.zeros([BLOCK], tl.float32)
    second = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        has_c = c < C
        if not BY_TOKEN:
            has_c = has_c & (tl.load(LABELS + c, mask=has_c, other=-1) == group)
        x = tl.load(X + row * C + c, mask=has_c, other=0.0)
        reference = tl.load(REFERENCE + row * C + c, mask=has_c, other=0.0)
        found = clamp(rint(x[:, None] * inverse[None, :]), low, high) * scale[None, :]
        # Without a zero among the codes, a column of another group would not be rounded to zero.
        found = tl.where(has_c[:, None] & has_k[None, :], found, 0.0)
        difference = reference[:, None] - found
        if METRIC == "cosine":
            first += tl.sum(reference[:, None] * found, 0)
            second += tl.sum(found * found, 0)
        if METRIC == "l1":
            first += tl.sum(tl.abs(difference), 0)
        if METRIC == "l2":
            term = difference * difference
            if HAS_WEIGHT:
                term = tl.load(WEIGHT + row * C + c, mask=has_c, other=0.0)[:, None] * term
            first += tl.sum(term, 0)
    groups = 1 if BY_TOKEN else G
    at = (row * groups + part) * K + k
    tl.store(FIRST + at, first, mask=has_k)
    if METRIC == "cosine":
        tl.store(SECOND + at, second, mask=has_k)
