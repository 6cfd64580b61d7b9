"""Weights as the engine takes them: codes with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from visq.errors import VisqError, first_problem
from visq.integer.arithmetic import Codes, Floats
from visq.integer.codecs import Codec


@dataclass(frozen=True)
class Weight:
    """A coded weight: codes [N, ...] less their zero point, a scale for each row or one, and what the quantizer
    multiplies its columns by (1 where nothing), in the coordinates of `rotation` if there is one."""

    codes: Codes
    scale: Floats
    smooth: Floats
    rotation: Floats | None = None
    divisor: Floats | None = None

    def decoded(self) -> Floats:
        rows = (-1,) + (1,) * (self.codes.ndim - 1)
        return self.codes.astype(np.float32) * self.scale.reshape(rows) * self.smooth


def coded_weight(
    codes: Codes, quantizer: Codec, rotation: Floats | None = None, divisor: Floats | None = None
) -> Weight | Floats:
    """A weight of the codes [N, ...] its quantizer gave it; with a table, the values they stand for."""
    rows = (-1,) + (1,) * (codes.ndim - 1)
    if quantizer.table is not None:
        values: Floats = quantizer.table[codes] * quantizer.scale.reshape(rows) * quantizer.smooth
        return values
    codes = codes - quantizer.zero.astype(np.int16).reshape(rows)
    if codes.size and codes.min() >= -128 and codes.max() <= 127:
        codes = codes.astype(np.int8)
    return Weight(codes, quantizer.scale, quantizer.smooth, rotation, divisor)


def made(make: Any, site: str, record: dict[str, Any], parts: dict[str, np.ndarray]) -> Any:
    """What `make` makes of a stored quantizer; whatever is wrong with it becomes a VisqError of one line."""
    try:
        return make(site, record, parts)
    except (ValueError, KeyError, TypeError) as error:
        what = first_problem(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise VisqError(f"sites.{site}.quantizer cannot be read: {what}") from error
