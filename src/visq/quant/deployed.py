"""Quantizers of the simulation as the engine sees them, so that both run one arithmetic."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.serialize import quantizer_to_parts
from visq.quant.site import SiteQuantizer
from visq.runtime import quantizers as engine
from visq.runtime.scan import FixedScan, plan


class ScanPlan:
    """The fixed-point form of one scan, made again only when a quantizer, A or the length changes."""

    def __init__(self) -> None:
        self._key: Any = None
        # Kept alive, so that no new quantizer can take the identity of an old one.
        self._parts: tuple[SiteQuantizer | None, ...] = ()
        self._A: Tensor | None = None
        self._found: FixedScan | None = None

    def get(
        self,
        length: int,
        A: Tensor,
        delta: SiteQuantizer | None,
        C: SiteQuantizer | None,
        abar: SiteQuantizer | None,
        bbar: SiteQuantizer | None,
        h: SiteQuantizer | None,
    ) -> FixedScan | None:
        """The parameters; None where something is not quantized or has no fixed-point form."""
        parts = (delta, C, abar, bbar, h)
        if any(type(part) not in (Quantizer, StateQuantizer) for part in parts):
            return None
        key = (length, *(_state(part) for part in parts if part is not None))
        if key != self._key or self._A is None or not A.equal(self._A):
            self._key, self._parts, self._A = key, parts, A.clone()
            found = plan(
                length,
                A.detach().cpu().numpy(),
                _converted(delta, engine.make_quantizer),
                _converted(C, engine.make_quantizer),
                _converted(abar, engine.make_factor),
                _converted(bbar, engine.make_factor),
                _converted(h, engine.make_state),
            )
            self._found = None if isinstance(found, str) else found
        return self._found


def _state(quantizer: SiteQuantizer) -> tuple[Any, ...]:
    """Changes whenever a parameter of the quantizer does."""
    return (id(quantizer), *((buffer.data_ptr(), buffer._version) for buffer in quantizer.buffers()))


def _converted(quantizer: SiteQuantizer | None, make: Any) -> Any:
    assert quantizer is not None
    meta, tensors = quantizer_to_parts(quantizer)
    return make("scan", meta, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
