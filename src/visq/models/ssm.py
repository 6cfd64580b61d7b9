"""Defines the selective state-space model of one direction (Mamba's S6), the mixer of Mamba-1 and SS2D around it.

Networks of any family use them. Parameters carry the names of `mamba_ssm`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from visq.models.layers import CausalConv1d, Conv2d, LayerNorm, Linear, SelectiveScan, SiLU
from visq.quant.site import WEIGHT, Site


class SSM(nn.Module):
    """Computes u -> x_proj -> (dt, B, C); delta = softplus(dt_proj(dt)); y = scan(u, delta, -exp(A_log), B, C) + D u.

    Arguments:
        d_inner, d_state, dt_rank: channels C, states N and the rank of delta's projection.
    """

    def __init__(self, d_inner: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        a_log = Site(WEIGHT, "A_log")
        self.scan, self.site_a_log = SelectiveScan(a_log), a_log

    def forward(self, u: Tensor) -> Tensor:
        """Returns y [B, L, C] of u [B, L, C], both in scan order."""
        return selective(u, self.x_proj, self.dt_proj, self.scan, self.site_a_log(self.A_log), self.D)

    def reset_parameters(self) -> None:
        """Initializes as Mamba does: delta log-uniform in [1e-3, 1e-1]."""
        init_delta(self.dt_proj)

    def scan_projection(self, scan: str) -> tuple[Tensor, slice, slice]:
        """Returns the projection that makes B and C for `scan`: its weight, the rows of B, the rows of C."""
        assert scan == "scan"
        return projection(self.x_proj, self.dt_proj)


class MambaMixer(SSM):
    """Mixes tokens in one direction: in_proj -> (x, z); out_proj(SSM(SiLU(conv1d(x))) * SiLU(z)).

    [B, L, d_model] -> [B, L, d_model]

    Arguments:
        d_model, d_state, expand, d_conv: as in `mamba_ssm.Mamba`, dt_rank = ceil(d_model / 16).
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 2, d_conv: int = 4) -> None:
        d_inner = expand * d_model
        super().__init__(d_inner, d_state, math.ceil(d_model / 16))
        self.in_proj = Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d, self.silu, self.gate = CausalConv1d(d_inner, d_conv), SiLU(), SiLU()
        self.out_proj = Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = super().forward(self.silu(self.conv1d(x)))
        return self.out_proj(y * self.gate(z))


class SS2D(nn.Module):
    """Mixes the positions of a map by scans in four orders, as VMamba does. [B, L, dim] -> [B, L, dim], row by row.

    in_proj -> u = SiLU(conv2d); y = the sum of the scans by rows, by columns, and of both reversed;
    out_proj(out_norm(y)), gated by SiLU(z) where `gated`.

    Arguments:
        d_state, expand, dt_rank: as in `SSM`, d_inner = expand * dim; dt_rank is ceil(dim / 16) by default.
        d_conv: side of the depthwise convolution's window.
        gated: whether in_proj also makes z.
        conv_bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 3,
        dt_rank: int | None = None,
        gated: bool = True,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = Linear(dim, inner * (2 if gated else 1), bias=False)
        self.conv2d = Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        self.silu = SiLU()
        self.directions = nn.ModuleList(SSM(inner, d_state, rank) for _ in range(4))
        self.out_norm = LayerNorm(inner)
        self.gate = SiLU() if gated else None
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.in_proj(x)
        if self.gate is not None:
            x, z = x.chunk(2, dim=-1)
        u = self.silu(self.conv2d(x.unflatten(1, (height, width))).flatten(1, 2))
        y = self.out_norm(self.cross_scan(u, height, width))
        return self.out_proj(y if self.gate is None else y * self.gate(z))

    def cross_scan(self, u: Tensor, height: int, width: int) -> Tensor:
        """Returns the sum of the four directions of u [B, L, C]; both go row by row."""
        columns = transpose_map(u, height, width)
        rows, down, rows_reversed, up = self.directions
        y = rows(u) + rows_reversed(u.flip(1)).flip(1)
        y_columns = down(columns) + up(columns.flip(1)).flip(1)
        return y + transpose_map(y_columns, width, height)


def transpose_map(x: Tensor, height: int, width: int) -> Tensor:
    """Reorders tokens from row by row [B, H W, C] to column by column [B, W H, C]."""
    return x.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)


def selective(
    u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear, scan: SelectiveScan, A_log: Tensor, D: Tensor
) -> Tensor:
    """Computes (dt, B, C) = x_proj(u), delta = softplus(dt_proj(dt)), y = scan(u, delta, -exp(A_log), B, C) + D u.

    u [B, L, C] in scan order -> y [B, L, C] in scan order
    """
    rank = dt_proj.in_features
    states = (x_proj.out_features - rank) // 2
    dt, B, C = x_proj(u).split([rank, states, states], dim=-1)
    delta = scan.softplus(dt_proj(dt))
    # float64 makes A the same float32 here, in NumPy and in the engine.
    A = -torch.exp(A_log.double()).to(A_log)
    return scan(u, delta, A, B, C) + D * u


def projection(x_proj: nn.Linear, dt_proj: nn.Linear) -> tuple[Tensor, slice, slice]:
    """Returns x_proj's weight, its rows of B and its rows of C."""
    rank, rows = dt_proj.in_features, x_proj.out_features
    middle = (rank + rows) // 2
    return x_proj.weight, slice(rank, middle), slice(middle, rows)


@torch.no_grad()
def init_delta(dt_proj: nn.Linear) -> None:
    """Initializes as Mamba does: softplus(bias) log-uniform in [1e-3, 1e-1], weights uniform within rank^-1/2."""
    nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
    dt = torch.exp(torch.rand_like(dt_proj.bias) * math.log(0.1 / 0.001) + math.log(0.001)).clamp_min(1e-4)
    dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))


@torch.no_grad()
def reset_linears_and_scans(network: nn.Module) -> None:
    """Initializes as the public VMamba: linears normal with deviation 0.02, delta log-uniform in [1e-3, 1e-1].

    Everything else keeps PyTorch's initialization.
    """
    for module in network.modules():
        if isinstance(module, Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, SSM):
            module.reset_parameters()
