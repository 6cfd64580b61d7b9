"""Rotation of a linear's input and weight, which cancels in their product.

QuaRot, arXiv 2404.00456; MambaQuant, arXiv 2501.13484.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.models.layers import Linear
from visq.quant.rotated import Rotation
from visq.quant.scales import SMALLEST
from visq.recipes.roles import matches
from visq.stages.layer_inputs import observe_inputs
from visq.stages.stage_run import StageRun
from visq.transforms.base import Transform, register
from visq.transforms.fold import divide_input, norm_before
from visq.transforms.hadamard import spreading_rotation
from visq.transforms.smooth import ends, smoothing


@register("rotate")
class Rotate(Transform):
    """Rotates linears: x W^T = (x R) (W R)^T.

    R is a randomized Hadamard matrix H: the channels of x R become alike unless they are correlated. With `klt`, R is
    K H with the eigenvectors K of the input's second moment, and all channels of x R have the same second moment. A
    norm's weight is folded into the linear that reads it first, so that R could move into the residual stream. A
    rotated linear is not smoothed by transforms after this one.

    Arguments:
        layers: patterns over the paths of linears.
        klt: align to the principal axes before the Hadamard matrix.
        smooth: divide by SmoothQuant's sigma at this exponent before rotating (MambaQuant's smooth-fused rotation).
        seed: of the random signs.
    """

    def __init__(
        self, layers: Sequence[str] | str, klt: bool = False, smooth: float | None = None, seed: int = 0
    ) -> None:
        self.patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        if smooth is not None and not 0 <= smooth <= 1:
            raise VisqError(f"rotate: smooth is an exponent in 0..1, not {smooth!r}")
        self.klt, self.smooth, self.seed = klt, smooth, seed

    def apply(self, run: StageRun) -> None:
        layers = {
            path: layer
            for path, layer in run.modules(Linear).items()
            if ends(path) <= run.specs.keys() and any(matches(pattern, path) for pattern in self.patterns)
        }
        for path, layer in layers.items():
            norm = norm_before(run, path)
            if norm is not None:
                divide_input(norm, layer, torch.where(norm.weight.abs() < SMALLEST, 1, norm.weight))
        observing = self.klt or self.smooth is not None
        inputs = observe_inputs(
            layers, run.stage.forward, run.inputs.batches(0 if not observing else None), moment=self.klt
        )
        for path, layer in layers.items():
            rotation = spreading_rotation(layer.in_features, self.seed).to(layer.weight.device)
            divisor = None
            if self.smooth is not None:
                divisor = smoothing(inputs[path].maximum, layer.weight, self.smooth)
            if self.klt:
                moment = inputs[path].moment
                axes = principal_axes(moment if divisor is None else moment / divisor / divisor[:, None])
                rotation = Rotation(rotation.into(axes), divisor)
            elif divisor is not None and rotation.divisor is not None:
                rotation = Rotation(rotation.matrix, rotation.divisor * divisor)
            for site, own in ((f"{path}.in", rotation), (f"{path}.weight", rotation.of_weight())):
                run.rotations[site] = own
                run.smooth.pop(site, None)


def principal_axes(moment: Tensor) -> Tensor:
    """Returns the eigenvectors [C, C] (columns) of a symmetric matrix, each with its largest entry positive."""
    axes = torch.linalg.eigh(moment.double()).eigenvectors
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return (axes * largest.sign()).float()
