"""Defines VMamba for dense prediction: its feature maps, and a head that gives each position a class.

The backbone is that of https://github.com/MzeroMiko/VMamba's segmentation: a norm `outnorm<i>` reads the map of each
level, in front of the downsampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from visq.models.dense_heads import LightHead
from visq.models.family import need_backbone
from visq.models.layers import CheckImages, LayerNorm
from visq.models.levels import Level
from visq.models.ssm import reset_linears_and_scans
from visq.models.stage import Stage, StagedNetwork
from visq.models.upernet import UperNetHead, fold_head
from visq.models.vmamba import Stem, VMambaConfig, make_levels

#: Fields that the backbone has in common with a classifier.
BACKBONE = ("channels", "embed_dim", "depths", "d_state", "expand", "mlp_ratio", "forward_type")


@dataclass(frozen=True)
class VMambaSegConfig:
    """Holds the geometry of a VMamba with a head for dense prediction.

    Attributes:
        embed_dim, depths, d_state, expand, mlp_ratio, forward_type: as in `VMambaConfig`.
        head, head_dim: kind of the head, and its channels.
        norm: of UperNet's head, `batch` as trained, `folded` after `fold_norms`.
    """

    channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    expand: int = 1
    mlp_ratio: int = field(default=4, metadata={"minimum": 0})
    forward_type: str = field(default="v05_noz", metadata={"choices": ("v0", "v05_noz")})
    head: str = field(default="light", metadata={"choices": ("light", "upernet")})
    head_dim: int = 64
    norm: str = field(default="batch", metadata={"choices": ("batch", "folded")})
    num_classes: int = 150
    drop_path: float = 0.0

    @property
    def backbone(self) -> VMambaConfig:
        """Returns the geometry of the classifier with this backbone."""
        return VMambaConfig(
            image_size=2 ** (1 + len(self.depths)),
            num_classes=self.num_classes,
            drop_path=self.drop_path,
            **{name: getattr(self, name) for name in BACKBONE},
        )

    @property
    def dims(self) -> list[int]:
        """Returns the channels of each level."""
        return [self.embed_dim * 2**i for i in range(len(self.depths))]


#: Builds the head of a geometry, by its kind.
HEADS: dict[str, Callable[[VMambaSegConfig], nn.Module]] = {
    "light": lambda config: LightHead(config.dims, config.head_dim, config.num_classes),
    "upernet": lambda config: UperNetHead(config.dims, config.head_dim, config.num_classes, config.norm == "folded"),
}


class Backbone(nn.Module):
    """Holds the parts of a VMamba without its classifier, and a norm for the map of each level."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.patch_embed = Stem(config)
        self.layers = nn.ModuleList(make_levels(config))
        self.outnorms = nn.ModuleList(LayerNorm(config.embed_dim * 2**i) for i in range(len(config.depths)))


class VMambaSeg(StagedNetwork):
    """Gives each position of an image a class: [B, channels, H, W] -> logits [B, num_classes, H / 4, W / 4].

    It takes images of any size; sides that are no multiples of 4 round up.
    """

    def __init__(self, config: VMambaSegConfig) -> None:
        super().__init__()
        self.config, backbone = config, config.backbone
        multiple = 2 ** (1 + len(config.depths)) if backbone.gated else 1
        self.check_images = CheckImages(config.channels, None, "VMamba", multiple)
        self.backbone = Backbone(backbone)
        self.decode_head = HEADS[config.head](config)
        reset_linears_and_scans(self)

    def stages(self) -> list[Stage]:
        """Returns the steps of the forward pass. A step passes on the maps of the levels so far and the current map."""
        stages = [Stage("embed", self.embed, ("backbone.patch_embed",))]
        levels = list(self.backbone.layers)
        for i, (level, norm) in enumerate(zip(levels, self.backbone.outnorms, strict=True)):
            assert isinstance(level, Level)
            name = f"backbone.layers.{i}"
            for j, block in enumerate(level.blocks):
                stages.append(Stage(f"{name}.blocks.{j}", partial(on_last, block), (f"{name}.blocks.{j}",)))
            modules = (f"backbone.outnorms.{i}", *((f"{name}.downsample",) if level.downsample is not None else ()))
            stages.append(Stage(f"{name}.leave", partial(leave, norm, level.downsample), modules))
        return [*stages, Stage("segment", self.segment, ("decode_head",))]

    def take_backbone(self, classifier: nn.Module) -> None:
        """Copies the stem and the levels of a trained classifier. Raises VisqError for another geometry."""
        need_backbone(classifier.config, self.config.backbone, BACKBONE)
        weights = {n: t for n, t in classifier.state_dict().items() if n.startswith(("patch_embed.", "layers."))}
        left = self.backbone.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys and all(name.startswith("outnorms.") for name in left.missing_keys)

    def embed(self, images: Tensor) -> tuple[Tensor]:
        return (self.backbone.patch_embed(self.check_images(images)),)

    def segment(self, *maps: Tensor) -> tuple[Tensor]:
        """Returns the logits [B, num_classes, H / 4, W / 4] of the levels' maps."""
        return (self.decode_head(*maps).permute(0, 3, 1, 2),)


def fold_norms(model: VMambaSeg) -> VMambaSeg:
    """Folds the batch norms of UperNet's head into its convolutions, in place, and returns the network."""
    if isinstance(model.decode_head, UperNetHead):
        fold_head(model.decode_head)
        model.config = replace(model.config, norm="folded")
    return model


def on_last(block: nn.Module, *maps: Tensor) -> tuple[Tensor, ...]:
    """Runs a block on the current map, which is the last one."""
    return (*maps[:-1], block(maps[-1]))


def leave(norm: nn.Module, downsample: nn.Module | None, *maps: Tensor) -> tuple[Tensor, ...]:
    """Ends a level: its normalized map, and the first map of the next level."""
    further = () if downsample is None else (downsample(maps[-1]),)
    return (*maps[:-1], norm(maps[-1]), *further)
