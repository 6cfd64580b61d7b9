"""Defines DVMSR (arXiv 2405.03008, https://github.com/nathan66666/DVMSR): super-resolution with Mamba-1 mixers.

This file is the worked example of docs/add-a-model.md, written from the checkpoint's keys and the results of the public
forward pass. Parameters keep the checkpoint's names. It supports the released variant only: `pixelshuffledirect`,
LayerNorm, one convolution after a group.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.family import Family, Shapes, need_tensors, register_family
from visq.models.layers import CheckImages, Conv2d, LayerNorm, PixelShuffle, Shift
from visq.models.ssm import MambaMixer
from visq.models.stage import Stage, StagedNetwork

#: channels -> mean subtracted from pixels in 0..1 and added back: DIV2K's for RGB, 0 for grey.
MEANS = {1: (0.0,), 3: (0.4488, 0.4371, 0.4040)}


@dataclass(frozen=True)
class DVMSRConfig:
    """Holds the geometry of a DVMSR: `depths` blocks in each group, images `upscale` times larger."""

    channels: int = 3
    embed_dim: int = 60
    depths: tuple[int, ...] = (2, 2, 2, 2)
    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    upscale: int = 4


class Block(nn.Module):
    """Computes mixer(norm(x)), without a residual. [B, H, W, C] -> same; the scan goes row by row."""

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"mixer.in_proj": "norm"}

    def __init__(self, config: DVMSRConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.embed_dim)
        self.mixer = MambaMixer(config.embed_dim, config.d_state, config.expand, config.d_conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x.flatten(1, 2))).unflatten(1, x.shape[1:3])


class Group(nn.Module):
    """Computes x + conv(blocks(x)); `DVMSR.stages` runs its parts."""

    def __init__(self, config: DVMSRConfig, depth: int) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(Block(config) for _ in range(depth))})
        self.conv = Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)


class DVMSR(StagedNetwork):
    """Enlarges images of any size: [B, channels, H, W] in 0..1 less the mean -> [B, channels, s H, s W] in 0..1."""

    def __init__(self, config: DVMSRConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.conv_first = Conv2d(config.channels, dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": LayerNorm(dim)})
        self.layers = nn.ModuleList(Group(config, depth) for depth in config.depths)
        self.norm_f = LayerNorm(dim)
        self.conv_after_body = Conv2d(dim, dim, 3, padding=1)
        self.check_images = CheckImages(config.channels, None, "DVMSR")
        self.shuffle, self.shift = PixelShuffle(config.upscale), Shift(MEANS[config.channels])
        self.upsample = nn.ModuleList([Conv2d(dim, config.channels * config.upscale**2, 3, padding=1)])
        for module in self.modules():
            if isinstance(module, MambaMixer):
                module.reset_parameters()

    def stages(self) -> list[Stage]:
        """Returns the steps of the forward pass.

        A step passes on the first features and the current features; inside a group, also the group's input.
        """
        stages = [Stage("embed", self.embed, ("conv_first", "patch_embed"))]
        for i, group in enumerate(self.layers):
            assert isinstance(group, Group)
            blocks = group.residual_group["blocks"]
            assert isinstance(blocks, nn.ModuleList)
            for j, block in enumerate(blocks):
                name = f"layers.{i}.residual_group.blocks.{j}"
                stages.append(Stage(name, partial(inside, block), (name,)))
            stages.append(Stage(f"layers.{i}.conv", partial(leave, group.conv), (f"layers.{i}.conv",)))
        return [*stages, Stage("reconstruct", self.reconstruct, ("norm_f", "conv_after_body", "upsample"))]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the first convolution's features before and after a norm, each [B, H, W, embed_dim]."""
        first = self.conv_first(self.check_images(images).permute(0, 2, 3, 1))
        return first, self.patch_embed["norm"](first)

    def reconstruct(self, first: Tensor, x: Tensor) -> tuple[Tensor]:
        """Returns the enlarged image [B, channels, s H, s W]."""
        x = self.upsample[0](self.conv_after_body(self.norm_f(x)) + first)
        return (self.shift(self.shuffle(x)).permute(0, 3, 1, 2),)


def inside(block: nn.Module, first: Tensor, *group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a block. `group` is (input of the group,), or (input of the group, features) after its first block."""
    return first, group[0], block(group[-1])


def leave(conv: nn.Module, first: Tensor, skip: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Ends a group: its convolution and its residual."""
    return first, skip + conv(x)


#: Finds the numbers of a group and of its block in a tensor's name.
_BLOCK = re.compile(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.")


def infer_dvmsr(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> DVMSRConfig:
    """Returns the geometry of a checkpoint. Raises VisqError unless it is of the released variant."""
    mixer = "layers.0.residual_group.blocks.0.mixer."
    ends = ("conv_first.weight", "layers.0.conv.weight", "upsample.0.weight")
    telling = {**dict.fromkeys(ends, 4), f"{mixer}A_log": 2, f"{mixer}conv1d.weight": 3}
    need_tensors("a DVMSR checkpoint", shapes, telling)
    if 0 in shapes["conv_first.weight"]:
        raise VisqError("not a DVMSR checkpoint: values missing or of another rank")
    dim, channels = shapes["conv_first.weight"][:2]
    inner, d_state = shapes[f"{mixer}A_log"]
    upscale = math.isqrt(shapes["upsample.0.weight"][0] // channels)
    if "conv_last.weight" in shapes or inner % dim or channels not in MEANS:
        raise VisqError("this DVMSR variant is not supported; supported: `pixelshuffledirect` on grey or RGB images")
    blocks = {match.groups() for name in shapes if (match := _BLOCK.match(name))}
    sizes = Counter(group for group, _ in blocks)
    depths = tuple(sizes[group] for group in sorted(sizes, key=int))
    return DVMSRConfig(channels, dim, depths, d_state, inner // dim, shapes[f"{mixer}conv1d.weight"][-1], upscale)


def preprocess(config: DVMSRConfig) -> Preprocess:
    """Returns the transform for calibration: resize to 56, crop 48 pixels, values in 0..1 less the mean."""
    return Preprocess(48, 56, MEANS[config.channels], (1.0,) * config.channels, channels=config.channels)  # type: ignore[arg-type]


register_family(
    Family(
        "dvmsr",
        "DVMSR",
        DVMSRConfig,
        DVMSR,
        infer_dvmsr,
        preprocess=preprocess,
        any_size=True,
        roles={"ends": ("?*.conv", "?conv_*", "?upsample.*")},
        repeats=(r"^layers\.\d+\.(residual_group\.blocks\.\d+\.)?(mixer\.)?",),
    )
)
