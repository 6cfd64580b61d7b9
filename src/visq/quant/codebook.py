"""Codebooks: which 2^bits values a quantizer's codes stand for.

A codebook is a function that lays out an ascending table of at most 2^bits values; the full range is [-1, 1]
(signed) or [0, 1] (unsigned). Encoding is the nearest entry and decoding a look-up (`Quantizer.table`), so any
other layout fits: register one more function. Two names are special: `uniform` needs no table at run time, and
`kmeans` is laid out by the data (`visq.quant.codebook_search`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Named

#: An ascending table from (bits, signed, parameters).
Layout = Callable[..., Tensor]


@dataclass(frozen=True)
class Codebook:
    """A layout, and for each of its parameters the values that a search tries."""

    layout: Layout
    grid: dict[str, Sequence[Any]]
    signed_only: bool = False


CODEBOOKS: dict[str, Codebook] = {}


def register(name: str, signed_only: bool = False, **grid: Sequence[Any]) -> Callable[[Layout], Layout]:
    def decorate(layout: Layout) -> Layout:
        CODEBOOKS[name] = Codebook(layout, grid, signed_only)
        return layout

    return decorate


def layouts(codebook: Named, bits: int, signed: bool) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yields every (parameters, table) that a search tries for a codebook. Parameters given by the recipe stay.

    Raises:
        VisqError: unknown codebook or parameter, a parameter out of range.
    """
    if codebook.name not in CODEBOOKS:
        raise VisqError(f"unknown codebook '{codebook.name}'; known: {', '.join(CODEBOOKS)}, kmeans")
    known = CODEBOOKS[codebook.name]
    if unknown := sorted(set(codebook.params) - set(known.grid)):
        raise VisqError(
            f"codebook {codebook.name} has no {', '.join(unknown)}; known: {', '.join(known.grid) or 'none'}"
        )
    if known.signed_only and not signed:
        raise VisqError(f"codebook {codebook.name} is for signed tensors")
    grid = {name: [codebook.params[name]] if name in codebook.params else values for name, values in known.grid.items()}
    for values in itertools.product(*grid.values()):
        params = dict(zip(grid, values, strict=True))
        try:
            table = known.layout(bits, signed, **params)
        except TypeError as error:
            raise VisqError(f"codebook {codebook.name}: {params} is not a set of numbers ({error})") from error
        yield params, table


def mirrored(magnitudes: Tensor, signed: bool) -> Tensor:
    """Returns a table of magnitudes [K + 1], ascending from 0; of a signed tensor with their negatives."""
    return torch.cat([-magnitudes[1:].flip(0), magnitudes]) if signed else magnitudes


def levels(bits: int, signed: bool) -> int:
    """Returns K, the number of magnitudes above zero that have codes."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


@register("uniform")
def uniform(bits: int, signed: bool) -> Tensor:
    """k / K, with the one extra negative code of two's complement."""
    k = levels(bits, signed)
    return (torch.arange(-(k + 1) if signed else 0, k + 1, dtype=torch.double) / k).float()


@register("power", p=[round(0.1 * i, 1) for i in range(10, 1, -1)])
def power(bits: int, signed: bool, p: float) -> Tensor:
    """|v_k| = (k / K)^(1 / p): uniform in |x|^p (LtSQ). p = 1 is uniform; the smaller, the denser around zero."""
    if not 0 < p <= 1:
        raise VisqError(f"codebook power needs 0 < p <= 1, got {p}")
    k = levels(bits, signed)
    return mirrored((torch.arange(k + 1, dtype=torch.double) / k).pow(1 / p).float(), signed)


@register("two_segment", shift=(1, 2, 3, 4, 5, 6), dense=(0.5, 0.25, 0.75))
def two_segment(bits: int, signed: bool, shift: int, dense: float) -> Tensor:
    """Two uniform segments: codes up to D = dense * K step by s, the others by s 2^shift. In units of s every value
    is an integer: k up to D, D + ((k - D) << shift) beyond."""
    if shift < 0 or not 0 < dense < 1:
        raise VisqError(f"codebook two_segment needs shift >= 0 and 0 < dense < 1, got {shift} and {dense}")
    k = torch.arange(levels(bits, signed) + 1, dtype=torch.double)
    end = max(1, round(dense * (k.numel() - 1)))
    value = torch.where(k <= end, k, end + (k - end) * 2**shift)
    return mirrored((value / value[-1]).float(), signed)


@register("twin", signed_only=True, shift=(0, 1, 2, 3, 4, 5, 6, 7))
def twin(bits: int, signed: bool, shift: int) -> Tensor:
    """Twin uniform (PTQ4ViT, arXiv 2111.12293): half of the codes for the negative side, half for the positive,
    steps 2^shift apart."""
    if shift < 0:
        raise VisqError(f"codebook twin needs shift >= 0, got {shift}")
    half = 2 ** (bits - 1)
    codes = torch.arange(-half, half, dtype=torch.double)
    return (torch.where(codes < 0, codes * 2.0**-shift, codes) / (half - 1)).float()


@register("log2")
def log2(bits: int, signed: bool) -> Tensor:
    """|v_k| = 2^-(K - k), and zero: a product becomes a shift."""
    k = levels(bits, signed)
    return mirrored(torch.cat([torch.zeros(1), torch.exp2(torch.arange(1 - k, 1.0))]), signed)
