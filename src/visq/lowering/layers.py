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
from visq.models.dense_heads import AveragePool, Resize
from visq.models.layers import (
    CausalConv1d,
    Conv2d,
    Elementwise,
    LayerNorm,
    Linear,
    PixelShuffle,
    RMSNorm,
    SelectiveScan,
    Shift,
    Softplus,
    SymmetricConv1d,
    TokenMean,
)
from visq.models.vim import PatchConv2d
from visq.models.vim_seg import Positions
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
    out = lowering.builder.operation(name, source, x.rows, len(module.weight), x.reverse, x.length)
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
    down, across = ((side - patch) // stride + 1 for side in lowering.size)
    width = module.in_channels * patch * patch
    source = ir.Patches(patch=patch, stride=stride)
    pixels = lowering.builder.operation(f"{name}.patches", source, down * across, width)
    return product(lowering, module, name, pixels)


@lowers(Conv2d)
def conv2d(lowering: Lowering, module: Conv2d, name: str, x: Map | Image) -> Map:
    """Lowers a convolution that mixes all channels, or a depthwise one.

    Raises:
        LoweringError: the input is not a map or the image, windows do not meet the map, or the groups are neither one
            nor one per channel.
    """
    if not isinstance(x, Map | Image):
        raise LoweringError(f"{name}: a convolution reads a map or the image")
    sides = lowering.size if isinstance(x, Image) else (x.height, x.width)
    sizes = list(zip(sides, module.kernel_size, module.stride, padding_of(name, module), strict=True))
    if any(padding >= kernel or kernel > side + 2 * padding for side, kernel, _, padding in sizes):
        raise LoweringError(f"{name}: its windows do not meet a map of {sides[0]} x {sides[1]}")
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side, kernel, stride, padding in sizes)
    convolve = dense_conv2d if module.groups == 1 else depthwise_conv2d
    return Map(convolve(lowering, module, name, x, height * width), height, width)


def padding_of(name: str, module: Conv2d) -> tuple[int, int]:
    """Returns the zeros along height and width. Raises LoweringError for padding by name, or of another kind."""
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros" or any(size != 1 for size in module.dilation):
        raise LoweringError(f"{name}: a convolution pads with a given number of zeros, and is not dilated")
    return padding[0], padding[1]


def dense_conv2d(lowering: Lowering, module: Conv2d, name: str, x: Map | Image, rows: int) -> Value:
    """Lowers a convolution that mixes all channels.

    Over a map it is one operation. Windows of the image are rounded after they are cut, which is the same where one
    scale rounds all of it; other sites round the pixels first.
    """
    kernel, stride, padding = module.kernel_size, module.stride, padding_of(name, module)
    if isinstance(x, Image) and one_scale(module.site_in.quantizer) and len({*kernel}) == len({*stride}) == 1:
        source = ir.Patches(patch=kernel[0], stride=stride[0], padding=padding[0])
        if padding[0] == padding[1]:
            elements = module.in_channels * kernel[0] * kernel[1]
            return product(
                lowering, module, name, lowering.builder.operation(f"{name}.patches", source, rows, elements)
            )
    if lowering.stored_windows and len({*kernel}) == len({*stride}) == len({*padding}) == 1:
        return product_of_windows(lowering, module, name, x, rows)
    dense = ir.DenseConv2d(
        input=map_input(lowering, module, name, x),
        weight=f"{name}.weight",
        bias=bias(module, name),
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=padding,
    )
    out = lowering.builder.operation(name, dense, rows, module.out_channels)
    return lowering.site(out, f"{name}.out", module.site_out)


def product_of_windows(lowering: Lowering, module: Conv2d, name: str, x: Map | Image, rows: int) -> Value:
    """Cuts windows, stores them, and multiplies matrices. A site with one scale rounds after the cut, others before."""
    kernel, stride, padding = module.kernel_size[0], module.stride[0], padding_of(name, module)[0]
    if isinstance(x, Map) and one_scale(module.site_in.quantizer):
        multiply, tensor = product, lowering.builder.tensor(x.value)
    else:
        multiply, tensor = matrix_product, map_input(lowering, module, name, x)
    source = ir.Patches(patch=kernel, stride=stride, padding=padding, input=tensor)
    windows = lowering.builder.operation(f"{name}.patches", source, rows, module.in_channels * kernel * kernel)
    return multiply(lowering, module, name, windows)


def depthwise_conv2d(lowering: Lowering, module: Conv2d, name: str, x: Map | Image, rows: int) -> Value:
    """Lowers a convolution of each channel by itself. Raises LoweringError for the kinds that the engine lacks."""
    (kernel, other), padding = module.kernel_size, padding_of(name, module)
    depthwise = module.groups == module.in_channels == module.out_channels and module.stride == (1, 1)
    if not depthwise or kernel != other or padding[0] != padding[1] or kernel > ir.MAX_KERNEL:
        raise LoweringError(f"{name}: convolutions in groups are depthwise, square, with stride 1, no larger than 15")
    tensor = map_input(lowering, module, name, x)
    source = ir.Conv2d(
        input=tensor, weight=f"{name}.weight", bias=bias(module, name), kernel=kernel, padding=padding[0]
    )
    out = lowering.builder.operation(name, source, rows, module.out_channels)
    return lowering.site(out, f"{name}.out", module.site_out)


def map_input(lowering: Lowering, module: Conv2d, name: str, x: Map | Image) -> str:
    """Returns the tensor of a convolution's input: a map, or the pixels of the image as one, rounded by the site."""
    if isinstance(x, Image):
        height, width = lowering.size
        source = ir.Patches(patch=1, stride=1)
        x = Map(lowering.builder.operation(f"{name}.pixels", source, height * width, lowering.channels), height, width)
    return lowering.builder.map_tensor(Map(conv_input(lowering, module, name, x.value), x.height, x.width))


def conv_input(lowering: Lowering, module: CausalConv1d | Conv2d, name: str, x: Value) -> Value:
    """Rounds a convolution's input by its site. Raises LoweringError for a rotated site."""
    x = lowering.site(x, f"{name}.in", module.site_in)
    if x.rotated:
        raise LoweringError(f"{name}.in: a convolution over a rotated tensor")
    return x


@lowers(SymmetricConv1d)
@lowers(CausalConv1d)
def conv1d(lowering: Lowering, module: CausalConv1d, name: str, x: Value) -> Value:
    tensor = lowering.builder.tensor(conv_input(lowering, module, name, x))
    source = ir.Conv1d(
        input=tensor,
        weight=f"{name}.weight",
        bias=bias(module, name),
        reverse=x.reverse,
        ahead=module.ahead or None,
        length=x.length or None,
    )
    out = lowering.builder.operation(name, source, x.rows, x.width, x.reverse, x.length)
    return lowering.site(out, f"{name}.out", module.site_out)


@lowers(PixelShuffle)
def pixel_shuffle(lowering: Lowering, module: PixelShuffle, name: str, x: Map) -> Map:
    """Lowers a pixel shuffle. Raises LoweringError for other inputs than maps."""
    if not isinstance(x, Map):
        raise LoweringError(f"{name}: a pixel shuffle reads a map")
    scale = module.scale
    source = ir.PixelShuffle(input=lowering.builder.map_tensor(x), scale=scale)
    out = lowering.builder.operation(name, source, x.value.rows * scale**2, x.value.width // scale**2)
    return Map(out, x.height * scale, x.width * scale)


@lowers(Resize)
def resize(lowering: Lowering, module: Resize, name: str, x: Map, like: Map) -> Map:
    """Lowers a bilinear resampling to the size of another map. Raises LoweringError for other inputs than maps."""
    if not isinstance(x, Map) or not isinstance(like, Map):
        raise LoweringError(f"{name}: a resampling reads maps")
    x = Map(lowering.site(x.value, f"{name}.in", module.site_in), x.height, x.width)
    source = ir.Bilinear(input=lowering.builder.map_tensor(x), like=lowering.builder.map_tensor(like))
    out = lowering.builder.operation(name, source, like.value.rows, x.value.width)
    return Map(out, like.height, like.width)


@lowers(AveragePool)
def average_pool(lowering: Lowering, module: AveragePool, name: str, x: Map) -> Map:
    """Lowers the means of a map's parts. Raises LoweringError for other inputs than maps."""
    if not isinstance(x, Map):
        raise LoweringError(f"{name}: an average over parts reads a map")
    height, width = module.size
    source = ir.AveragePool(input=lowering.builder.map_tensor(x), height=height, width=width)
    return Map(lowering.builder.operation(name, source, height * width, x.value.width), height, width)


@lowers(Positions)
def positions(lowering: Lowering, module: Positions, name: str, x: Map) -> Map:
    """Adds the table of positions, resampled to the map's size. Raises LoweringError for other inputs than maps."""
    if not isinstance(x, Map):
        raise LoweringError(f"{name}: positions are added to a map")
    constant = Constant(name=f"{name}.pos_embed", grid=(x.height, x.width))
    added = lowering.binary("add", x.value, Parameter(constant, (1, x.value.rows, x.value.width)))
    return Map(added, x.height, x.width)


@lowers(Shift, by_row=True)
def shift(lowering: Lowering, module: Shift, name: str, x: Value) -> Value:
    return Value("values", x.rows, x.width, (x,), {"values": module.values}, x.reverse)


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
        length=u.length or None,
    )
    out = lowering.builder.operation(name, source, u.rows, u.width, u.reverse, u.length)
    return lowering.site(out, f"{name}.y", module.site_y)


@lowers(Site)
def weight_site(lowering: Lowering, module: Site, name: str, x: Parameter) -> Parameter:
    """Lowers the site of a bare parameter: a quantized parameter becomes the site's codes."""
    if not isinstance(x, Parameter) or x.constant.functions:
        raise LoweringError(f"{name}: a bare site is for a parameter")
    if isinstance(module.quantizer, LadderQuantizer):
        lowering.ladders.add(name)
    return x if module.quantizer is None else Parameter(Constant(name=name), x.shape)
