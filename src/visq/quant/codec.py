"""A site's quantizer as the codec that the integer engine has for it, so that both run one arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import nn

from visq.quant.serialize import quantizer_to_parts
from visq.quant.site import SiteQuantizer

Made = TypeVar("Made")


def codec_of(quantizer: SiteQuantizer, make: Callable[[str, dict[str, Any], dict[str, Any]], Made]) -> Made:
    """Returns a quantizer's codec; `make` is one of `visq.integer.codecs.make_*`."""
    meta, tensors = quantizer_to_parts(quantizer)
    return make("simulation", meta, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


class Cache(Generic[Made]):
    """Keeps what was made from modules until a parameter or buffer of one of them changes."""

    def __init__(self) -> None:
        self._key: Any = None
        # Keeps the modules alive, so that no new one can take the identity of an old one.
        self._modules: tuple[nn.Module | None, ...] = ()
        self._made: Made

    def get(self, modules: tuple[nn.Module | None, ...], make: Callable[[], Made], *others: Any) -> Made:
        """Returns `make()` for these modules and whatever else it depends on."""
        key = (*others, *(None if module is None else state_of(module) for module in modules))
        if key != self._key:
            self._key, self._modules, self._made = key, modules, make()
        return self._made


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Returns a value that changes whenever a parameter or buffer of the module itself does."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (id(module), *((tensor.data_ptr(), tensor._version) for tensor in own))
