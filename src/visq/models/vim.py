"""Defines Vision Mamba (Vim): bidirectional `bimamba v2` mixers and a class token in the middle.

Paper: Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model, https://arxiv.org/abs/2401.09417
Public code: https://github.com/hustvl/Vim (Apache-2.0); this file is written from the paper and the checkpoint's keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.layers import CausalConv1d, CheckImages, DropPath, Linear, RMSNorm, SelectiveScan, SiLU
from visq.models.ssm import init_delta, projection, selective
from visq.models.stage import Stage, StagedNetwork
from visq.quant.site import WEIGHT, Site


@dataclass(frozen=True)
class VimConfig:
    """Holds the geometry of a Vim: pixels (image, patch, stride), channels (embed_dim), states (d_state)."""

    image_size: int = 224
    patch_size: int = 16
    stride: int = 16
    channels: int = 3
    embed_dim: int = 192
    depth: int = 24
    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    num_classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size < self.patch_size:
            raise VisqError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    @property
    def d_inner(self) -> int:
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.embed_dim / 16)

    @property
    def num_patches(self) -> int:
        return ((self.image_size - self.patch_size) // self.stride + 1) ** 2

    @property
    def num_tokens(self) -> int:
        return self.num_patches + 1


class PatchEmbed(nn.Module):
    """Cuts images into patch tokens with one strided convolution `proj`.

    [B, channels, H, W] -> [B, M, embed_dim]
    """

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = PatchConv2d(config.channels, config.embed_dim, config.patch_size, config.stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class PatchConv2d(nn.Conv2d):
    """Convolves patches, with sites `in`, `weight`, `out`. [B, channels, H, W] -> tokens [B, M, embed_dim]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.site_in, self.site_weight, self.site_out = Site(), Site(WEIGHT), Site()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.conv2d(self.site_in(images), self.site_weight(self.weight), self.bias, self.stride)
        return self.site_out(maps.flatten(2).transpose(1, 2))


class BiMambaMixer(nn.Module):
    """Scans the tokens forward and backward; the two scans share in_proj, the gate z and out_proj.

    [B, L, embed_dim] -> [B, L, embed_dim]. Parameters of the backward direction end in `_b`.
    """

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        d, n, rank = config.d_inner, config.d_state, config.dt_rank
        self.in_proj = Linear(config.embed_dim, 2 * d, bias=False)
        self.conv1d, self.conv1d_b = CausalConv1d(d, config.d_conv), CausalConv1d(d, config.d_conv)
        self.silu, self.silu_b = SiLU(), SiLU()
        self.x_proj, self.x_proj_b = Linear(d, rank + 2 * n, bias=False), Linear(d, rank + 2 * n, bias=False)
        self.dt_proj, self.dt_proj_b = Linear(rank, d), Linear(rank, d)
        self.A_log, self.A_b_log = (nn.Parameter(torch.arange(1.0, n + 1).log().repeat(d, 1)) for _ in range(2))
        self.site_a_log, self.site_a_b_log = Site(WEIGHT, "A_log"), Site(WEIGHT, "A_b_log")
        self.D, self.D_b = (nn.Parameter(torch.ones(d)) for _ in range(2))
        self.scan, self.scan_b = SelectiveScan(self.site_a_log), SelectiveScan(self.site_a_b_log)
        self.gate = SiLU()
        self.out_proj = Linear(d, config.embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        gate = self.gate(z)
        y = self.direction(x, "")
        y_b = self.direction(x.flip(1), "_b").flip(1)
        return self.out_proj((y + y_b) * gate / 2)

    def direction(self, x: Tensor, suffix: str) -> Tensor:
        """Runs one direction up to the gate: x [B, L, d_inner] -> y [B, L, d_inner], both in scan order."""
        conv1d, silu, x_proj, dt_proj, scan = (
            getattr(self, name + suffix) for name in ("conv1d", "silu", "x_proj", "dt_proj", "scan")
        )
        A_log, D = (self.site_a_b_log(self.A_b_log), self.D_b) if suffix else (self.site_a_log(self.A_log), self.D)
        u = silu(conv1d(x))
        return selective(u, x_proj, dt_proj, scan, A_log, D)

    @torch.no_grad()
    def reset_parameters(self, depth: int) -> None:
        """Initializes as Mamba does: delta log-uniform in [1e-3, 1e-1], out_proj divided by sqrt(depth)."""
        self.out_proj.weight.div_(math.sqrt(depth))
        for dt_proj in (self.dt_proj, self.dt_proj_b):
            init_delta(dt_proj)

    def scan_projection(self, scan: str) -> tuple[Tensor, slice, slice]:
        """Returns the projection that makes B and C for `scan`: its weight, the rows of B, the rows of C."""
        suffix = scan.removeprefix("scan")
        return projection(getattr(self, "x_proj" + suffix), getattr(self, "dt_proj" + suffix))


class Block(nn.Module):
    """Adds the branch to the residual stream, then normalizes and mixes.

    (branch, residual) -> (branch, residual), each [B, L, embed_dim]
    """

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"mixer.in_proj": "norm"}

    def __init__(self, config: VimConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = RMSNorm(config.embed_dim)
        self.mixer = BiMambaMixer(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual = residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual)), residual


class VisionMamba(StagedNetwork):
    """Classifies images: [B, channels, image_size, image_size] -> logits [B, num_classes]."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.config = config
        self.check_images = CheckImages(config.channels, config.image_size)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim))
        # As in the public code: the first two blocks drop nothing, then the rate rises linearly.
        rates = [0.0, *(config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth))]
        self.layers = nn.ModuleList(Block(config, rates[i]) for i in range(config.depth))
        self.drop_path = DropPath(config.drop_path)
        self.norm_f = RMSNorm(config.embed_dim)
        self.head = Linear(config.embed_dim, config.num_classes)
        self.reset_parameters()

    def stages(self) -> list[Stage]:
        blocks = [Stage(f"layers.{i}", block, (f"layers.{i}",)) for i, block in enumerate(self.layers)]
        return [
            Stage("embed", self.embed, ("patch_embed",)),
            *blocks,
            Stage("classify", self.classify, ("norm_f", "head")),
        ]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens [B, num_tokens, embed_dim] with class token and positions, and an empty residual stream."""
        tokens = self.patch_embed(self.check_images(images))
        middle = self.config.num_patches // 2
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([tokens[:, :middle], cls_token, tokens[:, middle:]], dim=1)
        tokens = tokens + self.pos_embed
        return tokens, torch.zeros_like(tokens)

    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        """Returns the logits of the class token's final state."""
        middle = self.config.num_patches // 2
        token = residual[:, middle] + self.drop_path(hidden[:, middle])
        return (self.head(self.norm_f(token)),)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes as the Vim and Mamba papers do: delta log-uniform in [1e-3, 1e-1], out_proj by 1/sqrt(depth)."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)
        self.patch_embed.proj.bias.zero_()  # type: ignore[union-attr]
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for module in self.modules():
            if isinstance(module, BiMambaMixer):
                module.reset_parameters(self.config.depth)
