"""Defines LocalVim (arXiv 2403.09338): a Vim whose layers scan in directions of their own, windows among them.

Written from the paper, the checkpoint's keys and the results of the public code (https://github.com/hunto/LocalMamba,
Apache-2.0). `localvim_checkpoint.py` renames parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.excitation import ChannelAttention
from visq.models.layers import CausalConv1d, CheckImages, DropPath, Linear, RMSNorm, SiLU, TokenMean
from visq.models.local_scan import LINE, LINES, Order, check_lines, directions_of
from visq.models.ssm import SSM
from visq.models.stage import Stage, StagedNetwork
from visq.models.vim import PatchConv2d

#: Patches a side for which the rotations were defined; other images stretch them.
ROTATED_SIDE = 14


@dataclass(frozen=True)
class LocalVimConfig:
    """Holds the geometry of a LocalVim.

    Attributes:
        reduced: hidden channels of the gate behind each scan (the paper's BiAttn).
        directions: the scans of each layer (`visq.models.local_scan`); no tensor tells them.
        variant: `rope` rotates pairs of channels by the position in front of each block, `class_token` classifies by a
            token in the middle of the patches instead of their mean, `plain` does neither.
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    embed_dim: int = 192
    depth: int = 20
    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    reduced: int = 48
    directions: tuple[str, ...] = field(
        default=("h h_flip w2 w2_flip",), metadata={"pattern": LINE, "description": LINES}
    )
    variant: str = field(default="rope", metadata={"choices": ("rope", "class_token", "plain")})
    num_classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_lines(self.directions)
        if self.image_size % self.patch_size:
            raise VisqError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.variant == "rope" and self.embed_dim % 4:
            raise VisqError(f"rotations need embed_dim in fours, not {self.embed_dim}")

    @property
    def d_inner(self) -> int:
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.embed_dim / 16)

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.side**2

    @property
    def class_token(self) -> bool:
        return self.variant == "class_token"

    @property
    def num_tokens(self) -> int:
        return self.num_patches + self.class_token


class Rope(nn.Module):
    """Rotates each pair of channels by an angle that grows with the row or the column. [B, L, C] -> same.

    The cosines and sines [L, C] are parameters that nothing trains, as in the checkpoints.
    """

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__()
        half, side = config.embed_dim // 2, config.side
        frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2).float() / half)
        angles = torch.arange(side) / side * ROTATED_SIDE
        angles = (angles[:, None] * frequencies).repeat_interleave(2, dim=1)
        rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
        both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        self.freqs_cos = nn.Parameter(both.cos(), requires_grad=False)
        self.freqs_sin = nn.Parameter(both.sin(), requires_grad=False)
        self.turn = QuarterTurn()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.freqs_cos + self.turn(x) * self.freqs_sin


class QuarterTurn(nn.Module):
    """Turns each pair of channels by 90 degrees: (a, b) -> (-b, a). [..., C] -> same."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (-1, 2))
        return torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)


class Direction(SSM):
    """Convolves and scans tokens in scan order. [B, L, d_inner] -> same."""

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__(config.d_inner, config.d_state, config.dt_rank)
        self.conv1d, self.silu = CausalConv1d(config.d_inner, config.d_conv), SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.silu(self.conv1d(x)))


class LocalMixer(nn.Module):
    """Scans the tokens in the directions of a layer. [B, L, embed_dim] -> same."""

    def __init__(self, config: LocalVimConfig, layer: int) -> None:
        super().__init__()
        directions, self.side = directions_of(config.directions, layer), config.side
        self.in_proj = Linear(config.embed_dim, 2 * config.d_inner, bias=False)
        self.directions = nn.ModuleList(Direction(config) for _ in directions)
        self.orders = nn.ModuleList(Order(direction, config.class_token) for direction in directions)
        self.gate = SiLU()
        self.attn = ChannelAttention(config.d_inner, config.reduced)
        self.out_proj = Linear(config.d_inner, config.embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        gate = self.gate(z)
        total: Tensor | None = None
        for order, direction in zip(self.orders, self.directions, strict=True):
            assert isinstance(order, Order)
            y = self.attn(order.back(direction(order(x, self.side, self.side)), self.side, self.side) * gate)
            total = y if total is None else total + y
        assert total is not None
        return self.out_proj(total)


class Block(nn.Module):
    """Adds the branch to the residual stream, rotates it, then normalizes and mixes.

    (branch, residual) -> (branch, residual), each [B, L, embed_dim]
    """

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"mixer.in_proj": "norm"}

    def __init__(self, config: LocalVimConfig, layer: int, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer = RMSNorm(config.embed_dim), LocalMixer(config, layer)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor]:
        residual = residual + self.drop_path(hidden)
        if rope is not None:
            residual = rope(residual)
        return self.mixer(self.norm(residual)), residual


class PatchEmbed(nn.Module):
    """Cuts images into patch tokens with one strided convolution. [B, channels, H, W] -> [B, M, embed_dim]."""

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__()
        self.proj = PatchConv2d(config.channels, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class LocalVim(StagedNetwork):
    """Classifies images: [B, channels, image_size, image_size] -> logits [B, num_classes]."""

    cls_token: nn.Parameter | None

    def __init__(self, config: LocalVimConfig) -> None:
        super().__init__()
        self.config = config
        self.check_images = CheckImages(config.channels, config.image_size)
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim))
        token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.class_token else None
        self.register_parameter("cls_token", token)
        self.rope = Rope(config) if config.variant == "rope" else None
        # As in the public code: the first two blocks drop nothing, then the rate rises linearly.
        rates = [0.0, *(config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth))]
        self.layers = nn.ModuleList(Block(config, i, rates[i]) for i in range(config.depth))
        self.drop_path = DropPath(config.drop_path)
        self.norm_f, self.pool = RMSNorm(config.embed_dim), TokenMean()
        self.head = Linear(config.embed_dim, config.num_classes)
        self.reset_parameters()

    def stages(self) -> list[Stage]:
        blocks = [
            Stage(f"layers.{i}", lambda x, residual, block=block: block(x, residual, self.rope), (f"layers.{i}",))
            for i, block in enumerate(self.layers)
        ]
        return [
            Stage("embed", self.embed, ("patch_embed",)),
            *blocks,
            Stage("classify", self.classify, ("norm_f", "head")),
        ]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens [B, num_tokens, embed_dim] with positions, and an empty residual stream."""
        tokens = self.patch_embed(self.check_images(images))
        if self.cls_token is not None:
            middle = self.config.num_patches // 2
            cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :middle], cls_token, tokens[:, middle:]], dim=1)
        tokens = tokens + self.pos_embed
        return tokens, torch.zeros_like(tokens)

    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        """Returns the logits of the class token, or of the mean of all normalized tokens."""
        if self.cls_token is not None:
            middle = self.config.num_patches // 2
            return (self.head(self.norm_f(residual[:, middle] + self.drop_path(hidden[:, middle]))),)
        return (self.head(self.pool(self.norm_f(residual + self.drop_path(hidden)))),)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes as the public code: linears by a normal of 0.02, out_proj as PyTorch divided by sqrt(depth)."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for name, module in self.named_modules():
            if not isinstance(module, Linear):
                continue
            if name.endswith("out_proj"):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                module.weight.div_(math.sqrt(self.config.depth))
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, SSM):
                module.reset_parameters()
