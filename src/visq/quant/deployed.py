"""Quantizers of the simulation as the engine sees them, so that both run one arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.serialize import quantizer_to_parts
from visq.quant.site import SiteQuantizer
from visq.runtime import quantizers as engine
from visq.runtime.fused_scan import IntegerScan, integer_form

Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """What was made of modules, made again only when a parameter or buffer of one of them changes."""

    def __init__(self) -> None:
        self._key: Any = None
        # Kept alive, so that no new module can take the identity of an old one.
        self._modules: tuple[nn.Module | None, ...] = ()
        self._made: Made

    def get(self, modules: tuple[nn.Module | None, ...], make: Callable[[], Made], *others: Any) -> Made:
        """`make()`, for these modules and whatever else it depends on."""
        key = (*others, *(None if module is None else state_of(module) for module in modules))
        if key != self._key:
            self._key, self._modules, self._made = key, modules, make()
        return self._made


class ScanPlan:
    """The fixed-point form of one scan, made again only when a quantizer, A or the length changes."""

    def __init__(self) -> None:
        self._A: Tensor | None = None
        self._found: Remembered[IntegerScan | None] = Remembered()

    def get(
        self,
        length: int,
        A: Tensor,
        delta: SiteQuantizer | None,
        B: SiteQuantizer | None,
        C: SiteQuantizer | None,
        abar: SiteQuantizer | None,
        bbar: SiteQuantizer | None,
        h: SiteQuantizer | None,
    ) -> IntegerScan | None:
        """The parameters; None where something is not quantized or has no fixed-point form."""
        if delta is None or C is None or h is None:
            return None
        parts = (delta, B, C, abar, bbar, h)
        if any(type(part) not in (Quantizer, StateQuantizer, type(None)) for part in parts):
            return None
        if self._A is None or not A.equal(self._A):
            self._A, self._found = A.clone(), Remembered()
        return self._found.get(parts, lambda: _planned(length, A, parts), length)


def _planned(length: int, A: Tensor, parts: tuple[SiteQuantizer | None, ...]) -> IntegerScan | None:
    makers = (*(engine.make_quantizer,) * 3, *(engine.make_factor,) * 2, engine.make_state)
    forms = (None if part is None else converted(part, make) for part, make in zip(parts, makers, strict=True))
    found = integer_form(length, A.detach().cpu().numpy(), *forms)
    return None if isinstance(found, str) else found


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter or buffer of the module itself does."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (id(module), *((tensor.data_ptr(), tensor._version) for tensor in own))


def converted(quantizer: SiteQuantizer, make: Any) -> Any:
    """`quantizer` as the engine's: make(name, record, parts) is one of `visq.runtime.quantizers`."""
    meta, tensors = quantizer_to_parts(quantizer)
    return make("simulation", meta, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
