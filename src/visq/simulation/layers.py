"""Computes each layer of a deployed network: one function for each class, as in `visq.lowering.layers`.

Sites round as before. A layer takes the codes of its rounded input, adds up integers, and converts the sums to float32
as docs/integer-semantics.md says. `visq.integer.forms` chooses the layer's form, for the engine as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from visq import ops
from visq.integer.forms import IntegerConv1d, IntegerConv2d
from visq.integer.resampling import parts, taps
from visq.models.attention import Attend
from visq.models.dense_heads import AveragePool, Resize
from visq.models.layers import (
    CausalConv1d,
    Conv2d,
    Elementwise,
    LayerNorm,
    Linear,
    RMSNorm,
    SelectiveScan,
    Softplus,
    SymmetricConv1d,
    TokenMean,
)
from visq.models.vim import PatchConv2d
from visq.models.vim_seg import Positions
from visq.ops import exact
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import Site
from visq.simulation import products
from visq.simulation.products import Dense, Product, cached, codes_of

Array = NDArray[np.generic]
Function = TypeVar("Function", bound=Callable[..., Any])

DEPLOYED: dict[type[nn.Module], Callable[..., Any]] = {}


def deployed(layer: type[nn.Module]) -> Callable[..., Any] | None:
    """Returns the function that computes deployed modules of a class; None for classes that `deploy` leaves."""
    return elementwise if issubclass(layer, Elementwise) else DEPLOYED.get(layer)


def deploys(layer: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the function that computes deployed modules of a class: function(module, *inputs) -> output."""

    def decorate(function: Function) -> Function:
        DEPLOYED[layer] = function
        return function

    return decorate


@deploys(Site)
def site(site: Site, x: Tensor) -> Tensor:
    """Rounds x as the engine does, which treats NaN as the largest code and rotates in its own order of sums."""
    if isinstance(site.quantizer, RotatedQuantizer) and not site.baked:
        rotation = site.quantizer.coordinates()
        turned = nan_as_largest(exact.rotate(x, rotation.matrix, rotation.divisor))
        return rotation.back(Quantizer.forward(site.quantizer, turned))
    rounds = site.quantizer is not None and not site.baked
    return Site.forward(site, nan_as_largest(x) if rounds else x)


def nan_as_largest(x: Tensor) -> Tensor:
    """Returns x with NaN replaced by infinity: the engine rounds both to the largest code."""
    if not x.sum().isnan():  # no NaN; one sum is cheaper than a test of every element
        return x
    return x.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


@deploys(Linear)
def linear(module: Linear, x: Tensor) -> Tensor:
    return matrix_product(module, module.site_in(x))


@deploys(PatchConv2d)
def patch_conv2d(module: PatchConv2d, images: Tensor) -> Tensor:
    return matrix_product(module, module.site_in(images), windows=True)


@deploys(Conv2d)
def conv2d(module: Conv2d, x: Tensor) -> Tensor:
    """Convolves a map x [B, H, W, C] -> [B, H', W', C'] float32."""
    x = module.site_in(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
    sizes = zip(x.shape[1:3], module.kernel_size, module.stride, padding_of(module), strict=True)
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes)
    if module.groups == 1:
        rows = matrix_product(module, x.permute(0, 3, 1, 2), windows=True)
    else:
        rows = depthwise_conv2d(module, x)
    return rows.unflatten(1, (height, width))


def on_device(values: Array, x: Tensor) -> Tensor:
    """Returns numbers of a form where x is."""
    return torch.from_numpy(values).to(x.device)


def padding_of(module: PatchConv2d | Conv2d) -> tuple[int, int]:
    """Returns the zeros around a map, along its height and its width."""
    padding = module.padding
    assert not isinstance(padding, str)
    return padding[0], padding[1]


def matrix_product(module: Dense, x: Tensor, windows: bool = False) -> Tensor:
    """Returns the module's matrix product with x, already rounded; with `windows`, over the windows of a map."""
    product = cached(module, lambda: products.product(module))
    rows = product.integers(x) if isinstance(product, Product) else x
    if windows:
        assert not isinstance(module, Linear)
        rows = F.unfold(rows, module.kernel_size, padding=padding_of(module), stride=module.stride).transpose(1, 2)
    return module.site_out(product(rows))


@deploys(SymmetricConv1d)
@deploys(CausalConv1d)
def conv1d(module: CausalConv1d, x: Tensor) -> Tensor:
    """Convolves x [B, L, C], in integers or in float32 tap by tap. Returns [B, L, C] float32."""
    x = module.site_in(x)
    form, ahead = cached(module, lambda: products.conv1d(module)), module.ahead
    weight, bias = on_device(form.weight, x).float(), on_device(form.bias, x)
    if isinstance(form, IntegerConv1d):
        codes = F.pad(codes_of(module, x), (0, 0, 0, ahead))
        sums = ops.causal_conv1d(codes, weight, None)[:, ahead:]
        return module.site_out(sums * on_device(form.scale, x) + bias)
    taps = weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1 - ahead, ahead))
    total = torch.zeros_like(x)
    for k in range(taps):
        total = total + padded[:, k : k + x.shape[1]] * weight[:, k]
    return module.site_out(total + bias)


def depthwise_conv2d(module: Conv2d, x: Tensor) -> Tensor:
    """Convolves rounded x [B, H, W, C] channel by channel. Returns positions [B, H' W', C] float32."""
    form = cached(module, lambda: products.conv2d(module))
    weight, bias = on_device(form.weight, x).float(), on_device(form.bias, x)
    padding = padding_of(module)
    if isinstance(form, IntegerConv2d):
        maps = codes_of(module, x.flatten(1, 2)).unflatten(1, x.shape[1:3]).permute(0, 3, 1, 2)
        # Without cuDNN, whose transforms would round sums of whole numbers.
        with torch.backends.cudnn.flags(enabled=False):
            sums = F.conv2d(maps, weight[:, None], padding=padding, groups=module.groups)
        return module.site_out(sums.flatten(2).transpose(1, 2) * on_device(form.scale, x) + bias)
    kernel = weight.shape[1]
    padded = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = padded.shape[1] - kernel + 1, padded.shape[2] - kernel + 1
    total = x.new_zeros(len(x), height, width, x.shape[3])
    for i in range(kernel):
        for j in range(kernel):
            total = total + padded[:, i : i + height, j : j + width] * weight[:, i, j]
    return module.site_out((total + bias).flatten(1, 2))


def elementwise(module: Elementwise, x: Tensor) -> Tensor:
    return module.site_out(exact.unary(module.instruction, x))


@deploys(Softplus)
def softplus(module: Softplus, x: Tensor) -> Tensor:
    return exact.unary("softplus", x)


@deploys(TokenMean)
def token_mean(module: TokenMean, x: Tensor) -> Tensor:
    mean = exact.mean(x)
    return mean.unsqueeze(1) if module.keep else mean


@deploys(Resize)
def resize(module: Resize, x: Tensor, like: Tensor) -> Tensor:
    """Resamples a map bilinearly, in the order of `visq.integer.resampling`. [B, h, w, C] -> [B, H, W, C]"""
    x = module.site_in(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
    return resampled(x, like)


@deploys(Positions)
def positions(module: Positions, x: Tensor) -> Tensor:
    return x + resampled(module.table(), x)


def resampled(x: Tensor, like: Tensor) -> Tensor:
    """Returns a map x [B, h, w, C] resampled to the height and width of `like`."""
    (top, bottom, down), (left, right, across) = (
        tuple(on_device(part, x) for part in taps(*sides)) for sides in zip(x.shape[1:3], like.shape[1:3], strict=True)
    )
    across, down = across[None, None, :, None], down[None, :, None, None]
    rows = x[:, :, left] * (1 - across) + x[:, :, right] * across
    return rows[:, top] * (1 - down) + rows[:, bottom] * down


@deploys(AveragePool)
def average_pool(module: AveragePool, x: Tensor) -> Tensor:
    """Averages the parts of a map, each added up row by row. [B, h, w, C] -> [B, *size, C]"""
    down, across = (parts(*sides) for sides in zip(x.shape[1:3], module.size, strict=True))
    means = [exact.mean(x[:, top:bottom, a:b].flatten(1, 2).contiguous()) for top, bottom in down for a, b in across]
    return torch.stack(means, 1).unflatten(1, module.size)


@deploys(RMSNorm)
def rms_norm(module: RMSNorm, x: Tensor) -> Tensor:
    return module.site_out(exact.rms_norm(x.float(), module.weight, module.eps))


@deploys(LayerNorm)
def layer_norm(module: LayerNorm, x: Tensor) -> Tensor:
    return module.site_out(exact.layer_norm(x.float(), module.weight, module.bias, module.eps))


@deploys(Attend)
def attend(module: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attends in integers where all operands have codes, otherwise in float32. Returns [B, L, C] float32."""
    q, k, v = module.site_q(q), module.site_k(k), module.site_v(v)
    return products.attend(module, q, k, v)


@deploys(SelectiveScan)
def selective_scan(module: SelectiveScan, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scans in fixed point where the quantizers allow it, otherwise in float32. Returns y [B, L, C] float32."""
    delta, B, C = module.site_delta(delta), module.site_b(B), module.site_c(C)
    y = module.recurrence.in_fixed_point(u, delta, A, B, C)
    return module.site_y(exact.float_scan(u, delta, B, C, products.float_scan(module, A)) if y is None else y)
