"""How each layer with sites is lowered: one function for each class, over values instead of tensors.

A weight goes by the name of its site where it is quantized and of its parameter where not; the two are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from visq.lowering.values import Image, LoweringError, Parameter, Value
from visq.models.layers import CausalConv1d, Linear, RMSNorm, SelectiveScan, SiLU
from visq.models.vim import PatchConv2d
from visq.quant.site import Site
from visq.runtime import program as ir
from visq.runtime.program import Constant

if TYPE_CHECKING:
    from visq.lowering.lower import Lowering

LAYERS: dict[type[nn.Module], Callable[..., Any]] = {}


def lowers(layer: type[nn.Module]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register how modules of a class are lowered: function(lowering, module, its name, *values) -> value."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        LAYERS[layer] = function
        return function

    return decorate


def product(lowering: Lowering, module: Linear | PatchConv2d, name: str, x: Value) -> Value:
    """x W^T + bias with the module's sites; a convolution's weight has a row for each output as well."""
    x = lowering.site(x, f"{name}.in", module.site_in)
    source = ir.Linear(input=lowering.builder.tensor(x), weight=f"{name}.weight", bias=bias(module, name))
    out = lowering.builder.operation(name, source, x.rows, len(module.weight), x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


def bias(module: Linear | PatchConv2d | CausalConv1d, name: str) -> str | None:
    return f"{name}.bias" if module.bias is not None else None


@lowers(Linear)
def linear(lowering: Lowering, module: Linear, name: str, x: Value) -> Value:
    return product(lowering, module, name, x)


@lowers(PatchConv2d)
def patch_conv2d(lowering: Lowering, module: PatchConv2d, name: str, image: Image) -> Value:
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


@lowers(CausalConv1d)
def causal_conv1d(lowering: Lowering, module: CausalConv1d, name: str, x: Value) -> Value:
    x = lowering.site(x, f"{name}.in", module.site_in)
    tensor = lowering.builder.tensor(x)
    source = ir.Conv1d(input=tensor, weight=f"{name}.weight", bias=bias(module, name), reverse=x.reverse)
    out = lowering.builder.operation(name, source, x.rows, x.width, x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


@lowers(SiLU)
def silu(lowering: Lowering, module: SiLU, name: str, x: Value) -> Value:
    return lowering.site(lowering.unary("silu", x), f"{name}.out", module.site_out)


@lowers(RMSNorm)
def rms_norm(lowering: Lowering, module: RMSNorm, name: str, x: Value) -> Value:
    parameters = {"weight": Constant(name=f"{name}.weight"), "eps": module.eps}
    out = Value("rms_norm", x.rows, x.width, (x,), parameters, x.reverse)
    return lowering.site(out, f"{name}.out", module.site_out)


@lowers(SelectiveScan)
def selective_scan(
    lowering: Lowering, module: SelectiveScan, name: str, u: Value, delta: Value, A: Parameter, B: Value, C: Value
) -> Value:
    delta = lowering.site(delta, f"{name}.delta", module.site_delta)
    C = lowering.site(C, f"{name}.c", module.site_c)
    tensor = lowering.builder.tensor

    def inner(key: str, site: Site) -> str | None:
        return None if site.quantizer is None else f"{name}.{key}"

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
    """A site of a bare parameter: the parameter becomes the site's codes."""
    if not isinstance(x, Parameter) or x.constant.functions:
        raise LoweringError(f"{name}: a bare site is for a parameter")
    return x if module.quantizer is None else Parameter(Constant(name=name), x.shape)
