"""Builds a module's arithmetic form for PyTorch, from the form that `visq.integer.forms` gives the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.integer import forms
from visq.integer.arithmetic import Floats
from visq.integer.attention import (
    AttentionCodecs,
    FloatAttention,
    attention_form,
    float_attention,
    integer_attention,
)
from visq.integer.codecs import Codec, make_codec, make_factor_codec, make_state_codec
from visq.integer.float_scan import FloatScan
from visq.integer.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    IntegerConv1d,
    IntegerConv2d,
    WideLinear,
)
from visq.integer.weights import Weight, coded_weight
from visq.models.attention import Attend
from visq.models.layers import CausalConv1d, Conv2d, Linear, SelectiveScan
from visq.models.vim import PatchConv2d
from visq.ops import exact
from visq.quant.codec import Cache, codec_of
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import Site

Dense = Linear | PatchConv2d | Conv2d
Depthwise = CausalConv1d | Conv2d
Form = TypeVar("Form")
Made = TypeVar("Made")
#: float32 holds every whole number up to this one, so smaller sums are exact in any order.
EXACT = 2**24


@dataclass(frozen=True)
class Product:
    """`IntegerLinear` and `WideLinear` in PyTorch: y = (float(integers weight^T) * scale) * token + bias.

    Attributes:
        quantizer: the input's quantizer.
        table, factor: map an input's code to its integer in the sum (`WideLinear`); None for the identity.
        weight: [N, K] codes, float32 where every sum stays below 2^24, otherwise float64.
        scale, token, bias: [N]; [L, 1], or None for ones; [N].
    """

    quantizer: Quantizer
    table: Tensor | None
    factor: Tensor | None
    weight: Tensor
    scale: Tensor
    token: Tensor | None
    bias: Tensor

    def integers(self, x: Tensor) -> Tensor:
        """Returns the integers that the product adds up, as float32, for x that the site has rounded."""
        quantizer, table = self.quantizer, self.table
        whole = quantizer.integers_again(x) if table is None else table[quantizer.encode(x).int()]
        return whole if self.factor is None else whole * self.factor

    def __call__(self, integers: Tensor) -> Tensor:
        """Computes y [..., N] float32 from integers [..., K]."""
        sums = F.linear(integers.to(self.weight.dtype), self.weight)
        value = sums.float() * self.scale
        return (value if self.token is None else value * self.token) + self.bias


@dataclass(frozen=True)
class OrderedProduct:
    """`FloatLinear` in PyTorch: y = x weight^T + bias, added up in the order of K."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return exact.product(x, self.weight) + self.bias


def cached(module: Dense | Depthwise, make: Callable[[], Form]) -> Form:
    """Returns `make()`, cached until a parameter or quantizer of the module changes."""
    cache: Cache[Form] = module.__dict__.setdefault("_form", Cache())
    return cache.get((module, module.site_in.quantizer, module.site_weight.quantizer), make)


def product(module: Dense) -> Product | OrderedProduct:
    """Returns the product of a linear, or of a dense convolution's windows.

    A convolution's product is in integers only if its site has one scale (`visq.integer.forms.dense_conv2d`).
    """
    make = forms.linear if isinstance(module, Linear) else forms.dense_conv2d
    form = make(_activation(module.site_in), _weight(module), _bias(module))
    on = lambda values: torch.from_numpy(values).to(module.weight.device)  # noqa: E731
    bias = on(form.bias)
    if isinstance(form, FloatLinear):
        return OrderedProduct(on(form.weight), bias)
    weight, quantizer = on(form.weight), module.site_in.quantizer
    assert isinstance(quantizer, Quantizer)
    table = factor = None
    largest = quantizer.largest_integer()
    if isinstance(form, WideLinear):
        table = None if form.table is None else on(form.table).float()
        factor = on(form.factor).float()
        largest = 2**15
    exact = largest * float(weight.double().abs().max()) * weight.shape[1] < EXACT
    weight = weight.float() if exact else weight.double()
    token = None if form.token is None else on(form.token)[:, None]
    return Product(quantizer, table, factor, weight, on(form.scale), token, bias)


def conv1d(module: CausalConv1d) -> IntegerConv1d | FloatConv1d:
    """Returns the form of a causal depthwise convolution over tokens."""
    return forms.depthwise(_activation(module.site_in), _weight(module), _bias(module), IntegerConv1d, FloatConv1d)


def conv2d(module: Conv2d) -> IntegerConv2d | FloatConv2d:
    """Returns the form of a depthwise convolution over maps."""
    return forms.depthwise(_activation(module.site_in), _weight(module), _bias(module), IntegerConv2d, FloatConv2d)


def attend(module: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns attention of q, k, v [B, L, C], rounded by their sites, by the definition in `visq.integer.attention`.

    NumPy computes it, on any device.
    """
    operands = ((module.site_q, q), (module.site_k, k), (module.site_v, v))
    sites = (*(site for site, _ in operands), module.site_scores, module.site_probs)
    codecs = AttentionCodecs(*(_activation(site) for site in sites))
    form = attention_form(codecs, q.shape[1], q.shape[2], module.heads, module.scale)
    if isinstance(form, FloatAttention):
        result = float_attention(form, *(x.cpu().numpy() for _, x in operands))
    else:
        integers = []
        for site, x in operands:
            assert isinstance(site.quantizer, Quantizer)
            integers.append(site.quantizer.integers_again(x).cpu().numpy())
        result = integer_attention(form, *integers)
    return torch.from_numpy(result).to(q.device)


def float_scan(module: SelectiveScan, A: Tensor) -> FloatScan:
    """Returns the float32 form of a scan without a fixed-point form. A is [d_inner, N]."""
    abar, bbar = _codec(module.site_abar, make_factor_codec), _codec(module.site_bbar, make_factor_codec)
    h = _codec(module.site_h, make_state_codec)
    return FloatScan(A.detach().cpu().numpy(), abar, bbar, h, "no form in fixed point")


def codes_of(module: Depthwise, x: Tensor) -> Tensor:
    """Returns the codes minus zero points, as float32, of values that the module's site has rounded."""
    quantizer = module.site_in.quantizer
    assert isinstance(quantizer, Quantizer)
    return quantizer.integers_again(x)


def _codec(site: Site, make: Callable[[str, dict[str, Any], dict[str, Any]], Made]) -> Made | None:
    return None if site.quantizer is None else codec_of(site.quantizer, make)


def _activation(site: Site) -> Codec | None:
    return _codec(site, make_codec)


def _weight(module: Dense | Depthwise) -> Weight | Floats:
    quantizer = module.site_weight.quantizer
    weight = module.weight.detach()
    if quantizer is None:
        values: Floats = weight.cpu().numpy()
        return values
    rotation = divisor = None
    if isinstance(quantizer, RotatedQuantizer):
        rotation, given = quantizer.rotation.cpu().numpy(), quantizer.divisor
        divisor = np.ones(len(rotation), np.float32) if given is None else given.cpu().numpy()
    return coded_weight(quantizer.encode(weight).cpu().numpy(), codec_of(quantizer, make_codec), rotation, divisor)


def _bias(module: nn.Linear | nn.Conv1d | nn.Conv2d) -> Floats:
    bias: Floats = (torch.zeros(len(module.weight)) if module.bias is None else module.bias.detach()).cpu().numpy()
    return bias
