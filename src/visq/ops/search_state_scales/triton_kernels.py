"""The kernel of search_state_scales: one group of steps with every candidate."""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops.quantized_scan.triton_kernels import advance


@triton.jit
def run_group(
    U, DELTA, A, B, C, BASE, CHANNEL, STATES, SA, TA, SB, TB, REFERENCE, CANDIDATES, HISTORY, AFTER, SUMS,
    u_batch, u_row, delta_batch, delta_row, b_batch, b_row, c_batch, c_row, reference_batch, reference_row,
    D, L, begin, low, high,
    ABAR: tl.constexpr, KA: tl.constexpr, BITS_A: tl.constexpr,
    BBAR: tl.constexpr, KB: tl.constexpr, BITS_B: tl.constexpr, STATE: tl.constexpr, READ: tl.constexpr,
    STEPS: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Runs STEPS steps from `begin` and one more, for one candidate, image and block of channels.

    Writes the state after the steps, AFTER [K, B, D, N], and over the block's channels the sums of y * reference and
    of y^2, SUMS [2, K, B, STEPS + 1, blocks] float64. The last step reads the unrounded state.
    """
    k, b, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    images, blocks = tl.num_programs(1), tl.num_programs(2)
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, WIDTH)
    has_d, has_n = d < D, n < N
    cells = d[:, None] * N + n[None, :]
    has = has_d[:, None] & has_n[None, :]
    a = tl.load(A + cells, mask=has, other=0.0)
    channel = tl.load(CHANNEL + d, mask=has_d, other=1.0)
    factor = channel[:, None] * tl.load(STATES + n, mask=has_n, other=1.0)[None, :]
    candidate = tl.load(CANDIDATES + k)
    h = tl.load(HISTORY + b * D * N + cells, mask=has, other=0.0)
    for i in range(STEPS + 1):
        # The step after the last group is not there: the row before it is read, and nobody asks for its sums.
        t = tl.minimum(begin + i, L - 1)
        u = tl.load(U + b * u_batch + t * u_row + d, mask=has_d, other=0.0)
        delta = tl.load(DELTA + b * delta_batch + t * delta_row + d, mask=has_d, other=0.0)
        drive = tl.load(B + b * b_batch + t * b_row + n, mask=has_n, other=0.0)
        c = tl.load(C + b * c_batch + t * c_row + n, mask=has_n, other=0.0)
        reference = tl.load(REFERENCE + b * reference_batch + t * reference_row + d, mask=has_d, other=0.0)
        found = advance(
            h, a, u, delta, drive, tl.load(BASE + t) * candidate, factor, SA, TA, SB, TB, low, high,
            ABAR, KA, BITS_A, BBAR, KB, BITS_B, STATE,
        )  # fmt: skip
        last = tl.zeros(h.shape, tl.int32) + i == STEPS
        read = found[1]
        if READ:
            read = tl.where(last, found[1], found[0])
        h = tl.where(last, h, found[0])
        y = tl.sum(read * c[None, :], 1).to(tl.float64)
        at = ((k * images + b) * (STEPS + 1) + i) * blocks + block
        tl.store(SUMS + at, tl.sum(tl.where(has_d, y * reference.to(tl.float64), 0.0), 0))
        squares = tl.num_programs(0).to(tl.int64) * images * (STEPS + 1) * blocks
        tl.store(SUMS + squares + at, tl.sum(tl.where(has_d, y * y, 0.0), 0))
    tl.store(AFTER + (k * images + b) * D * N + cells, h, mask=has)
