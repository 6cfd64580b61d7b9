"""Writes how a site's codes are made and read into a kernel; `visq.integer.codecs` is the definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import Floats
from visq.integer.codecs import Codec
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.codecs import codec_arrays
from visq.runtime.cuda.text import At, Text

#: 2^23, behind whose digits `kernels.less_zero` puts a byte.
BEFORE_BYTES = 8388608.0


@dataclass(frozen=True)
class SiteCodes:
    """The codes of a site in a tensor [rows, width].

    Attributes:
        reverse: whether token scales count from the last row.
        sequences: how many sequences the rows are; each has all token scales.
    """

    codec: Codec
    reverse: bool
    sequences: int = 1

    def encode(self, text: Text, x: str, at: At) -> str:
        """Writes the byte of x, int32."""
        codec = self.codec
        x = text.let(f"{x} * {self._by_channel(text, codec.inverse_channel, at)}")
        if codec.inverse_token is not None:
            x = text.let(f"{x} * {self._by_token(text, codec.inverse_token, at)}")
        if codec.thresholds is not None:
            steps = codec.thresholds.size.bit_length()
            padded = np.full(max((1 << steps) - 1, 1), np.inf, np.float32)
            padded[: codec.thresholds.size] = codec.thresholds
            return text.let(f"k.count_below({x}, {text.parameter(padded)}, {codec.thresholds.size}, {steps})")
        low, high = codec.low + codec.offset, codec.high + codec.offset
        zero = self._zero(text, (codec.zero + np.float32(codec.offset)).astype(np.float32), at)
        return text.let(f"k.clamp(k.whole({x}) + {zero}, {low}.0, {high}.0).to(tl.int32)")

    def integers(self, text: Text, byte: str, at: At) -> str:
        """Writes the code of a byte less its zero point, int32."""
        codec = self.codec
        zero = (codec.zero + np.float32(codec.offset)).astype(np.int32)
        if not codec.zero.any() and codec.offset in (0, 128):
            return text.let(f"{byte}.to(tl.int32)" if codec.offset == 0 else f"k.less_128({byte})")
        return text.let(f"{byte}.to(tl.int32) - {self._loaded(text, zero, at)}")

    def lift(self, text: Text, at: At) -> str | None:
        """Writes 128 less the zero point, int32, so that a code is `byte - 128` plus it; None where it is 0."""
        lift = (128 - (self.codec.zero + np.float32(self.codec.offset))).astype(np.int32)
        return self._loaded(text, lift, at) if lift.any() else None

    @property
    def zero_by_channel(self) -> bool:
        """Returns whether channels have zero points of their own."""
        return self.codec.zero.size > 1 and not self.codec.zero_by_token

    def decode(self, text: Text, byte: str, at: At) -> str:
        """Writes the float32 value of a byte."""
        codec = self.codec
        if codec.table is None:
            zero = (codec.zero + np.float32(codec.offset + BEFORE_BYTES)).astype(np.float32)
            x = text.let(f"k.less_zero({byte}, {self._zero(text, zero, at)})")
        else:
            x = text.let(f"tl.load({text.parameter(codec.table)} + {byte}.to(tl.int32))")
        x = text.let(f"{x} * {self._by_channel(text, codec.step_channel, at)}")
        if codec.step_token is not None:
            x = text.let(f"{x} * {self._by_token(text, codec.step_token, at)}")
        return x

    def _by_channel(self, text: Text, x: Floats, at: At) -> str:
        return text.vector(x, at.column, at.has_column, "0.0")

    def _by_token(self, text: Text, x: np.ndarray, at: At) -> str:
        x = np.tile(x, self.sequences)
        return text.vector(x[::-1] if self.reverse else x, at.token, at.has_row)

    def _loaded(self, text: Text, x: np.ndarray, at: At) -> str:
        """Writes the load of int32 x, of which the compiler knows nothing (`kernels.unknown` says why)."""
        return self._by_token(text, x, at) if self.codec.zero_by_token else text.vector(x, at.column, at.has_column)

    def _zero(self, text: Text, zero: np.ndarray, at: At) -> str:
        """Returns zero point and offset; a number in the text where it is the plain offset."""
        if self.codec.zero_by_token:
            return self._by_token(text, zero, at)
        if zero.size == 1 and not self.codec.zero.any():
            return str(zero[0])
        return text.vector(zero, at.column, at.has_column)


def site_codes(bundle: Bundle, site: str, rows: int, width: int, reverse: bool, length: int | None) -> SiteCodes:
    """Returns the codes of a site in a tensor [rows, width], of sequences of `length` rows where that is given.

    Raises:
        VisqError: the site was made for another shape, or its numbers are beyond the engine's.
    """
    codec = bundle.codec(site)
    codec_arrays(site, codec, rows, width, reverse, length)
    return SiteCodes(codec, reverse, rows // (length or rows))
