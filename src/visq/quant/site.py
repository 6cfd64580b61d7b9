"""A site: a named place in a network where a tensor can be quantized.

Networks hold `Site` modules in attributes called `site_<what>`; in FP32 a site is the identity and owns no parameter,
so checkpoints keep their official keys. The public name of a site is its module path without the `site_` prefix:

    layers.0.mixer.in_proj.site_in  ->  layers.0.mixer.in_proj.in
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from visq.quant.site_error import rounding_db

_PREFIX = re.compile(r"(^|\.)site_")

#: Activations of shape [B, L, C], [B, C], or an image [B, C, H, W].
ACTIVATION = "activation"
#: A parameter; axis 0 is the output channel.
WEIGHT = "weight"
#: A tensor that exists only inside the recurrence (Abar, Bbar, h): quantized by the scan itself.
INNER = "inner"


class SiteQuantizer(nn.Module):
    """Turns real numbers into integer codes and codes into real numbers; see `visq.quant.quantizer`."""

    def encode(self, x: Tensor) -> Tensor:
        """Returns the codes of x, int16, same shape."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the values of codes, float32, same shape."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises VisqError where a parameter cannot be used; called again after something has written into one."""

    def rounding_db(self, x: Tensor) -> float:
        """Returns the SQNR [dB] of a parameter [..., channels], see `SiteError`."""
        return rounding_db(self, x)

    def scan_argument(self) -> Any:
        """Returns the rounding as `ops.quantized_scan` takes it; of sites inside the recurrence only."""
        raise NotImplementedError


class Site(nn.Module):
    """Applies its quantizer; without one it is the identity.

    Arguments:
        kind: `activation`, `weight` or `inner`; says which axes exist and who applies the quantizer.
        parameter: for a weight, the name of the parameter in the module that owns the site.

    Attributes:
        quantizer: None in FP32.
        baked: the parameter holds decoded codes already; the quantizer would change nothing and is left out.
        rounding_db: SQNR of the weight's rounding [dB], for the self-check; None where it is unknown.
    """

    def __init__(self, kind: str = ACTIVATION, parameter: str = "weight") -> None:
        super().__init__()
        self.kind, self.parameter = kind, parameter
        self.quantizer: SiteQuantizer | None = None
        self.baked = False
        self.rounding_db: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.quantizer is None or self.baked:
            return x
        result: Tensor = self.quantizer(x)
        return result

    def extra_repr(self) -> str:
        return self.kind


def site_name(module_path: str) -> str:
    """`a.b.site_in` -> `a.b.in`."""
    return _PREFIX.sub(r"\1", module_path)


def named_sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """Yields every site of `model` with its public name, in module order."""
    for path, module in model.named_modules():
        if isinstance(module, Site):
            yield site_name(path), module


def site_owner(model: nn.Module, name: str) -> nn.Module:
    """Returns the module that holds the site called `name`."""
    return model.get_submodule(name.rpartition(".")[0])


def site_parameter(model: nn.Module, name: str, site: Site) -> nn.Parameter:
    """Returns the parameter that a weight site quantizes."""
    parameter: nn.Parameter = getattr(site_owner(model, name), site.parameter)
    return parameter


def without_codes(model: nn.Module, sites: Iterable[tuple[str, Site]]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that none of the given sites quantizes, by name."""
    coded = {id(site_parameter(model, name, site)) for name, site in sites if site.kind == WEIGHT}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in coded)


def bake_weights(model: nn.Module) -> None:
    """Replaces every quantized parameter by its decoded codes; later forwards skip the weight quantizers."""
    for name, site in named_sites(model):
        if site.kind == WEIGHT and site.quantizer is not None and not site.baked:
            parameter = site_parameter(model, name, site)
            site.rounding_db = site.quantizer.rounding_db(parameter.data)
            parameter.data = site.quantizer(parameter.data)
            site.baked = True
