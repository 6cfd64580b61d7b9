"""Predicts the engine's milliseconds from the bits of weights, fitted to its profile on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.runtime.engine import Engine
from visq.search.groups import Group

#: Profiles of one artifact; the smallest time of each kind counts, because other programs only add to it.
REPEATS = 5
RUNS = 10


@dataclass(frozen=True)
class Latency:
    """Milliseconds an image, of one thread.

    Products of linears read codes of the weights' width; everything else stores its codes in bytes whatever their bits.
    So a linear costs its share of all products times the measured time of linears at its width, and the rest is fixed.

    Attributes:
        linears: by width, all linears of the network.
        other: everything else, the median over the profiles.
        spread: the largest difference between `other` and what a profile had.
        products: all multiplications of linears.
    """

    linears: Mapping[int, float]
    other: float
    spread: float
    products: int

    def costs(self, groups: Sequence[Group], widths: Sequence[int]) -> NDArray[np.float64]:
        """Returns milliseconds by group and width."""
        share = np.array([group.products for group in groups], float) / max(self.products, 1)
        return share[:, None] * np.array([self.linears[width] for width in widths])

    def to_json(self) -> dict[str, Any]:
        return {"linears": {str(w): ms for w, ms in self.linears.items()}, **self._rest()}

    def _rest(self) -> dict[str, Any]:
        return {"other": self.other, "spread": self.spread, "products": self.products}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Latency:
        linears = {int(width): ms for width, ms in values["linears"].items()}
        return Latency(linears, **{key: values[key] for key in ("other", "spread", "products")})


def fit(profiles: Mapping[int, Mapping[str, float]], products: int) -> Latency:
    """Returns the model of profiles by width: one network, its weights at that width and all else equal."""
    linears = {width: _part(profile, True) for width, profile in profiles.items()}
    others = [_part(profile, False) for profile in profiles.values()]
    middle = float(np.median(others))
    return Latency(linears, middle, max(abs(other - middle) for other in others), products)


def _part(profile: Mapping[str, float], linear: bool) -> float:
    return sum(ms for kind, ms in profile.items() if (kind.split()[0] == "linear") == linear)


def profile(engine: Engine, images: Any, repeats: int = REPEATS, runs: int = RUNS) -> dict[str, float]:
    """Returns the smallest of several profiles of an engine, by kind of operation."""
    return smallest(lambda: engine.profile(images, runs=runs), repeats)


def smallest(measure: Callable[[], Mapping[str, float]], repeats: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for _ in range(repeats):
        found |= {kind: min(ms, found.get(kind, ms)) for kind, ms in measure().items()}
    return found
