"""Provides a bundle of a network's own float parameters, without quantized sites, and marks for slow recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visq.runtime.bundle import Bundle


class ParameterBundle(Bundle):
    def __init__(self, model: Any) -> None:
        self.tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
        self._made = {}

    def is_ladder(self, name: str) -> bool:
        return False

    def weight(self, name: str) -> np.ndarray:  # type: ignore[override]
        return self.parameter(name)


def slow(*recipes: str) -> list[Any]:
    """Returns recipes as parameters that `make test-slow` runs."""
    return [pytest.param(recipe, marks=pytest.mark.slow) for recipe in recipes]
