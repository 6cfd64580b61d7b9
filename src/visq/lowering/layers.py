"""Lowers each layer with sites: one function for each class, over values instead of tensors.

Programs name a weight `<layer>.weight`. That is the name of its site and, where it is not quantized, of its parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from visq.integer import operations as ir
from visq.integer.operations import Constant
from visq.lowering.context import Lowering
from visq.lowering.values import Image, LoweringError, Map, Parameter, Value
from visq.models.layers import (
    CausalConv1d,
    Conv2d,
    Elementwise,
    LayerNorm,
    Linear,
    RMSNorm,
    SelectiveScan,
    Softplus,
    TokenMean,
)
from visq.models.vim import PatchConv2d
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import one_scale
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import Site

LAYERS: dict[type[nn.Module], Callable[..., Any]] = {}


def lowers(layer: type[nn.Module], by_row: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function that lowers modules of a class: (lowering, module, its name, *values) -> value.

    Arguments:
        by_row: whether the layer computes each row alone. It then also takes maps.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        LAYERS[layer] = functools.partial(each_row, function) if by_row else function
        return function

    return decorate


def lowering_of(layer: type[nn.Module]) -> Callable[..., Any] | None:
    """Returns the function that lowers modules of a class; None for classes that are traced through."""
    return functools.partial(each_row, elementwise) if issubclass(layer, Elementwise) else LAYERS.get(layer)


def each_row(function: Callable[..., Value], lowering: Lowering, module: nn.Module, name: str, x: Any) -> Any:
    """Applies a lowering function to a sequence, or to the positions of a map."""
    if isinstance(x, Map):
        return Map(function(lowering, module, name, x.value), x.height, x.width)
    return function(lowering, module, name, x)


def product(lowering: Lowering, module: Linear | PatchConv2d | Conv2d, name: str, x: Value) -> Value:
    """Rounds x and returns x W^T + bias. A convolution's weight also has one row for each output channel."""
    return matrix_product(lowering, module, name, lowering.site(x, f"{name}.in", module.site_in))


def matrix_product(lowering: Lowering, module: Linear | PatchConv2d | Conv2d, name: str, x: Value) -> Value:
    """Returns x W^T + bias for x that is already rounded.

    Raises:
        LoweringError: only one of the input and the weight is rotated.
    """
    if x.rotated != isinstance(module.site_weight.quantizer, RotatedQuantizer):
        raise LoweringError(f"{name}: of its input and weight one is rotated and the other is not")
    source = ir.Linear(input=lowering.builder.tensor(x), weight=f"{name}.weight", bias=bias(module, name))
    out = lowering.builder.operation(name, source, x.rows, len(module.weight), x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


def bias(module: Linear | PatchConv2d | CausalConv1d | Conv2d, name: str) -> str | None:
    """Returns the name of a module's bias, or None without one."""
    return f"{name}.bias" if module.bias is not None else None


@lowers(Linear, by_row=True)
def linear(lowering: Lowering, module: Linear, name: str, x: Value) -> Value:
    return product(lowering, module, name, x)


@lowers(PatchConv2d)
def patch_conv2d(lowering: Lowering, module: PatchConv2d, name: str, image: Image) -> Value:
    """Cuts patches, then multiplies matrices. Returns tokens [M, out_channels].

    Raises:
        LoweringError: the input is not the image, or the patches are not square.
    """
    if not isinstance(image, Image):
        raise LoweringError(f"{name}: a patch convolution reads the image")
    (patch, other), (stride, other_stride) = module.kernel_size, module.stride
    if patch != other or stride != other_stride:
        raise LoweringError(f"{name}: patches must be square")
    side = (lowering.size - patch) // stride + 1
    width = module.in_channels * patch * patch
    source = ir.Patches(patch=patch, stride=stride)
    pixels = lowering.builder.operation(f"{name}.patches", source, side * side, width)
    return product(lowering, module, name, pixels)


@lowers(Conv2d)
def conv2d(lowering: Lowering, module: Conv2d, name: str, x: Map | Image) -> Map:
    """Lowers a dense convolution to windows and a product, and a depthwise one to an operation of its own.

    Raises:
        LoweringError: the input is not a map or the image, a size is not square, or the groups are neither one nor one
            per channel.
    """
    if not isinstance(x, Map | Image):
        raise LoweringError(f"{name}: a convolution reads a map or the image")
    (kernel, other), (stride, other_stride) = module.kernel_size, module.stride
    padding = module.padding[0]
    assert isinstance(padding, int)
    side, other_side = (lowering.size,) * 2 if isinstance(x, Image) else (x.height, x.width)
    if (other, other_stride, module.padding[1], other_side) != (kernel, stride, padding, side) or padding >= kernel:
        raise LoweringError(f"{name}: kernel, stride, padding and map must be square, and windows meet the map")
    side = (side + 2 * padding - kernel) // stride + 1
    if module.groups == 1:
        out = dense_conv2d(lowering, module, name, x, kernel, stride, padding, side * side)
    elif module.groups == module.in_channels == module.out_channels and stride == 1 and kernel <= ir.MAX_KERNEL:
        tensor = lowering.builder.tensor(conv_input(lowering, module, name, rows_of(lowering, name, x)))
        source = ir.Conv2d(
            input=tensor, weight=f"{name}.weight", bias=bias(module, name), kernel=kernel, padding=padding
        )
        out = lowering.builder.operation(name, source, side * side, module.out_channels)
        out = lowering.site(out, f"{name}.out", module.site_out)
    else:
        raise LoweringError(f"{name}: convolutions in groups are depthwise, with stride 1, no larger than 15")
    return Map(out, side, side)


def dense_conv2d(
    lowering: Lowering, module: Conv2d, name: str, x: Map | Image, kernel: int, stride: int, padding: int, rows: int
) -> Value:
    """Cuts windows, then multiplies matrices.

    A site with one scale rounds after the cut: a window's values round as the map's do, and padding stays 0. Any other
    site rounds the map before the cut, and the product is in float32.
    """
    after = one_scale(module.site_in.quantizer)
    tensor = None
    if not after:
        tensor = lowering.builder.tensor(conv_input(lowering, module, name, rows_of(lowering, name, x)))
    elif isinstance(x, Map):
        tensor = lowering.builder.tensor(x.value)
    source = ir.Patches(patch=kernel, stride=stride, padding=padding, input=tensor)
    windows = lowering.builder.operation(f"{name}.patches", source, rows, module.in_channels * kernel * kernel)
    return (product if after else matrix_product)(lowering, module, name, windows)


def rows_of(lowering: Lowering, name: str, x: Map | Image) -> Value:
    """Returns the positions of a map, or the pixels of the image, as rows."""
    if isinstance(x, Map):
        return x.value
    source, pixels = ir.Patches(patch=1, stride=1), lowering.size**2
    return lowering.builder.operation(f"{name}.pixels", source, pixels, lowering.channels)


def conv_input(lowering: Lowering, module: CausalConv1d | Conv2d, name: str, x: Value) -> Value:
    """Rounds a convolution's input by its site. Raises LoweringError for a rotated site."""
    x = lowering.site(x, f"{name}.in", module.site_in)
    if x.rotated:
        raise LoweringError(f"{name}.in: a convolution over a rotated tensor")
    return x


@lowers(CausalConv1d)
def causal_conv1d(lowering: Lowering, module: CausalConv1d, name: str, x: Value) -> Value:
    tensor = lowering.builder.tensor(conv_input(lowering, module, name, x))
    source = ir.Conv1d(input=tensor, weight=f"{name}.weight", bias=bias(module, name), reverse=x.reverse)
    out = lowering.builder.operation(name, source, x.rows, x.width, x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


def elementwise(lowering: Lowering, module: Elementwise, name: str, x: Value) -> Value:
    return lowering.site(lowering.unary(module.instruction, x), f"{name}.out", module.site_out)


@lowers(Softplus, by_row=True)
def softplus(lowering: Lowering, module: Softplus, name: str, x: Value) -> Value:
    return lowering.unary("softplus", x)


@lowers(TokenMean)
def token_mean(lowering: Lowering, module: TokenMean, name: str, x: Value) -> Value:
    return lowering.builder.operation("mean", ir.Mean(input=lowering.builder.tensor(x)), 1, x.width)


@lowers(LayerNorm, by_row=True)
def layer_norm(lowering: Lowering, module: LayerNorm, name: str, x: Value) -> Value:
    weight, bias = Constant(name=f"{name}.weight"), Constant(name=f"{name}.bias")
    parameters = {"weight": weight, "bias": bias, "eps": module.eps}
    out = Value("layer_norm", x.rows, x.width, (x,), parameters, x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


@lowers(RMSNorm, by_row=True)
def rms_norm(lowering: Lowering, module: RMSNorm, name: str, x: Value) -> Value:
    parameters = {"weight": Constant(name=f"{name}.weight"), "eps": module.eps}
    out = Value("rms_norm", x.rows, x.width, (x,), parameters, x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


@lowers(SelectiveScan)
def selective_scan(
    lowering: Lowering, module: SelectiveScan, name: str, u: Value, delta: Value, A: Parameter, B: Value, C: Value
) -> Value:
    delta = lowering.site(delta, f"{name}.delta", module.site_delta)
    B, C = lowering.site(B, f"{name}.b", module.site_b), lowering.site(C, f"{name}.c", module.site_c)
    tensor = lowering.builder.tensor

    def inner(key: str, site: Site) -> str | None:
        return None if site.quantizer is None else f"{name}.{key}"

    if (A.constant.name in lowering.ladders) != module.recurrence.sites.ladder:
        raise LoweringError(f"{name}: its a_log and {A.constant.name} are not one site; SelectiveScan takes A_log's")
    source = ir.Scan(
        u=tensor(u),
        delta=tensor(delta),
        A=A.constant,
        B=tensor(B),
        C=tensor(C),
        abar=inner("abar", module.site_abar),
        bbar=inner("bbar", module.site_bbar),
        h=inner("h", module.site_h),
        reverse=u.reverse,
    )
    out = lowering.builder.operation(name, source, u.rows, u.width, u.reverse)
    return lowering.site(out, f"{name}.y", module.site_y)


@lowers(Site)
def weight_site(lowering: Lowering, module: Site, name: str, x: Parameter) -> Parameter:
    """Lowers the site of a bare parameter: a quantized parameter becomes the site's codes."""
    if not isinstance(x, Parameter) or x.constant.functions:
        raise LoweringError(f"{name}: a bare site is for a parameter")
    if isinstance(module.quantizer, LadderQuantizer):
        lowering.ladders.add(name)
    return x if module.quantizer is None else Parameter(Constant(name=name), x.shape)
