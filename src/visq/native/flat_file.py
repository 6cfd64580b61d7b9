"""Writes the flat file: the one way into the C++ engine, on disk and in memory.

A file is a header, a table of three sections, and the sections: `about` (what a caller must know), `program` (records,
each a call of the engine's builder), and `tensors`. `csrc/file/` reads it, and docs/deploy.md describes it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from visq.integer.arithmetic import Floats
from visq.native.memory import LANES, LINE, pad

MAGIC = b"\x89VISQ\r\n\x1a"
ENDIAN_MARK = 0x01020304
VERSION = 1

_HEADER = struct.Struct("<8sIIQQI28x")
_ENTRY = struct.Struct("<IIQQ")
_CHECKSUM_WORD = 3
_FACTOR = 0x9E3779B97F4A7C15
#: Outputs that lie together in a weight, and elements of one of them.
_PANEL, _STEP = 64, 4

_TAGS = {
    np.dtype(np.float32): b"F",
    np.dtype(np.int32): b"I",
    np.dtype(np.int16): b"H",
    np.dtype(np.int8): b"B",
}


class Tensors:
    """The bytes of arrays, each aligned to a line. Equal arrays are stored once."""

    def __init__(self) -> None:
        self.size = 0
        self.pieces: list[tuple[int, bytes | memoryview]] = []
        self._found: dict[bytes, int] = {}

    def add(self, array: np.ndarray) -> int:
        """Returns where the array's bytes lie in the section."""
        data = array.tobytes()
        if (offset := self._found.get(data)) is None:
            offset = self._found[data] = self.size
            self.pieces.append((offset, data))
            self.size += pad(len(data), LINE)
        return offset


class Records:
    """A section of records over the arrays of `tensors`."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self._parts: list[bytes] = []
        # Where the section holds an offset in the tensors: the file's layout is known only at the end.
        self._arrays: list[tuple[int, int]] = []
        self._size = 0

    def add(self, name: str, *arguments: Any) -> None:
        """Adds a record. Arguments are whole numbers, floats, texts, vectors, or `Panels`."""
        parts = [bytes([len(name)]), name.encode(), bytes([len(arguments)])]
        size = 2 + len(name)
        for value in arguments:
            part = self._encoded(value, size)
            parts.append(part)
            size += len(part)
        self._parts += parts
        self._size += size

    def _encoded(self, value: Any, at: int) -> bytes:
        if isinstance(value, Panels):
            return self._array(value.tag, value.data, at)
        if isinstance(value, np.ndarray):
            return self._array(_TAGS[value.dtype], value, at)
        if isinstance(value, str):
            text = value.encode()
            return struct.pack("<cI", b"s", len(text)) + text
        if isinstance(value, float | np.floating):
            return b"f" + np.float32(value).astype("<f4").tobytes()
        return struct.pack("<cq", b"i", int(value))

    def _array(self, tag: bytes, array: np.ndarray, at: int) -> bytes:
        offset = self.tensors.add(array.astype(array.dtype.newbyteorder("<"), copy=False))
        self._arrays.append((self._size + at + 9, offset))
        return struct.pack("<cQQ", tag, array.size, 0)

    def bytes(self, first: int) -> bytes:
        """Returns the section for tensors that start at the file's byte `first`."""
        whole = bytearray(b"".join(self._parts))
        for at, offset in self._arrays:
            struct.pack_into("<Q", whole, at, first + offset)
        return bytes(whole)


class Panels:
    """A weight [N, K] int8 as kernels read it: panels of 64 outputs, each [steps of 4 elements][outputs][4].

    Weights within -8..7 lie two to a byte: element k of a step in the low half, element k + 4 in the high half.
    """

    def __init__(self, weight: np.ndarray) -> None:
        nibbles = bool(weight.size) and int(weight.min()) >= -8 and int(weight.max()) <= 7
        self.tag = b"N" if nibbles else b"P"
        width, length = weight.shape
        each = 2 * _STEP if nibbles else _STEP
        padded = np.zeros((pad(width, LANES), pad(length, each)), np.int8)
        padded[:width, :length] = weight
        steps = padded.reshape(len(padded), -1, each)
        if nibbles:
            halves = steps.view(np.uint8)
            steps = ((halves[..., :_STEP] & 15) | (halves[..., _STEP:] << 4)).view(np.int8)
        panels = [steps[n : n + _PANEL].transpose(1, 0, 2).reshape(-1) for n in range(0, len(steps), _PANEL)]
        self.data = np.concatenate(panels)


class FlatFile:
    """A flat file while it is written: what the engine's builder is asked for, call by call (csrc/program/engine.h).

    Arguments:
        channels, height, width: of its images, which are square without `width`.

    Attributes:
        about: records on images, classes and names; empty for programs that only Python runs.
    """

    def __init__(self, channels: int, height: int, width: int | None = None) -> None:
        self._tensors = Tensors()
        self.about, self._program = Records(self._tensors), Records(self._tensors)
        self._counts = {"add_codec": 0, "add_tensor": 0}
        self.add("input", channels, height, *(() if width in (None, height) else (width,)))

    def add(self, call: str, *arguments: Any) -> None:
        """Records a call of the builder."""
        self._program.add(call, *arguments)

    def _counted(self, call: str, *arguments: Any) -> int:
        self.add(call, *arguments)
        self._counts[call] += 1
        return self._counts[call] - 1

    def add_codec(self, width: int, rows: int, *numbers: Floats | float) -> int:
        """Returns the index of a new codec; `numbers` as in `csrc/program/engine.h`."""
        return self._counted("add_codec", width, rows, *numbers)

    def add_tensor(self, rows: int, width: int, offset: int, codec: int) -> int:
        """Returns the index of a new tensor at `offset` of the arena; `codec` is -1 for float32."""
        return self._counted("add_tensor", rows, width, offset, codec)

    def int_linear(self, rows: int, width: int, x: int, weight: np.ndarray, *vectors: np.ndarray) -> None:
        """Records an integer linear layer with weight [width * K] int8; vectors are scale, token, zero, bias."""
        self.add("int_linear", rows, width, x, Panels(weight.reshape(width, -1)), *vectors)

    def bytes(self) -> np.ndarray:
        """Returns the whole file, uint8, at an address that is a multiple of 64."""
        sections = [_HEADER.size + pad(3 * _ENTRY.size, LINE)]
        about, program = self.about.bytes(0), self._program.bytes(0)
        for size in (len(about), len(program)):
            sections.append(sections[-1] + pad(size, LINE))
        first = sections[2]
        about, program = self.about.bytes(first), self._program.bytes(first)
        size = first + self._tensors.size + LINE  # whole vectors are read to the end
        whole = aligned(size)
        entries = ((1, sections[0], len(about)), (2, sections[1], len(program)), (3, first, self._tensors.size))
        table = b"".join(_ENTRY.pack(kind, 0, offset, length) for kind, offset, length in entries)
        _put(whole, _HEADER.size, table)
        _put(whole, sections[0], about)
        _put(whole, sections[1], program)
        for offset, data in self._tensors.pieces:
            _put(whole, first + offset, data)
        _put(whole, 0, _HEADER.pack(MAGIC, ENDIAN_MARK, VERSION, size, 0, 3))
        _put(whole, 8 * _CHECKSUM_WORD, struct.pack("<Q", checksum(whole)))
        return whole


def _put(whole: np.ndarray, at: int, data: bytes | memoryview) -> None:
    whole[at : at + len(data)] = np.frombuffer(data, np.uint8)


def aligned(size: int) -> np.ndarray:
    """Returns zeros [size] uint8 at an address that is a multiple of 64, as the engine reads weights in place."""
    room = np.zeros(size + LINE, np.uint8)
    return room[-room.ctypes.data % LINE :][:size]


def checksum(whole: np.ndarray) -> int:
    """Returns the sum over all 64-bit words of (word + 1) (2 index + 1) times an odd constant, modulo 2^64.

    The word that holds the checksum counts as 0. Every change of one or two bits changes the sum.
    """
    words = whole.view("<u8")
    total, block = 0, 1 << 16
    for first in range(0, len(words), block):
        part = words[first : first + block].astype(np.uint64)
        if first == 0:
            part[_CHECKSUM_WORD] = 0
        index = np.arange(first, first + len(part), dtype=np.uint64)
        factors = (index * np.uint64(2) + np.uint64(1)) * np.uint64(_FACTOR)
        total += int(np.sum((part + np.uint64(1)) * factors, dtype=np.uint64))
    return total % 2**64
