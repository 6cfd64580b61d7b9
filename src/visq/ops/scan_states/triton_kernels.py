"""The kernel of scan_states. A program takes one image and a block of channels through all tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops._shared.triton_kernels import inside, load_steps


@triton.jit
def forward(
    U, DELTA, A, B, H, u_batch, u_row, delta_batch, delta_row, b_batch, b_row, D,
    L: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Writes h [B, L, D, N]."""
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
        for k in tl.static_range(AHEAD):
            h = tl.exp(delta[k][:, None] * a) * h + (delta[k] * u[k])[:, None] * drive[k][None, :]
            tl.store(H + (b * L + start + k) * D * N + cells, h, mask=inside(has, start + k, L))
