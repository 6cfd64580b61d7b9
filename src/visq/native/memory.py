"""Lays out arrays in memory for the C++ engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visq.errors import need
from visq.integer.arithmetic import Floats

#: A row of float32 is padded to a multiple of this many values, the widest vector.
LANES = 16
#: A row of codes is padded to a multiple of this many bytes, a cache line.
LINE = 64
#: Bytes past the end of all tensors, because whole vectors read the last row.
SPARE = 4 * LINE


def pad(n: int, to: int) -> int:
    """Returns the smallest multiple of `to` that is not below n."""
    return -(-n // to) * to


def row_bytes(width: int, coded: bool) -> int:
    """Returns the bytes that a row of `width` codes or float32 values takes."""
    return pad(width, LINE) if coded else pad(width, LANES) * 4


def flat(x: np.ndarray, dtype: type = np.float32) -> NDArray[np.generic]:
    """Returns x as a contiguous vector of another dtype.

    Raises:
        VisqError: an integer dtype cannot hold a value.
    """
    vector: NDArray[np.generic] = np.ascontiguousarray(x.reshape(-1), dtype)
    fits = np.dtype(dtype).kind == "f" or np.array_equal(vector, x.reshape(-1))
    need(fits, f"values do not fit {np.dtype(dtype)}")
    return vector


def empty() -> Floats:
    """Returns the vector that stands for "none" where the extension wants an array."""
    return np.zeros(0, np.float32)


@dataclass
class Arena:
    """A block of memory that gives out pieces, first fit, and takes them back.

    Attributes:
        align: every piece starts at a multiple of it and is a multiple of it long.
        size: end of the highest piece given out so far.
    """

    align: int
    size: int = 0
    _taken: list[tuple[int, int]] = field(default_factory=list)

    def take(self, amount: int) -> int:
        """Returns the offset of a free piece of `amount`, which is now taken."""
        amount = pad(amount, self.align)
        at = 0
        for begin, end in self._taken:
            if begin - at >= amount:
                break
            at = max(at, end)
        self._taken = sorted([*self._taken, (at, at + amount)])
        self.size = max(self.size, at + amount)
        return at

    def free(self, offset: int) -> None:
        """Takes back the piece at `offset`."""
        self._taken = [piece for piece in self._taken if piece[0] != offset]
