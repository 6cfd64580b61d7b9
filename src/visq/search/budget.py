"""Budgets: what they limit, and what a choice of bits costs in each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visq.artifact.packing import packed_bytes
from visq.errors import VisqError
from visq.search.groups import KINDS, Group
from visq.search.latency import Latency

Costs = NDArray[np.float64]

#: What a budget may limit.
RESOURCES = ("bytes", "bits", "ms")
_SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Budget:
    """A limit: at most `limit` of a resource."""

    resource: str
    limit: float

    def __str__(self) -> str:
        return f"{self.resource}={self.limit:.10g}"


def parse_budget(text: str) -> tuple[Budget, ...]:
    """Returns the budgets of `bytes=500k`, `bits=5`, `ms=1.2`, or several with commas between them.

    Raises:
        VisqError: anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]+\.?[0-9]*(?:e[0-9]+)?)([kKMG]?)\s*", part)
        if match is None or match[1] not in RESOURCES or float(match[2]) <= 0:
            raise VisqError(
                f"--budget takes bytes=N (k, M allowed), bits=N or ms=N, several with commas between them, not {part!r}"
            )
        found.append(Budget(match[1], float(match[2]) * _SUFFIXES[match[3]]))
    if len({budget.resource for budget in found}) < len(found):
        raise VisqError("--budget names a resource twice")
    return tuple(found)


@dataclass(frozen=True)
class Resource:
    """One row of costs: a choice costs `fixed` and the sum of `costs[group, width]`."""

    name: str
    fixed: float
    costs: Costs

    def of(self, choice: Sequence[int]) -> float:
        """Returns the cost of a choice: the index of the width of every group."""
        return self.fixed + float(self.costs[np.arange(len(choice)), list(choice)].sum())

    def least(self) -> float:
        return self.fixed + float(self.costs.min(1).sum())

    def most(self) -> float:
        return self.fixed + float(self.costs.max(1).sum())


def weight_bytes(groups: Sequence[Group], widths: Sequence[int], sizes: Mapping[str, int]) -> Costs:
    """Returns the bytes of packed weight codes by group and width; other groups store nothing that depends on bits.

    Arguments:
        sizes: number of values of every weight site.
    """
    return np.array(
        [
            [sum(packed_bytes(sizes[name], width) for name in group.sites if name in sizes) for width in widths]
            for group in groups
        ],
        float,
    )


def mean_bits(groups: Sequence[Group], widths: Sequence[int]) -> dict[str, Costs]:
    """Returns the share of every group in the mean bits of its kind: weights by values, others by tensors."""
    found = {}
    for kind in KINDS:
        parts = np.array([(group.values or 1) * (group.kind == kind) for group in groups], float)
        if parts.sum():
            found[kind] = parts[:, None] / parts.sum() * np.array(widths, float)
    return found


def resources(
    name: str,
    groups: Sequence[Group],
    widths: Sequence[int],
    *,
    sizes: Mapping[str, int],
    fixed_bytes: float,
    latency: Latency | None,
) -> list[Resource]:
    """Returns the rows of costs that a budget of one resource limits. Bits are three: weights, activations, state."""
    if name == "bytes":
        return [Resource("bytes", fixed_bytes, weight_bytes(groups, widths, sizes))]
    if name == "bits":
        return [Resource(f"{kind} bits", 0.0, costs) for kind, costs in mean_bits(groups, widths).items()]
    assert latency is not None
    return [Resource("ms", latency.other, latency.costs(groups, widths))]
