"""A quantizer in rotated coordinates (QuaRot, arXiv 2404.00456; MambaQuant, arXiv 2501.13484)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.arithmetic import runs_of
from visq.integer.scales import fault_of_scale
from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Rotation:
    """Turns x into (x / divisor) R, and back.

    R [C, C] is orthogonal: R = H x matrix, a Kronecker product with Sylvester's +-1 matrix H of order C / m, a power of
    two. A dense R is its own matrix, with m = C.

    Attributes:
        matrix: [m, m], orthogonal rows of squared length m / C.
        divisor: [C], not 0; carries the random signs of a Hadamard matrix. None for ones, and then C = m.
    """

    matrix: Tensor
    divisor: Tensor | None = None

    def to(self, device: torch.device) -> Rotation:
        return Rotation(self.matrix.to(device), None if self.divisor is None else self.divisor.to(device))

    def into(self, x: Tensor) -> Tensor:
        x = x if self.divisor is None else x / self.divisor
        blocks = x.unflatten(-1, (-1, len(self.matrix)))
        return (_butterflies(blocks) @ self.matrix).flatten(-2)

    def back(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, len(self.matrix)))
        x = _butterflies(blocks @ self.matrix.T).flatten(-2)
        return x if self.divisor is None else x * self.divisor

    def of_weight(self) -> Rotation:
        """Returns the rotation of the weight that x meets: x W^T = ((x / divisor) R) ((W divisor) R)^T."""
        return Rotation(self.matrix, None if self.divisor is None else 1 / self.divisor)


def _butterflies(x: Tensor) -> Tensor:
    """Returns H times x [..., P, m] along P, a power of two."""
    half = 1
    while half < x.shape[-2]:
        pairs = x.unflatten(-2, (-1, 2, half))
        first, second = pairs.select(-3, 0), pairs.select(-3, 1)
        x = torch.stack([first + second, first - second], -3).flatten(-4, -2)
        half *= 2
    return x


class RotatedQuantizer(Quantizer):
    """Quantizes (x / divisor) R along x's last axis; decoding turns back.

    Integer form: the codes are those of the rotated tensor. The rotations of a linear's input and weight cancel in the
    product, so that the integer GEMM and its scales are those of a plain linear; the weight's is done once, offline.
    The input's runs with the network: log2(C / m) additions and m products an element.

    Arguments:
        rotation, divisor: the tensors of a `Rotation`.
        others: as in `Quantizer`; `smooth` divides after the rotation.
    """

    rotation: Tensor
    divisor: Tensor | None

    def __init__(
        self,
        spec: Spec,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        rotation: Tensor,
        divisor: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, scale, zero_point, **options)
        size = rotation.shape[-1]
        runs = runs_of(size if divisor is None else len(divisor), size)
        identity = torch.eye(size, device=rotation.device) / max(runs, 1)
        if not runs or rotation.shape != identity.shape or not _close(rotation @ rotation.T, identity):
            raise VisqError("a quantizer's rotation must be an orthogonal matrix")
        if divisor is not None and fault_of_scale(divisor.detach().abs().float().cpu().numpy()) is not None:
            raise VisqError("a quantizer's divisor must be finite and not 0, and so must 1 / divisor")
        self.register_buffer("rotation", rotation.float().clone())
        self.register_buffer("divisor", None if divisor is None else divisor.float().clone())

    @staticmethod
    def around(quantizer: Quantizer, rotation: Rotation) -> RotatedQuantizer:
        """Returns `quantizer`, which was made for rotated tensors, as one that takes the tensor unrotated."""
        parts = {name: buffer for name, buffer in quantizer.named_buffers()}
        return RotatedQuantizer(
            quantizer.spec, axis=quantizer.axis, rotation=rotation.matrix, divisor=rotation.divisor, **parts
        )

    def coordinates(self) -> Rotation:
        return Rotation(self.rotation, self.divisor)

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(self.coordinates().into(x))

    def integers_again(self, x: Tensor) -> Tensor:
        return super().integers_again(self.coordinates().into(x))

    def decode(self, codes: Tensor) -> Tensor:
        return self.coordinates().back(super().decode(codes))

    def forward(self, x: Tensor) -> Tensor:
        return self.coordinates().back(super().forward(self.coordinates().into(x)))


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-4 * expected.max().item())
