"""What transforms and learners want to know of the inputs of a stage's linears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from visq.models.layers import Linear


class LayerInputs:
    """Streamed statistics of one linear's input [B, L, C], as its site `in` hands it on (with its quantizer, if any).

    Attributes:
        maximum: [C] max |x_c|.
        moment: [C, C] float64 sum of x x^T over images and tokens; zeros unless asked for.
        rows: how many vectors were seen.
    """

    def __init__(self, channels: int, moment: bool, images: int, device: torch.device) -> None:
        self.maximum = torch.zeros(channels, device=device)
        self.moment = torch.zeros(channels, channels, dtype=torch.double, device=device)
        self.with_moment, self.images_left = moment, images
        self.rows = 0
        self.batches: list[Tensor] = []

    def add(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook."""
        x = output.detach()
        rows = x.flatten(0, -2)
        self.rows += rows.shape[0]
        self.maximum = torch.maximum(self.maximum, rows.abs().amax(0))
        if self.with_moment:
            self.moment += rows.T @ rows
        if self.images_left > 0:
            self.batches.append(x[: self.images_left].clone())
            self.images_left -= self.batches[-1].shape[0]

    def kept(self) -> Tensor:
        """The inputs of the first images."""
        return torch.cat(self.batches)


@torch.no_grad()
def observe_inputs(
    layers: Mapping[str, Linear],
    forward: Callable[..., tuple[Tensor, ...]],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    moment: bool = False,
    images: int = 0,
) -> dict[str, LayerInputs]:
    """Run a stage's `forward` over `batches`, watch the inputs of its `layers`, and keep those of the first images."""
    seen = {path: LayerInputs(layer.in_features, moment, images, layer.weight.device) for path, layer in layers.items()}
    handles = [layer.site_in.register_forward_hook(seen[path].add) for path, layer in layers.items()]
    try:
        for batch in batches:
            forward(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen
