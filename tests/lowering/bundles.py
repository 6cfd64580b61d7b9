"""Provides a bundle of a network's own float parameters, without quantized sites."""

from __future__ import annotations

from typing import Any

import numpy as np

from visq.runtime.bundle import Bundle


class ParameterBundle(Bundle):
    def __init__(self, model: Any) -> None:
        self.tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
        self._made = {}

    def is_ladder(self, name: str) -> bool:
        return False

    def weight(self, name: str) -> np.ndarray:  # type: ignore[override]
        return self.parameter(name)
