"""Defines MambaVision (arXiv 2407.08083): convolutions, then Mamba mixers and self-attention in windows.

Written from the paper, the names in the checkpoints and the results of the public forward pass. Parameters keep the
checkpoints' names. Maps are [B, H, W, C]; inside a level of windows they are tokens [B, L, C], window by window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.attention import Attention
from visq.models.batch_norm import Affine, BatchNorm, fold_into, folded
from visq.models.layers import (
    CheckImages,
    Conv2d,
    DropPath,
    LayerNorm,
    Linear,
    ReLU,
    SiLU,
    SymmetricConv1d,
    TanhGELU,
    TokenMean,
)
from visq.models.levels import drop_rates
from visq.models.mlp import Mlp
from visq.models.ssm import SSM, reset_linears_and_scans, selective
from visq.models.stage import Stage, StagedNetwork
from visq.models.windows import EnterWindows, JoinWindows, LeaveWindows, SplitWindows, Windows

#: Levels made of convolutions; the others mix tokens in windows.
CONV_LEVELS = 2


@dataclass(frozen=True)
class MambaVisionConfig:
    """Holds the geometry of a MambaVision.

    Attributes:
        stem_dim, embed_dim: channels after the stem's first and second convolution. Each level has twice as many as the
            one before.
        depths: blocks of each level. The last half of a level with windows is self-attention.
        num_heads, windows: heads of attention and side of a window, for each level with windows.
        layer_scale: what the factor of each branch in a block begins with; 0 where blocks have none.
        norm: `batch` as trained, `folded` after `fold_norms`.
    """

    image_size: int = 224
    channels: int = 3
    stem_dim: int = 32
    embed_dim: int = 80
    depths: tuple[int, ...] = (1, 3, 8, 4)
    num_heads: tuple[int, ...] = (8, 16)
    windows: tuple[int, ...] = (14, 7)
    d_state: int = 8
    d_conv: int = 3
    expand: int = 1
    mlp_ratio: int = 4
    layer_scale: float = 0.0
    num_classes: int = 1000
    drop_path: float = 0.0
    norm: str = field(default="batch", metadata={"choices": ("batch", "folded")})

    def __post_init__(self) -> None:
        levels = len(self.depths) - CONV_LEVELS
        if levels < 1 or len(self.num_heads) != levels or len(self.windows) != levels:
            raise VisqError(
                f"{len(self.depths)} levels need {max(levels, 1)} num_heads and windows, "
                f"not {len(self.num_heads)} and {len(self.windows)}"
            )
        for level, heads in enumerate(self.num_heads, CONV_LEVELS):
            if self.dim(level) % heads:
                raise VisqError(f"num_heads {heads} does not divide the {self.dim(level)} channels of level {level}")

    def dim(self, level: int) -> int:
        """Returns the channels of a level."""
        return self.embed_dim * 2**level

    def side(self, level: int) -> int:
        """Returns the side of a level's map; each convolution of stride 2 halves it, rounded up."""
        return -(-self.image_size // 2 ** (level + 2))


def batch_norm(channels: int, config: MambaVisionConfig, eps: float = 1e-5) -> nn.Module:
    """Returns the norm behind a convolution, which is nothing once it is folded."""
    return nn.Identity() if config.norm == "folded" else BatchNorm(channels, eps)


class PatchEmbed(nn.Module):
    """Turns images [B, channels, H, W] into maps [B, H/4, W/4, embed_dim]."""

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for inputs, outputs in ((config.channels, config.stem_dim), (config.stem_dim, config.embed_dim)):
            conv = Conv2d(inputs, outputs, 3, 2, padding=1, bias=config.norm == "folded")
            steps += [conv, batch_norm(outputs, config, 1e-4), ReLU()]
        self.conv_down = nn.Sequential(*steps)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_down(images.permute(0, 2, 3, 1))


class ConvBlock(nn.Module):
    """Computes x + norm2(conv2(GELU(norm1(conv1(x))))). [B, H, W, dim] -> same."""

    def __init__(self, dim: int, config: MambaVisionConfig, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv2d(dim, dim, 3, padding=1), batch_norm(dim, config)
        self.act1 = TanhGELU()
        self.conv2, self.norm2 = Conv2d(dim, dim, 3, padding=1), batch_norm(dim, config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return (x.flatten(1, 2) + self.drop_path(y.flatten(1, 2))).unflatten(1, x.shape[1:3])


class MambaVisionMixer(SSM):
    """Scans one half of the channels and only convolves the other. [B, L, dim] -> same.

    (x, z) = in_proj(input), both through their convolution and SiLU; out_proj of SSM(x) and z beside each other.
    """

    def __init__(self, dim: int, config: MambaVisionConfig) -> None:
        half = config.expand * dim // 2
        super().__init__(half, config.d_state, math.ceil(dim / 16))
        self.in_proj = Linear(dim, 2 * half, bias=False)
        self.conv1d_x, self.silu_x = SymmetricConv1d(half, config.d_conv), SiLU()
        self.conv1d_z, self.silu_z = SymmetricConv1d(half, config.d_conv), SiLU()
        self.out_proj = Linear(2 * half, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.silu_x(self.conv1d_x(x))
        y = selective(u, self.x_proj, self.dt_proj, self.scan, self.site_a_log(self.A_log), self.D)
        return self.out_proj(torch.cat([y, self.silu_z(self.conv1d_z(z))], dim=-1))


class Block(nn.Module):
    """Computes x + gamma_1 mixer(norm1(x)), then x + gamma_2 mlp(norm2(x)). [B, windows L, dim] -> same.

    The mixer sees each window as a sequence of its own.

    Attributes:
        norms_before: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    """

    def __init__(self, dim: int, config: MambaVisionConfig, drop_path: float, windows: int, heads: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.mixer = MambaVisionMixer(dim, config) if heads is None else Attention(dim, heads)
        self.mlp = Mlp(dim, config.mlp_ratio * dim)
        self.split, self.join = SplitWindows(windows), JoinWindows(windows)
        self.drop_path = DropPath(drop_path)
        for name in ("gamma_1", "gamma_2"):
            gamma = nn.Parameter(torch.full((dim,), config.layer_scale)) if config.layer_scale else None
            self.register_parameter(name, gamma)
        first = "mixer.in_proj" if heads is None else "mixer.qkv"
        self.norms_before = {first: "norm1", "mlp.fc1": "norm2"}

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.join(self.mixer(self.split(self.norm1(x))))
        x = x + self.drop_path(mixed if self.gamma_1 is None else mixed * self.gamma_1)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else y * self.gamma_2)


class Downsample(nn.Module):
    """Halves a map and doubles its channels by a convolution. [B, H, W, C] -> [B, H/2, W/2, 2 C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(Conv2d(dim, 2 * dim, 3, 2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(x)


class Level(nn.Module):
    """Holds the blocks of one resolution, the way into windows and out of them, and the downsampling to the next."""

    blocks: nn.ModuleList
    downsample: nn.Module | None

    def __init__(self, config: MambaVisionConfig, level: int, rates: list[float]) -> None:
        super().__init__()
        dim, depth = config.dim(level), len(rates)
        self.enter: nn.Module = nn.Identity()
        self.leave: nn.Module = nn.Identity()
        if level < CONV_LEVELS:
            self.blocks = nn.ModuleList(ConvBlock(dim, config, rate) for rate in rates)
        else:
            windows = Windows(config.side(level), config.windows[level - CONV_LEVELS])
            self.enter, self.leave = EnterWindows(windows), LeaveWindows(windows)
            heads = config.num_heads[level - CONV_LEVELS]
            self.blocks = nn.ModuleList(
                Block(dim, config, rate, windows.count, heads if i >= (depth + 1) // 2 else None)
                for i, rate in enumerate(rates)
            )
        self.downsample = None if level == len(config.depths) - 1 else Downsample(dim)

    def steps(self, name: str) -> list[Stage]:
        """Returns a stage for each block, the first and the last with the windows, and one for the downsampling."""
        stages = []
        for i, block in enumerate(self.blocks):
            around = [*([self.enter] if i == 0 else []), block, *([self.leave] if i == len(self.blocks) - 1 else [])]
            stages.append(Stage(f"{name}.blocks.{i}", in_turn(*around), (f"{name}.blocks.{i}",)))
        if self.downsample is not None:
            stages.append(Stage(f"{name}.downsample", in_turn(self.downsample), (f"{name}.downsample",)))
        return stages


def in_turn(*modules: nn.Module) -> Callable[[Tensor], tuple[Tensor]]:
    """Returns the function of a stage that runs modules one after the other."""

    def run(x: Tensor) -> tuple[Tensor]:
        for module in modules:
            x = module(x)
        return (x,)

    return run


class MambaVision(StagedNetwork):
    """Classifies images: [B, channels, image_size, image_size] -> logits [B, num_classes]."""

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.check_images = CheckImages(config.channels, config.image_size)
        self.patch_embed = PatchEmbed(config)
        self.levels = nn.ModuleList(
            Level(config, level, rates) for level, rates in enumerate(drop_rates(config.depths, config.drop_path))
        )
        features = config.dim(len(config.depths) - 1)
        self.norm = Affine(features) if config.norm == "folded" else BatchNorm(features)
        self.pool, self.head = TokenMean(), Linear(features, config.num_classes)
        reset_linears_and_scans(self)

    def stages(self) -> list[Stage]:
        stages = [Stage("embed", self.embed, ("patch_embed",))]
        for i, level in enumerate(self.levels):
            assert isinstance(level, Level)
            stages += level.steps(f"levels.{i}")
        return [*stages, Stage("classify", self.classify, ("norm", "head"))]

    def embed(self, images: Tensor) -> tuple[Tensor]:
        return (self.patch_embed(self.check_images(images)),)

    def classify(self, x: Tensor) -> tuple[Tensor]:
        """Returns the logits of the mean of all normalized positions."""
        return (self.head(self.pool(self.norm(x.flatten(1, 2)))),)


def fold_norms(model: MambaVision) -> MambaVision:
    """Folds every batch norm into the convolution in front of it; the last one becomes a factor and a shift.

    Works in place and returns the network, which computes what it did in evaluation mode.
    """
    if model.config.norm == "folded":
        return model
    down = model.patch_embed.conv_down
    pairs: list[tuple[Any, nn.Sequential | ConvBlock, str]] = [(down[0], down, "1"), (down[3], down, "4")]
    for block in (module for module in model.modules() if isinstance(module, ConvBlock)):
        pairs += [(block.conv1, block, "norm1"), (block.conv2, block, "norm2")]
    for conv, parent, name in pairs:
        norm = parent.get_submodule(name)
        assert isinstance(norm, BatchNorm)
        fold_into(conv, norm)
        setattr(parent, name, nn.Identity())
    assert isinstance(model.norm, BatchNorm)
    model.norm = folded(model.norm)
    model.config = replace(model.config, norm="folded")
    return model
