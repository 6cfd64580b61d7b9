"""The contract between networks and calibration: a forward pass cut into stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """A step of the forward pass: a function from a tuple of tensors to the next, and the prefixes of the modules it
    runs."""

    name: str
    forward: Callable[..., tuple[Tensor, ...]]
    modules: tuple[str, ...]
