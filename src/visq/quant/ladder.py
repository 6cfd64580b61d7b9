"""The decay ladder: a code of A without bits. Mamba starts from A[c, n] = -(n + 1), and training moves A little."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.ladder import ladder_log
from visq.integer.spec import Spec
from visq.quant.scales import check_scale
from visq.quant.site import SiteQuantizer
from visq.quant.site_error import rounding_db


class LadderQuantizer(SiteQuantizer):
    """Replaces A_log [C, N] by log(scale[c] (n + 1)); every code is 0.

    Integer form: the scan computes r = exp(-delta scale[c]) once a channel and step, and Abar[c, n] = r^(n + 1) by
    products (docs/integer-semantics.md).

    Arguments:
        spec: of granularity `ladder`; its bits are those of a scan that has strayed too far from it.
        scale: [C] > 0 float32.
    """

    scale: Tensor

    def __init__(self, spec: Spec, scale: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", scale.float().clone())
        self.check()

    def check(self) -> None:
        """Raises VisqError where a scale is not positive or has no inverse in float32."""
        check_scale("a ladder's scale", self.scale)

    def code_range(self) -> tuple[int, int]:
        """Returns the smallest and the largest code, which are 0."""
        return 0, 0

    def encode(self, x: Tensor) -> Tensor:
        """Returns the codes of x, int16, same shape: zeros."""
        if x.ndim != 2 or len(x) != len(self.scale):
            raise VisqError(f"this ladder is for A_log of {len(self.scale)} channels, got {list(x.shape)}")
        return torch.zeros_like(x, dtype=torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the ladder [C, N] float32; only the shape of the codes matters."""
        values = ladder_log(self.scale.detach().cpu().numpy(), codes.shape[-1])
        return torch.from_numpy(values).to(self.scale.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def rounding_db(self, x: Tensor) -> float:
        """Returns the SQNR [dB] of A = -exp(x), which the scan reads, column by column; x [C, N]."""
        return rounding_db(_OfA(self), -x.exp())

    def extra_repr(self) -> str:
        return f"channels={len(self.scale)}"


class _OfA:
    """A ladder as a quantizer of A instead of A_log."""

    def __init__(self, ladder: LadderQuantizer) -> None:
        self.ladder = ladder

    def encode(self, x: Tensor) -> Tensor:
        return self.ladder.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        return -self.ladder.decode(codes).exp()


def fit(A_log: Tensor) -> tuple[Tensor, float]:
    """Returns the scale [C] of the nearest ladder, the mean of log(-A / (n + 1)), and the residual's deviation.

    A_log [C, N], float32.
    """
    steps = torch.arange(1.0, A_log.shape[1] + 1, dtype=torch.double, device=A_log.device)
    away = A_log.double() - steps.log()
    centre = away.mean(1)
    return centre.exp().float(), float((away - centre[:, None]).square().mean().sqrt())
