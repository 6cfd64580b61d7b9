"""Defines the frame of classifiers whose blocks stand in levels, each of half the resolution of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from visq.models.layers import CheckImages, Conv2d, LayerNorm, Linear, TokenMean
from visq.models.stage import Stage, StagedNetwork


class Level(nn.Module):
    """Holds the blocks of one resolution and the downsampling to the next, if there is one."""

    blocks: nn.ModuleList
    downsample: nn.Module | None

    def __init__(self, blocks: nn.ModuleList, downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = blocks, downsample


class PatchStem(nn.Module):
    """Turns images [B, channels, H, W] into normalized maps [B, H/4, W/4, dim]."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv, self.norm = Conv2d(channels, dim, 4, 4), LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images.permute(0, 2, 3, 1)))


def drop_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Returns the drop-path rate of every block by level, which grows evenly from 0 to `last`."""
    total, first, rates = sum(depths), 0, []
    for depth in depths:
        rates.append([last * i / max(total - 1, 1) for i in range(first, first + depth)])
        first += depth
    return rates


class LeveledClassifier(StagedNetwork):
    """Classifies images: [B, channels, H, W] -> logits [B, num_classes].

    Nothing in it belongs to a position, so that it takes any size. `image_size` is the size it was trained for, and the
    only one after a calibration with scales per token or step.

    Arguments:
        check_images: refuses other images than the network takes.
        patch_embed: images -> maps [B, H/4, W/4, dim].
        levels: from the finest resolution to the coarsest.
        features: channels of the last level.
    """

    def __init__(
        self,
        check_images: CheckImages,
        patch_embed: nn.Module,
        levels: Iterable[Level],
        features: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.check_images, self.patch_embed, self.layers = check_images, patch_embed, nn.ModuleList(levels)
        self.norm, self.pool, self.head = LayerNorm(features), TokenMean(), Linear(features, num_classes)

    def stages(self) -> list[Stage]:
        stages = [Stage("embed", self.embed, ("patch_embed",))]
        for i, level in enumerate(self.layers):
            assert isinstance(level, Level)
            steps: dict[str, nn.Module] = {f"layers.{i}.blocks.{j}": block for j, block in enumerate(level.blocks)}
            if level.downsample is not None:
                steps[f"layers.{i}.downsample"] = level.downsample
            stages += [Stage(name, lambda x, step=step: (step(x),), (name,)) for name, step in steps.items()]
        return [*stages, Stage("classify", self.classify, ("norm", "head"))]

    def embed(self, images: Tensor) -> tuple[Tensor]:
        return (self.patch_embed(self.check_images(images)),)

    def classify(self, x: Tensor) -> tuple[Tensor]:
        """Returns the logits of the mean of all normalized positions."""
        return (self.head(self.pool(self.norm(x.flatten(1, 2)))),)
