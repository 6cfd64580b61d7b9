"""The kernels of the selective scan. A program takes one image and a block of channels through all tokens.

A step waits for nothing but the state: the inputs of AHEAD steps are loaded before the first of them is computed.
Steps beyond the sequence load zeros, which leave state and gradients as they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops._shared.triton_kernels import inside, load_steps


@triton.jit
def forward(
    U, DELTA, A, B, C, Y, STATES, u_batch, u_row, delta_batch, delta_row, b_batch, b_row, c_batch, c_row, D,
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
    h = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(0, L, AHEAD):
        u = load_steps(U + b * u_batch + d, u_row, start, has_d, L, AHEAD)
        delta = load_steps(DELTA + b * delta_batch + d, delta_row, start, has_d, L, AHEAD)
        drive = load_steps(B + b * b_batch + n, b_row, start, has_n, L, AHEAD)
        if SAVE:
            chunks = (L + AHEAD - 1) // AHEAD
            tl.store(STATES + (b * chunks + start // AHEAD) * D * N + cells, h, mask=has)
            for k in tl.static_range(AHEAD):
                h = tl.exp(delta[k][:, None] * a) * h + (delta[k] * u[k])[:, None] * drive[k][None, :]
        else:
            c = load_steps(C + b * c_batch + n, c_row, start, has_n, L, AHEAD)
            for k in tl.static_range(AHEAD):
                h = tl.exp(delta[k][:, None] * a) * h + (delta[k] * u[k])[:, None] * drive[k][None, :]
                y = tl.sum(h * c[k][None, :], 1)
                tl.store(Y + (b * L + start + k) * D + d, y.to(Y.dtype.element_ty), mask=inside(has_d, start + k, L))


@triton.jit
def backward(
    U, DELTA, A, B, C, GRAD_Y, STATES, GRAD_U, GRAD_DELTA, GRAD_A, GRAD_B, GRAD_C,
    u_batch, u_row, delta_batch, delta_row, b_batch, b_row, c_batch, c_row, grad_batch, grad_row, D,
    L: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Writes the gradients, from the saved states: AHEAD states are computed again and kept, then run backwards.

    Sums over channels and over images are left to the caller, so that the result does not depend on the order in
    which programs run: GRAD_A [B, D, N], GRAD_B and GRAD_C [blocks, B, L, N].
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, WIDTH)
    has_d, has_n = d < D, n < N
    cells = d[:, None] * N + n[None, :]
    has = has_d[:, None] & has_n[None, :]
    a = tl.load(A + cells, mask=has, other=0.0)
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
        h = (tl.load(STATES + (b * chunks + chunk) * D * N + cells, mask=has, other=0.0),)
        for k in tl.static_range(AHEAD):
            h = h + (tl.exp(delta[k][:, None] * a) * h[k] + (delta[k] * u[k])[:, None] * drive[k][None, :],)
        for k in tl.static_range(AHEAD - 1, -1, -1):
            decay = tl.exp(delta[k][:, None] * a)
            grad_h = carry + grad_y[k][:, None] * c[k][None, :]
            grad_du = tl.sum(grad_h * drive[k][None, :], 1)
            grad_exponent = grad_h * h[k] * decay
            grad_delta = grad_du * u[k] + tl.sum(grad_exponent * a, 1)
            store_d, store_n = inside(has_d, start + k, L), inside(has_n, start + k, L)
            row = b * L + start + k
            tl.store(GRAD_U + row * D + d, (grad_du * delta[k]).to(GRAD_U.dtype.element_ty), mask=store_d)
            tl.store(GRAD_DELTA + row * D + d, grad_delta.to(GRAD_DELTA.dtype.element_ty), mask=store_d)
            part = (block * tl.num_programs(0).to(tl.int64) * L + row) * N + n
            tl.store(GRAD_B + part, tl.sum(grad_h * (delta[k] * u[k])[:, None], 0), mask=store_n)
            tl.store(GRAD_C + part, tl.sum(grad_y[k][:, None] * h[k + 1], 0), mask=store_n)
            grad_a += grad_exponent * delta[k][:, None]
            carry = grad_h * decay
    tl.store(GRAD_A + b * D * N + cells, grad_a, mask=has)
