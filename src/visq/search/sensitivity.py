"""Measures what rounding one group of sites, or two, does to the logits. Forward passes only, no labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from visq.calibrate.learners.reconstruction import relative_error
from visq.data import Dataset
from visq.quant.site import named_sites
from visq.search.groups import Group
from visq.search.quantizers import Library
from visq.search.state import Measurements

#: The width at which pairs are measured: errors are large enough to be seen and small enough to add up.
PAIR_WIDTH = 4
#: So many groups of a stage, the most sensitive ones, are measured in pairs.
PAIRED = 4
#: A lower width counts as at least so many times as bad as a higher one.
STRICTLY = 1.001
#: Pairs whose errors correlate less are taken to be independent. So are errors that cancel: a choice that counts on
#: it would fit the few images it was measured on.
LEAST_CORRELATION = 0.05


class Probe:
    """Runs the FP32 network with a few sites quantized, from the first stage that changes on.

    Arguments:
        images: a few calibration images; the inputs of every stage are kept in memory for them.
    """

    def __init__(self, library: Library, groups: Sequence[Group], images: Dataset, batch_size: int) -> None:
        self.library = library
        self.sites = dict(named_sites(library.model))
        self.stages = library.model.stages()
        self.inputs: list[list[tuple[Tensor, ...]]] = [[] for _ in self.stages]
        self.exact: list[Tensor] = []
        with torch.no_grad():
            for batch, _ in images.batches(batch_size):
                state: tuple[Tensor, ...] = (batch,)
                for inputs, stage in zip(self.inputs, self.stages, strict=True):
                    inputs.append(state)
                    state = stage.forward(*state)
                self.exact.append(state[0])

    def __call__(self, chosen: Mapping[Group, int]) -> float:
        """Returns the mean divergence of the logits with the groups quantized at their widths."""
        names = [(name, width) for group, width in chosen.items() for name in group.sites]
        for name, width in names:
            self.sites[name].quantizer = self.library.quantizers[width][name]
        first = min(group.stage for group in chosen)
        total, images = 0.0, 0
        try:
            with torch.no_grad():
                for state, exact in zip(self.inputs[first], self.exact, strict=True):
                    for stage in self.stages[first:]:
                        state = stage.forward(*state)
                    total += divergence(state[0], exact) * len(exact)
                    images += len(exact)
        finally:
            for name, _ in names:
                self.sites[name].quantizer = None
        return total / images if math.isfinite(total) else math.inf


def divergence(found: Tensor, exact: Tensor) -> float:
    """Returns KL(exact || found) of logits [B, classes] in nats, the mean over images; for outputs that are no logits
    the squared error relative to the signal."""
    found, exact = found.double(), exact.double()
    if exact.ndim == 2:
        log_p, log_q = exact.log_softmax(-1), found.log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return float(relative_error(found, exact))


def singles(
    probe: Probe, groups: Sequence[Group], widths: Sequence[int], store: Measurements
) -> Iterator[tuple[Group, dict[int, float]]]:
    """Yields each group with its loss by width.

    A lower width always counts as a little worse than a higher one: noise must not take bits away that cost nothing.
    """
    for group in groups:
        found: dict[int, float] = {}
        for width in sorted(widths, reverse=True):
            value = store.measured(f"one {width} {group.name}", lambda g=group, w=width: probe({g: w}))  # type: ignore[misc]
            found[width] = max(value, STRICTLY * max(found.values(), default=0.0))
        yield group, dict(sorted(found.items()))


def pairs_to_measure(groups: Sequence[Group], loss: Mapping[Group, Mapping[int, float]]) -> list[tuple[Group, Group]]:
    """Returns the pairs that are measured: among the most sensitive groups of each stage, and the most sensitive ones
    of two stages that follow one another."""
    by_stage: dict[int, list[Group]] = {}
    for group in groups:
        by_stage.setdefault(group.stage, []).append(group)
    worst = {
        stage: sorted(own, key=lambda group: -loss[group][pair_width(loss[group])])[:PAIRED]
        for stage, own in by_stage.items()
    }
    found = [(a, b) for own in worst.values() for i, a in enumerate(own) for b in own[i + 1 :]]
    stages = sorted(worst)
    return found + [(worst[a][0], worst[b][0]) for a, b in pairwise(stages)]


def correlations(
    probe: Probe, loss: Mapping[Group, Mapping[int, float]], pairs: Sequence[tuple[Group, Group]], store: Measurements
) -> Iterator[tuple[Group, Group, float]]:
    """Yields the pairs that interact, with the correlation of their errors.

    To second order KL(a and b) = KL(a) + KL(b) + 2 rho sqrt(KL(a) KL(b)). So one measurement gives rho, and rho gives
    the pair's loss at all widths.
    """
    for a, b in pairs:
        width = pair_width(loss[a])
        both = store.measured(f"two {width} {a.name} {b.name}", lambda a=a, b=b, w=width: probe({a: w, b: w}))  # type: ignore[misc]
        one, other = loss[a][width], loss[b][width]
        scale = 2 * math.sqrt(one * other)
        if scale > 0 and math.isfinite(both) and math.isfinite(scale):
            rho = min((both - one - other) / scale, 1.0)
            if rho >= LEAST_CORRELATION:
                yield a, b, rho


def pair_width(loss: Mapping[int, float]) -> int:
    """Returns the width nearest to `PAIR_WIDTH`, the larger of two."""
    return min(loss, key=lambda width: (abs(width - PAIR_WIDTH), -width))
