"""Turns stored weights into codes with a scale for each row, which the engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visq.errors import VisqError, first_problem
from visq.integer.arithmetic import Codes, Floats
from visq.integer.codecs import Codec
from visq.integer.ladder import ladder_log


@dataclass(frozen=True)
class Weight:
    """A weight as codes.

    Attributes:
        codes: [N, ...], less their zero point.
        scale: [N], or [1] for all rows.
        smooth: factors of the decoded columns; 1 where the quantizer has none.
        rotation, divisor: as in `Bundle.rotation`, if the weight is stored rotated.
    """

    codes: Codes
    scale: Floats
    smooth: Floats
    rotation: Floats | None = None
    divisor: Floats | None = None

    def decoded(self) -> Floats:
        """Returns the values [N, ...] float32; those of a rotated weight stay rotated."""
        rows = (-1,) + (1,) * (self.codes.ndim - 1)
        return self.codes.astype(np.float32) * self.scale.reshape(rows) * self.smooth


def coded_weight(
    codes: Codes, quantizer: Codec, rotation: Floats | None = None, divisor: Floats | None = None
) -> Weight | Floats:
    """Returns the weight with codes [N, ...] of `quantizer`, or its float32 values where the quantizer has a table."""
    rows = (-1,) + (1,) * (codes.ndim - 1)
    if quantizer.table is not None:
        values: Floats = quantizer.table[codes] * quantizer.scale.reshape(rows) * quantizer.smooth
        return values
    codes = codes - quantizer.zero.astype(np.int16).reshape(rows)
    if codes.size and codes.min() >= -128 and codes.max() <= 127:
        codes = codes.astype(np.int8)
    return Weight(codes, quantizer.scale, quantizer.smooth, rotation, divisor)


def stored_ladder(parts: Mapping[str, np.ndarray], codes: Codes) -> Floats:
    """Returns the values [C, N] of a decay ladder; only the shape of its codes matters."""
    return ladder_log(parts["scale"], codes.shape[-1])


def made(make: Any, site: str, record: dict[str, Any], parts: dict[str, np.ndarray]) -> Any:
    """Returns `make` of a stored quantizer.

    Raises:
        VisqError: the quantizer is invalid; the error of `make` becomes one line that names the site.
    """
    try:
        return make(site, record, parts)
    except (ValueError, KeyError, TypeError) as error:
        what = first_problem(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise VisqError(f"sites.{site}.quantizer cannot be read: {what}") from error
