"""Packs integer codes of 2 to 8 bits into bytes, lowest bit first; codes of 0 bits are all zero and take no byte.

Code i occupies bits i*b to (i+1)*b - 1 of the stream. Bit j of the stream is bit j % 8 of byte j // 8. So a byte holds
two 4-bit codes (the first in the low half), and three bytes hold four 6-bit codes. Zeros fill up the last byte. See
docs/artifact.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError


def packed_bytes(count: int, bits: int) -> int:
    """Returns the number of bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: NDArray[np.integer], bits: int, offset: int = 0) -> NDArray[np.uint8]:
    """Packs codes of any shape in C order, each as `codes + offset` in `bits` bits. Returns [packed_bytes] uint8.

    Raises:
        VisqError: a code does not fit.
    """
    flat = codes.astype(np.int64).ravel() + offset
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        found = f"{flat.min() - offset}..{flat.max() - offset}"
        raise VisqError(f"codes {found} do not fit into {bits} bits with offset {offset}")
    if bits == 0:
        return np.zeros(0, np.uint8)
    if bits == 8:
        return flat.astype(np.uint8)
    planes = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(planes, bitorder="little")


def unpack(data: NDArray[np.uint8], bits: int, shape: tuple[int, ...], offset: int = 0) -> NDArray[np.int16]:
    """Inverts `pack`. Returns int16 codes of `shape`.

    Raises:
        VisqError: the number of bytes is wrong, or the padding is not zero.
    """
    count = math.prod(shape)
    if data.size != packed_bytes(count, bits):
        raise VisqError(f"{data.size} bytes for {count} codes of {bits} bits, expected {packed_bytes(count, bits)}")
    if bits == 0:
        flat = np.zeros(count, np.int16)
    elif bits == 8:
        flat = data.astype(np.int16)
    else:
        stream = np.unpackbits(data, bitorder="little")
        if stream[count * bits :].any():
            raise VisqError("the padding after the last code is not zero")
        planes = stream[: count * bits].reshape(count, bits)
        flat = np.packbits(planes, axis=1, bitorder="little")[:, 0].astype(np.int16) if count else np.zeros(0, np.int16)
    return (flat - np.int16(offset)).reshape(shape)
