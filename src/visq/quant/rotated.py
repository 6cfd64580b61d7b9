"""A quantizer in rotated coordinates (QuaRot, arXiv 2404.00456; MambaQuant, arXiv 2501.13484)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant.quantizer import Quantizer
from visq.quant.spec import Spec


@dataclass(frozen=True)
class Rotation:
    """x -> (x / divisor) R, and back.

    Attributes:
        matrix: R [C, C], orthogonal.
        divisor: [C] > 0, or None for ones.
    """

    matrix: Tensor
    divisor: Tensor | None = None

    def into(self, x: Tensor) -> Tensor:
        return (x if self.divisor is None else x / self.divisor) @ self.matrix

    def back(self, x: Tensor) -> Tensor:
        x = x @ self.matrix.T
        return x if self.divisor is None else x * self.divisor

    def of_weight(self) -> Rotation:
        """The rotation of the weight that meets the activation: x W^T = ((x / divisor) R) ((W divisor) R)^T."""
        return Rotation(self.matrix, None if self.divisor is None else 1 / self.divisor)


class RotatedQuantizer(Quantizer):
    """A `Quantizer` of (x / divisor) R along x's last axis; decoding turns back.

    Integer form: the codes are those of the rotated tensor. The rotations of a linear's input and weight cancel in the
    product, so that the integer GEMM and its scales are those of a plain linear; the weight's is done once, offline.
    The input's is a product with R at run time, n log n additions for a Hadamard matrix.

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
        identity = torch.eye(rotation.shape[-1])
        if rotation.shape != identity.shape or not torch.allclose(rotation @ rotation.T, identity, atol=1e-4):
            raise VisqError("a quantizer's rotation must be an orthogonal matrix")
        if divisor is not None and not (torch.isfinite(divisor).all() and (divisor > 0).all()):
            raise VisqError("a quantizer's divisor must be finite and positive")
        self.register_buffer("rotation", rotation.float().clone())
        self.register_buffer("divisor", None if divisor is None else divisor.float().clone())

    @staticmethod
    def around(quantizer: Quantizer, rotation: Rotation) -> RotatedQuantizer:
        """`quantizer`, made for rotated tensors, in place where the tensor is not rotated."""
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
