"""Defines Vim for dense prediction: the maps of some of its layers, and a head that gives each patch a class.

There is no class token, and positions are resampled to the image's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.dense_heads import LightHead
from visq.models.family import need_backbone
from visq.models.layers import CheckImages, Conv2d, RMSNorm
from visq.models.positions import resize_positions
from visq.models.stage import Stage, StagedNetwork
from visq.models.vim import BiMambaMixer, Block, VimConfig

#: Fields that the backbone has in common with a classifier.
BACKBONE = ("patch_size", "stride", "channels", "embed_dim", "depth", "d_state", "expand", "d_conv")


@dataclass(frozen=True)
class VimSegConfig:
    """Holds the geometry of a Vim with a head for dense prediction.

    Attributes:
        grid: positions a side of the map that positions were trained for.
        patch_size, stride, channels, embed_dim, depth, d_state, expand, d_conv: as in `VimConfig`.
        maps: layers whose map the head reads, spread evenly; the last layer is one of them.
        head_dim: channels of the head.
    """

    grid: int = 14
    patch_size: int = 16
    stride: int = 16
    channels: int = 3
    embed_dim: int = 192
    depth: int = 24
    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    maps: int = 4
    head_dim: int = 64
    num_classes: int = 150
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.maps > self.depth:
            raise VisqError(f"maps {self.maps}: there are only {self.depth} layers")

    @property
    def side(self) -> int:
        """Returns the pixels a side of the image that positions were trained for."""
        return self.patch_size + (self.grid - 1) * self.stride

    @property
    def backbone(self) -> VimConfig:
        """Returns the geometry of the classifier with this backbone."""
        return VimConfig(image_size=self.side, **{name: getattr(self, name) for name in BACKBONE})

    @property
    def read(self) -> list[int]:
        """Returns the numbers of the layers whose maps the head reads."""
        return [(i + 1) * self.depth // self.maps - 1 for i in range(self.maps)]


class PatchMap(nn.Module):
    """Cuts images into patches with one strided convolution `proj`. [B, channels, H, W] -> [B, h, w, embed_dim]"""

    def __init__(self, config: VimSegConfig) -> None:
        super().__init__()
        self.proj = Conv2d(config.channels, config.embed_dim, config.patch_size, config.stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images.permute(0, 2, 3, 1))


class Positions(nn.Module):
    """Adds a table of positions that is resampled bilinearly to the map's size. [B, h, w, C] -> [B, h, w, C]

    Arguments:
        grid: positions a side of the table.
    """

    def __init__(self, grid: int, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, channels))

    def table(self) -> Tensor:
        """Returns the table as a map [1, grid, grid, C]."""
        return self.pos_embed.unflatten(1, (self.grid, self.grid))

    def forward(self, x: Tensor) -> Tensor:
        planes = self.table().permute(0, 3, 1, 2)
        found = F.interpolate(planes, tuple(x.shape[1:3]), mode="bilinear", align_corners=False)
        return x + found.permute(0, 2, 3, 1)


class VimSeg(StagedNetwork):
    """Gives each patch of an image a class: [B, channels, H, W] -> logits [B, num_classes, h, w].

    It takes images of any size; pixels beyond the last whole patch are not read.
    """

    def __init__(self, config: VimSegConfig) -> None:
        super().__init__()
        self.config, backbone = config, config.backbone
        self.check_images = CheckImages(config.channels, None, "Vim")
        self.patch_embed = PatchMap(config)
        self.positions = Positions(config.grid, config.embed_dim)
        rates = [0.0, *(config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth))]
        self.layers = nn.ModuleList(Block(backbone, rates[i]) for i in range(config.depth))
        self.outnorms = nn.ModuleList(RMSNorm(config.embed_dim) for _ in range(config.maps))
        dims = [config.embed_dim] * config.maps
        self.decode_head = LightHead(dims, config.head_dim, config.num_classes, one_size=True)
        self.reset_parameters()

    def stages(self) -> list[Stage]:
        """Returns the steps of the forward pass. A step passes on the maps so far, the branch and the residual."""
        stages = [Stage("embed", self.embed, ("patch_embed", "positions"))]
        norms = dict(zip(self.config.read, enumerate(self.outnorms), strict=True))
        for i, block in enumerate(self.layers):
            stages.append(Stage(f"layers.{i}", partial(on_positions, block), (f"layers.{i}",)))
            if i in norms:
                number, norm = norms[i]
                last = i == self.config.depth - 1
                stages.append(Stage(f"outnorms.{number}", partial(keep_map, norm, last), (f"outnorms.{number}",)))
        return [*stages, Stage("segment", self.segment, ("decode_head",))]

    def take_backbone(self, classifier: nn.Module) -> None:
        """Copies patches, positions and layers of a trained Vim. Raises VisqError for another geometry.

        The class token and its position are left out, and positions are resampled to `grid`.
        """
        need_backbone(classifier.config, self.config.backbone, BACKBONE)
        if not isinstance(classifier.config, VimConfig):
            raise VisqError("the backbone is not a Vim")
        tensors = classifier.state_dict()
        weights = {n: t for n, t in tensors.items() if n.startswith(("patch_embed.", "layers."))}
        found = resize_positions(tensors["pos_embed"], self.config.grid**2)
        middle = self.config.grid**2 // 2
        weights["positions.pos_embed"] = torch.cat([found[:, :middle], found[:, middle + 1 :]], dim=1)
        left = self.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys
        assert all(name.startswith(("outnorms.", "decode_head.")) for name in left.missing_keys)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the map of patches with positions, and an empty residual stream, each [B, h, w, embed_dim]."""
        x = self.positions(self.patch_embed(self.check_images(images)))
        return x, torch.zeros_like(x)

    def segment(self, *maps: Tensor) -> tuple[Tensor]:
        """Returns the logits [B, num_classes, h, w] of the layers' maps."""
        return (self.decode_head(*maps).permute(0, 3, 1, 2),)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes as a Vim."""
        nn.init.trunc_normal_(self.positions.pos_embed, std=0.02)
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)
        assert self.patch_embed.proj.bias is not None
        self.patch_embed.proj.bias.zero_()
        for module in self.modules():
            if isinstance(module, BiMambaMixer):
                module.reset_parameters(self.config.depth)


def on_positions(block: Callable[..., tuple[Tensor, Tensor]], *state: Tensor) -> tuple[Tensor, ...]:
    """Runs a block on branch and residual, which are the last two maps, as sequences of their positions."""
    *maps, hidden, residual = state
    size = hidden.shape[1:3]
    hidden, residual = block(hidden.flatten(1, 2), residual.flatten(1, 2))
    return *maps, hidden.unflatten(1, size), residual.unflatten(1, size)


def keep_map(norm: nn.Module, last: bool, *state: Tensor) -> tuple[Tensor, ...]:
    """Adds the normalized map of a layer to the maps that the head reads; the last one ends branch and residual."""
    *maps, hidden, residual = state
    kept = (*maps, norm(hidden + residual))
    return kept if last else (*kept, hidden, residual)
