"""Quantizers of the simulation as the engine sees them, so that both run one arithmetic."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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
        key = (length, *(state_of(part) for part in parts if part is not None))
        if key != self._key or self._A is None or not A.equal(self._A):
            self._key, self._parts, self._A = key, parts, A.clone()
            makers = (*(engine.make_quantizer,) * 2, *(engine.make_factor,) * 2, engine.make_state)
            forms = (converted(part, make) for part, make in zip(parts, makers, strict=True) if part is not None)
            found = plan(length, A.detach().cpu().numpy(), *forms)
            self._found = None if isinstance(found, str) else found
        return self._found


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter or buffer of the module itself does."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (id(module), *((tensor.data_ptr(), tensor._version) for tensor in own))


def converted(quantizer: SiteQuantizer, make: Any) -> Any:
    """`quantizer` as the engine's: make(name, record, parts) is one of `visq.runtime.quantizers`."""
    meta, tensors = quantizer_to_parts(quantizer)
    return make("simulation", meta, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
