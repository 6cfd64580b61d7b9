"""The kernels of the quantized scan. A program takes one image and a block of channels through all tokens.

Products and sums are not fused, because a code is decided by the last bits of what is rounded. Inputs of AHEAD steps
are loaded before the first of them is computed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops._shared.triton_kernels import clamp, inside, load_steps, one_over, rint


@triton.jit
def quantize(x, SCALES, TABLE, KIND: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr):
    """Returns a rounded factor, and its slope: 1 inside the clip range, 0 outside.

    KIND 0: nothing is rounded; 1: SCALES holds scale, 1 / scale, lowest and highest code; 2: TABLE holds K ascending
    values and then the K - 1 thresholds between them, of which those below x are counted in BITS halvings.
    """
    slope = tl.full(x.shape, 1.0, tl.float32)
    value = x
    if KIND == 1:
        low, high = tl.load(SCALES + 2), tl.load(SCALES + 3)
        code = rint(x * tl.load(SCALES + 1))
        slope = tl.where((code >= low) & (code <= high), 1.0, 0.0)
        value = clamp(code, low, high) * tl.load(SCALES)
    if KIND == 2:
        below = tl.zeros(x.shape, tl.int32)
        for bit in tl.static_range(BITS - 1, -1, -1):
            probe = below + (1 << bit)
            there = probe < K
            threshold = tl.load(TABLE + K - 1 + probe, mask=there, other=float("inf"))
            below = tl.where(there & (threshold < x), probe, below)
        slope = tl.where((x >= tl.load(TABLE)) & (x <= tl.load(TABLE + K - 1)), 1.0, 0.0)
        value = tl.where(x == x, tl.load(TABLE + below), x)
    return value, slope


@triton.jit
def advance(
    h, a, u, delta, drive, step, factor, SA, TA, SB, TB, low, high,
    ABAR: tl.constexpr, KA: tl.constexpr, BITS_A: tl.constexpr,
    BBAR: tl.constexpr, KB: tl.constexpr, BITS_B: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Takes the rounded state [BLOCK, WIDTH] one step further.

    Returns the rounded and the unrounded state, the two factors, and the slopes of A's exponent, of Bbar and of h.
    """
    exact = tl.exp(delta[:, None] * a)
    abar, slope_abar = quantize(exact, SA, TA, ABAR, KA, BITS_A)
    bbar, slope_bbar = quantize(delta[:, None] * drive[None, :], SB, TB, BBAR, KB, BITS_B)
    state = abar * h + bbar * u[:, None]
    rounded = state
    slope = tl.full(state.shape, 1.0, tl.float32)
    if STATE:
        # One value of the step for every cell, in a tensor: divisions take tensors.
        steps = tl.zeros(state.shape, tl.float32) + step
        code = rint(state * (one_over(steps) * one_over(factor)))
        slope = tl.where((code >= low) & (code <= high), 1.0, 0.0)
        rounded = clamp(code, low, high) * (steps * factor)
    return rounded, state, abar, bbar, slope_abar * exact, slope_bbar, slope


@triton.jit
def forward(
    U, DELTA, A, B, C, STEP, CHANNEL, STATES, SA, TA, SB, TB, Y, SAVED,
    u_batch, u_row, delta_batch, delta_row, b_batch, b_row, c_batch, c_row, D, low, high,
    ABAR: tl.constexpr, KA: tl.constexpr, BITS_A: tl.constexpr,
    BBAR: tl.constexpr, KB: tl.constexpr, BITS_B: tl.constexpr, STATE: tl.constexpr, READ: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Writes y [B, L, D]; with SAVE, writes the state before every AHEADth step [B, ceil(L / AHEAD), D, N] instead."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, WIDTH)
    has_d, has_n = d < D, n < N
    cells = d[:, None] * N + n[None, :]
    has = has_d[:, None] & has_n[None, :]
    a = tl.load(A + cells, mask=has, other=0.0)
    factor = tl.full([BLOCK, WIDTH], 1.0, tl.float32)
    if STATE:
        channel = tl.load(CHANNEL + d, mask=has_d, other=1.0)
        factor = channel[:, None] * tl.load(STATES + n, mask=has_n, other=1.0)[None, :]
    h = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(0, L, AHEAD):
        u = load_steps(U + b * u_batch + d, u_row, start, has_d, L, AHEAD)
        delta = load_steps(DELTA + b * delta_batch + d, delta_row, start, has_d, L, AHEAD)
        drive = load_steps(B + b * b_batch + n, b_row, start, has_n, L, AHEAD)
        c = load_steps(C + b * c_batch + n, c_row, start, has_n, L, AHEAD)
        if SAVE:
            chunks = (L + AHEAD - 1) // AHEAD
            tl.store(SAVED + (b * chunks + start // AHEAD) * D * N + cells, h, mask=has)
        for k in tl.static_range(AHEAD):
            step = tl.load(STEP + start + k, mask=start + k < L, other=1.0) if STATE else 1.0
            found = advance(
                h, a, u[k], delta[k], drive[k], step, factor, SA, TA, SB, TB, low, high,
                ABAR, KA, BITS_A, BBAR, KB, BITS_B, STATE,
            )  # fmt: skip
            h = found[0]
            if not SAVE:
                read = h if READ else found[1]
                y = tl.sum(read * c[k][None, :], 1)
                tl.store(Y + (b * L + start + k) * D + d, y, mask=inside(has_d, start + k, L))


@triton.jit
def backward(
    U, DELTA, A, B, C, STEP, CHANNEL, STATES, SA, TA, SB, TB,
    GRAD_Y, SAVED, GRAD_U, GRAD_DELTA, GRAD_A, GRAD_B, GRAD_C,
    u_batch, u_row, delta_batch, delta_row, b_batch, b_row, c_batch, c_row, grad_batch, grad_row, D, low, high,
    ABAR: tl.constexpr, KA: tl.constexpr, BITS_A: tl.constexpr,
    BBAR: tl.constexpr, KB: tl.constexpr, BITS_B: tl.constexpr, STATE: tl.constexpr, READ: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Writes the gradients, straight through the quantizers, as `selective_scan`'s kernel does.

    AHEAD rounded states are computed again from a saved one and kept; the rest of a step is computed once more when
    it runs backwards. Sums over channels and over images are left to the caller: GRAD_A [B, D, N], GRAD_B and GRAD_C
    [blocks, B, L, N].
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, WIDTH)
    has_d, has_n = d < D, n < N
    cells = d[:, None] * N + n[None, :]
    has = has_d[:, None] & has_n[None, :]
    a = tl.load(A + cells, mask=has, other=0.0)
    factor = tl.full([BLOCK, WIDTH], 1.0, tl.float32)
    if STATE:
        channel = tl.load(CHANNEL + d, mask=has_d, other=1.0)
        factor = channel[:, None] * tl.load(STATES + n, mask=has_n, other=1.0)[None, :]
    carry = tl.zeros([BLOCK, WIDTH], tl.float32)
    grad_a = tl.zeros([BLOCK, WIDTH], tl.float32)
    chunks = (L + AHEAD - 1) // AHEAD
    for i in range(0, L, AHEAD):
        chunk = chunks - 1 - i // AHEAD
        start = chunk * AHEAD
        u = load_steps(U + b * u_batch + d, u_row, start, has_d, L, AHEAD)
        delta = load_steps(DELTA + b * delta_batch + d, delta_row, start, has_d, L, AHEAD)
        drive = load_steps(B + b * b_batch + n, b_row, start, has_n, L, AHEAD)
        c = load_steps(C + b * c_batch + n, c_row, start, has_n, L, AHEAD)
        grad_y = load_steps(GRAD_Y + b * grad_batch + d, grad_row, start, has_d, L, AHEAD)
        h = (tl.load(SAVED + (b * chunks + chunk) * D * N + cells, mask=has, other=0.0),)
        for k in tl.static_range(AHEAD - 1):
            step = tl.load(STEP + start + k, mask=start + k < L, other=1.0) if STATE else 1.0
            found = advance(
                h[k], a, u[k], delta[k], drive[k], step, factor, SA, TA, SB, TB, low, high,
                ABAR, KA, BITS_A, BBAR, KB, BITS_B, STATE,
            )  # fmt: skip
            h = h + (found[0],)
        for k in tl.static_range(AHEAD - 1, -1, -1):
            step = tl.load(STEP + start + k, mask=start + k < L, other=1.0) if STATE else 1.0
            after, state, abar, bbar, slope_exponent, slope_bbar, slope_h = advance(
                h[k], a, u[k], delta[k], drive[k], step, factor, SA, TA, SB, TB, low, high,
                ABAR, KA, BITS_A, BBAR, KB, BITS_B, STATE,
            )  # fmt: skip
            read = after if READ else state
            grad_read = grad_y[k][:, None] * c[k][None, :]
            grad_h = (carry + grad_read) * slope_h if READ else carry * slope_h + grad_read
            grad_bbar = grad_h * u[k][:, None] * slope_bbar
            grad_exponent = grad_h * h[k] * slope_exponent
            grad_delta = tl.sum(grad_bbar * drive[k][None, :] + grad_exponent * a, 1)
            store_d, store_n = inside(has_d, start + k, L), inside(has_n, start + k, L)
            row = b * L + start + k
            tl.store(GRAD_U + row * D + d, tl.sum(grad_h * bbar, 1), mask=store_d)
            tl.store(GRAD_DELTA + row * D + d, grad_delta, mask=store_d)
            part = (block * tl.num_programs(0).to(tl.int64) * L + row) * N + n
            tl.store(GRAD_B + part, tl.sum(grad_bbar * delta[k][:, None], 0), mask=store_n)
            tl.store(GRAD_C + part, tl.sum(grad_y[k][:, None] * read, 0), mask=store_n)
            grad_a += grad_exponent * delta[k][:, None]
            carry = grad_h * abar
    tl.store(GRAD_A + b * D * N + cells, grad_a, mask=has)
