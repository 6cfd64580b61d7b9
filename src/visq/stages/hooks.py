"""Small context managers around sites and forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from visq.quant.site import Site


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """The module's forward hooks are suspended, so that a hook may call its own module."""
    hooks = module._forward_hooks.copy()
    module._forward_hooks.clear()
    try:
        yield
    finally:
        module._forward_hooks.update(hooks)


@contextmanager
def detached(sites: Iterable[Site]) -> Iterator[None]:
    """The sites are identities again: the FP32 network."""
    present = [(site, site.quantizer) for site in sites]
    for site, _ in present:
        site.quantizer = None
    try:
        yield
    finally:
        for site, quantizer in present:
            site.quantizer = quantizer
