"""Defines layers with sites: PyTorch arithmetic whose inputs, weights and outputs can be quantized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq import ops
from visq.errors import VisqError
from visq.quant.scan import QuantizedScan, ScanSites
from visq.quant.site import INNER, WEIGHT, Site


class Linear(nn.Linear):
    """Multiplies as `nn.Linear`, with sites `in`, `weight`, `out`. [..., in_features] -> [..., out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.site_in, self.site_weight, self.site_out = Site(), Site(WEIGHT), Site()

    def forward(self, x: Tensor) -> Tensor:
        return self.site_out(F.linear(self.site_in(x), self.site_weight(self.weight), self.bias))


class CausalConv1d(nn.Conv1d):
    """Convolves tokens causally and depthwise, with sites `in`, `weight`, `out`. [B, L, C] -> [B, L, C].

    The parameters keep `nn.Conv1d`'s shapes ([C, 1, K] and [C]); only the layout of the input differs (channels last).

    Attributes:
        ahead: tokens after its own that a token reads.
    """

    ahead = 0

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, padding=kernel_size - 1)
        self.site_in, self.site_weight, self.site_out = Site(), Site(WEIGHT), Site()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.site_weight(self.weight).squeeze(1)
        return self.site_out(ops.causal_conv1d(self.site_in(x), weight, self.bias))


class SymmetricConv1d(CausalConv1d):
    """Convolves tokens depthwise as padding `same` does: K // 2 tokens ahead of the own one are read. No bias."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, kernel_size)
        self.register_parameter("bias", None)
        self.ahead = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        weight = self.site_weight(self.weight).squeeze(1)
        later = F.pad(self.site_in(x), (0, 0, 0, self.ahead))
        return self.site_out(ops.causal_conv1d(later, weight, None)[:, self.ahead :])


class Conv2d(nn.Conv2d):
    """Convolves maps, with sites `in`, `weight`, `out` that see tokens [B, H W, C].

    [B, H, W, C] -> [B, H', W', C'] (channels last, `nn.Conv2d`'s parameters).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.site_in, self.site_weight, self.site_out = Site(), Site(WEIGHT), Site()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.site_in(x.flatten(1, 2)).unflatten(1, x.shape[1:3]).permute(0, 3, 1, 2)
        weight = self.site_weight(self.weight)
        maps = F.conv2d(maps, weight, self.bias, self.stride, self.padding, groups=self.groups)
        maps = maps.permute(0, 2, 3, 1)
        return self.site_out(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3])


class Elementwise(nn.Module):
    """Applies a function to each element, with a site `out`. Subclasses define the function.

    Attributes:
        instruction: its name among the engine's row instructions (`visq.integer.instructions.ELEMENTWISE`).
    """

    instruction: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.site_out = Site()

    def function(self, x: Tensor) -> Tensor:
        """Returns the function of x in float32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.site_out(self.function(x))


class SiLU(Elementwise):
    """Computes x * sigmoid(x), with a site `out`."""

    instruction = "silu"

    def function(self, x: Tensor) -> Tensor:
        return F.silu(x)


class GELU(Elementwise):
    """Computes x * Phi(x), with a site `out`."""

    instruction = "gelu"

    def function(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class TanhGELU(Elementwise):
    """Computes GELU's approximation by tanh, with a site `out`."""

    instruction = "gelu_tanh"

    def function(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class ReLU(Elementwise):
    """Computes max(x, 0), with a site `out`."""

    instruction = "relu"

    def function(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Sigmoid(Elementwise):
    """Computes 1 / (1 + e^-x), with a site `out`."""

    instruction = "sigmoid"

    def function(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Softplus(nn.Module):
    """Computes log(1 + e^x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


class PixelShuffle(nn.Module):
    """Makes a map `scale` times as high and wide of scale^2 times as many channels, as `F.pixel_shuffle`.

    [B, H, W, C scale^2] -> [B, scale H, scale W, C]
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.scale).permute(0, 2, 3, 1)


class Shift(nn.Module):
    """Adds a fixed number to each channel, which is no parameter of the network. [..., C] -> [..., C]."""

    def __init__(self, values: Iterable[float]) -> None:
        super().__init__()
        self.values = tuple(values)

    def forward(self, x: Tensor) -> Tensor:
        return x + x.new_tensor(self.values)


class TokenMean(nn.Module):
    """Averages all tokens. [B, L, C] -> [B, C], or [B, 1, C] with `keep`."""

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=self.keep)


class GateChannels(nn.Module):
    """Multiplies all tokens by one factor a channel. [B, L, C], [B, 1, C] -> [B, L, C]."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class LayerNorm(nn.Module):
    """Computes (x - mean) / deviation * weight + bias over the last axis, in float32, with a site `out`."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.site_out = Site()

    def forward(self, x: Tensor) -> Tensor:
        return self.site_out(F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps))


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight over the last axis, in float32, with a site `out`."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.site_out = Site()

    def forward(self, x: Tensor) -> Tensor:
        return self.site_out(F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps))


class SelectiveScan(nn.Module):
    """Computes h_t = Abar_t h_{t-1} + Bbar_t u_t, y_t = C_t h_t with Abar = exp(delta A), Bbar = delta B.

    This is Mamba's eq. 2 with Vim's discretization. `softplus` turns the projection of delta into delta. The sites
    `delta`, `b`, `c`, `y` are ordinary activations. The kernel of the recurrence applies the quantizers of `abar`,
    `bbar`, `h` (`visq.quant.scan`).

    Arguments:
        a_log: the site of the parameter that A is made of; it belongs to the caller. Without it, A cannot be a ladder.
    """

    def __init__(self, a_log: Site | None = None) -> None:
        super().__init__()
        self.softplus = Softplus()
        self.site_delta, self.site_b, self.site_c, self.site_y = Site(), Site(), Site(), Site()
        self.site_abar, self.site_bbar, self.site_h = Site(INNER), Site(INNER), Site(INNER)
        sites = (self.site_delta, self.site_b, self.site_c, self.site_abar, self.site_bbar, self.site_h)
        self.recurrence = QuantizedScan(ScanSites(*sites, a_log))

    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Returns y [B, L, C] without the skip D u, from u, delta [B, L, C]; A [C, N]; B, C [B, L, N].

        All sequences are in scan order.
        """
        return self.site_y(self.recurrence(u, self.site_delta(delta), A, self.site_b(B), self.site_c(C)))


class DropPath(nn.Module):
    """Drops a sample's whole branch with probability `p` while training (stochastic depth)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.empty(x.shape[0], *(1,) * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class CheckImages(nn.Module):
    """Passes images [B, channels, size, size] on. Raises VisqError for any other shape.

    Arguments:
        size: pixels a side; None for a network that takes any size, [B, channels, H, W].
        title: the network's name in messages.
        multiple: a number that both sides must be multiples of.
    """

    def __init__(self, channels: int, size: int | None, title: str = "this model", multiple: int = 1) -> None:
        super().__init__()
        self.channels, self.size, self.title, self.multiple = channels, size, title, multiple

    def forward(self, images: Tensor) -> Tensor:
        if self.size is None:
            if images.ndim != 4 or images.shape[1] != self.channels:
                raise VisqError(f"{self.title} takes images [B, {self.channels}, H, W], got {list(images.shape)}")
            if any(side % self.multiple for side in images.shape[2:]):
                sides = "x".join(map(str, images.shape[2:]))
                raise VisqError(f"{self.title} takes images whose sides are multiples of {self.multiple}, got {sides}")
            return images
        shape = (self.channels, self.size, self.size)
        if images.shape[1:] != shape:
            wanted, found = ("x".join(map(str, size)) for size in (shape, images.shape[1:]))
            raise VisqError(
                f"{self.title} takes images of {wanted}, got {found}; its positions and per-token scales are made for "
                "that size"
            )
        return images
