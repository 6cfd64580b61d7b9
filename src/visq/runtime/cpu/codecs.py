"""Writes each codec into the flat file once."""

from __future__ import annotations

import numpy as np

from visq.errors import need
from visq.integer.arithmetic import Floats
from visq.integer.codecs import Codec
from visq.native.flat_file import FlatFile
from visq.native.memory import empty
from visq.runtime.bundle import Bundle

#: With zero points up to this, a code less its zero point fits 16 bits.
LARGEST_ZERO_POINT = 16000


class CodecTable:
    """The file's index of each codec. Codecs with equal numbers share an index."""

    def __init__(self, bundle: Bundle, file: FlatFile) -> None:
        self.bundle, self.file = bundle, file
        self._by_use: dict[tuple[str, int, int, bool, int | None], int] = {}
        self._by_content: dict[tuple[bytes | float, ...], int] = {}

    def index(self, site: str, rows: int, width: int, reverse: bool, length: int | None = None) -> int:
        """Returns the index of a site's codec for tensors [rows, width].

        `reverse` counts token scales from the end; with `length` they are those of each sequence of so many rows.
        """
        use = (site, rows, width, reverse, length)
        if use not in self._by_use:
            arrays = codec_arrays(site, self.bundle.codec(site), rows, width, reverse, length)
            content = (width, rows, *(x.tobytes() if isinstance(x, np.ndarray) else x for x in arrays))
            if content not in self._by_content:
                self._by_content[content] = self.file.add_codec(width, rows, *arrays)
            self._by_use[use] = self._by_content[content]
        return self._by_use[use]


def codec_arrays(
    site: str, codec: Codec, rows: int, width: int, reverse: bool, length: int | None = None
) -> tuple[Floats | float, ...]:
    """Returns a codec as the extension takes it: a factor for each channel and row, zero points, range, table.

    Raises:
        VisqError: the codec was made for another shape, or the engine cannot hold its numbers.
    """
    order = slice(None, None, -1 if reverse else 1)

    def spread(x: Floats | None, size: int, what: str) -> Floats:
        x = np.ones(1, np.float32) if x is None else x
        need(x.size in (1, size), f"{site}: {what} of {x.size} elements for {size}")
        return np.ascontiguousarray(np.broadcast_to(x, size), np.float32)

    def by_token(x: Floats | None, what: str) -> Floats:
        need(x is None or x.size == (length or rows), f"{site}: {what} for another number of tokens")
        x = x if x is None or length is None else np.tile(x, rows // length)
        return np.ascontiguousarray(spread(x, rows, what)[order])

    whole = np.array_equal(np.rint(codec.zero), codec.zero) and np.abs(codec.zero).max() <= LARGEST_ZERO_POINT
    need(whole, f"{site}: zero points must be whole numbers within {LARGEST_ZERO_POINT}")
    zero = (codec.zero + np.float32(codec.offset)).astype(np.float32)
    by_channel = not codec.zero_by_token and zero.size > 1
    table = empty() if codec.table is None else codec.table
    thresholds = empty() if codec.thresholds is None else codec.thresholds
    need((np.diff(thresholds) >= 0).all(), f"{site}: its table is not in ascending order")
    return (
        spread(codec.inverse_channel, width, "scales"),
        spread(codec.step_channel, width, "scales"),
        by_token(codec.inverse_token, "scales"),
        by_token(codec.step_token, "scales"),
        spread(zero, width, "zero points") if by_channel else zero[:0],
        by_token(zero, "zero points") if codec.zero_by_token else np.full(rows, zero[0], np.float32),
        float(codec.low + codec.offset),
        float(codec.high + codec.offset),
        table,
        thresholds,
    )
