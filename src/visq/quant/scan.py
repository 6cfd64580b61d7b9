"""Runs the selective scan with quantizers inside, and chooses its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visq import ops
from visq.integer.codecs import make_codec, make_factor_codec, make_state_codec
from visq.integer.scan_steps import ScanCodecs
from visq.integer.scans import IntegerScan, integer_form
from visq.ops import backends
from visq.quant.codec import Cache, codec_of
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import Site, SiteQuantizer


@dataclass(frozen=True)
class ScanSites:
    """The sites of a scan. delta, b and c are ordinary activations; abar, bbar and h live inside the recurrence.

    a_log is the site of the parameter that A is made of; a ladder there is another form of the scan.
    """

    delta: Site
    b: Site
    c: Site
    abar: Site
    bbar: Site
    h: Site
    a_log: Site | None = None

    def quantizers(self) -> tuple[SiteQuantizer | None, ...]:
        """Returns the quantizers in the order of the fields, without that of a_log."""
        return tuple(site.quantizer for site in (self.delta, self.b, self.c, self.abar, self.bbar, self.h))

    @property
    def ladder(self) -> bool:
        """Returns whether A is a decay ladder."""
        return self.a_log is not None and isinstance(self.a_log.quantizer, LadderQuantizer)


class QuantizedScan:
    """Runs a scan with the quantizers of its sites.

    It runs in one of the engine's forms of fixed point if all sites but `b`, or all but `abar` and `bbar`, have
    quantizers and the device has a kernel. Otherwise it runs in float32 and rounds at the sites that have quantizers.
    """

    def __init__(self, sites: ScanSites) -> None:
        self.sites = sites
        self._plan = ScanPlan()

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """u, delta [B, L, C]; A [C, N]; B, C [B, L, N], rounded by their sites, in scan order -> y [B, L, C]."""
        if all(quantizer is None for quantizer in self.sites.quantizers()):
            return ops.selective_scan(u, delta, A, B, C)
        if backends.usable("fixed_scan", u.device.type):
            y = self.in_fixed_point(u, delta, A, B, C)
            if y is not None:
                return y
        inside = {"abar": self.sites.abar, "bbar": self.sites.bbar, "state": self.sites.h}
        rounded = {name: site.quantizer.scan_argument() for name, site in inside.items() if site.quantizer is not None}
        scan = ops.quantized_scan if rounded else ops.selective_scan
        return scan(u, delta, A, B, C, **rounded)

    def in_fixed_point(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor | None:
        """Returns y with the engine's bits; None where the scan has no form in fixed point or a gradient is wanted.

        Raises:
            VisqError: the device has no kernel.
        """
        if torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C)):
            return None
        form = self.form(u.shape[1], A)
        if form is None:
            return None
        quantizer = self.sites.c.quantizer
        assert isinstance(quantizer, Quantizer)
        return ops.fixed_scan(u, delta, B, quantizer.integers(C), form)

    def form(self, length: int, A: Tensor) -> IntegerScan | None:
        """Returns the scan's form in fixed point for `length` steps; None where it has none. A [C, N]."""
        return self._plan.get(length, A, self.sites.quantizers(), self.sites.ladder)


class ScanPlan:
    """Keeps the form of one scan until a quantizer, A or the length changes."""

    def __init__(self) -> None:
        self._A: Tensor | None = None
        self._found: Cache[IntegerScan | None] = Cache()

    def get(
        self, length: int, A: Tensor, quantizers: tuple[SiteQuantizer | None, ...], ladder: bool = False
    ) -> IntegerScan | None:
        delta, _, c, _, _, h = quantizers
        if delta is None or c is None or h is None:
            return None
        if any(type(quantizer) not in (Quantizer, StateQuantizer, type(None)) for quantizer in quantizers):
            return None
        if self._A is None or self._A.device != A.device or not A.equal(self._A):
            self._A, self._found = A.clone(), Cache()
        return self._found.get(quantizers, lambda: _form(length, A, quantizers, ladder), length, ladder)


def _form(length: int, A: Tensor, quantizers: tuple[SiteQuantizer | None, ...], ladder: bool) -> IntegerScan | None:
    delta, b, c, abar, bbar, h = quantizers
    codecs = ScanCodecs(
        delta=None if delta is None else codec_of(delta, make_codec),
        B=None if b is None else codec_of(b, make_codec),
        C=None if c is None else codec_of(c, make_codec),
        abar=None if abar is None else codec_of(abar, make_factor_codec),
        bbar=None if bbar is None else codec_of(bbar, make_factor_codec),
        h=None if h is None else codec_of(h, make_state_codec),
        ladder=ladder,
    )
    found = integer_form(length, A.detach().cpu().numpy(), codecs)
    return None if isinstance(found, str) else found
