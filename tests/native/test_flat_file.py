"""The flat file as Python writes it, against C++ where both compute the same."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from visq.native.extension import _C, available
from visq.native.flat_file import FlatFile, Panels, Records, Tensors, aligned, checksum

needs_extension = pytest.mark.skipif(not available(), reason="needs the C++ extension")


def file_of(weight: np.ndarray) -> np.ndarray:
    """A program of one integer linear layer over an image of one channel."""
    width, length = weight.shape
    ones, zeros = np.ones(length, np.float32), np.zeros(1, np.float32)
    file = FlatFile(1, 1)
    codec = file.add_codec(
        length, 1, ones, ones, ones[:1], ones[:1], zeros[:0], zeros, 0.0, 255.0, zeros[:0], zeros[:0]
    )
    x = file.add_tensor(1, length, 0, codec)
    y = file.add_tensor(1, width, 65536, -1)
    vectors = (np.ones(width, np.float32), ones[:1], zeros.astype(np.int32), np.zeros(width, np.float32))
    file.int_linear(1, width, x, weight, *vectors)
    file.add("store", 0, y)
    file.add("finish", 1 << 20, y)
    return file.bytes()


@needs_extension
@pytest.mark.parametrize("size", [64, 128, 8 * 65536, 8 * 65536 + 64])
def test_checksum_is_that_of_cpp(size: int) -> None:
    whole = aligned(size)
    whole[:] = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert checksum(whole) == _C.file_checksum(whole)


def test_checksum_sees_any_two_bits() -> None:
    whole = aligned(256)
    first = checksum(whole)
    bits = [bit for bit in range(8 * 256) if bit // 64 != 3]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        chosen = rng.choice(bits, size=rng.integers(1, 3), replace=False)
        for bit in chosen:
            whole[bit // 8] ^= np.uint8(1 << bit % 8)
        assert checksum(whole) != first
        for bit in chosen:
            whole[bit // 8] ^= np.uint8(1 << bit % 8)
    whole[24:32] = 255  # where the checksum itself lies
    assert checksum(whole) == first


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "length"), [(1, 1), (16, 8), (70, 13), (192, 40)])
def test_panels_hold_every_weight_in_its_place(bits: int, width: int, length: int) -> None:
    low, high = (-8, 8) if bits == 4 else (-128, 128)
    weight = np.random.default_rng(0).integers(low, high, (width, length), dtype=np.int8)
    weight[0, 0] = low
    panels = Panels(weight)
    each = 8 if bits == 4 else 4
    steps, padded = -(-length // each), -(-width // 16) * 16
    assert panels.tag == (b"N" if bits == 4 else b"P") and panels.data.size == padded * steps * 4
    for n in range(width):
        first = n // 64 * 64
        outputs = min(64, padded - first)
        for k in range(length):
            byte = int(panels.data[first * steps * 4 + (k // each * outputs + n - first) * 4 + k % 4])
            if bits == 4:
                half = byte >> 4 if k % 8 >= 4 else byte & 15
                byte = half - 16 if half > 7 else half
            assert byte == weight[n, k]


def test_equal_arrays_are_stored_once_and_aligned() -> None:
    tensors = Tensors()
    a, b = np.arange(5, dtype=np.float32), np.arange(6, dtype=np.int16)
    assert [tensors.add(x) for x in (a, b, a.copy())] == [0, 64, 0]
    assert tensors.size == 128


def test_records_say_their_types() -> None:
    records = Records(Tensors())
    records.add("name", 3, 0.5, "text", np.arange(2, dtype=np.int16))
    expected = b"\x04name\x04" + b"i" + struct.pack("<q", 3) + b"f" + struct.pack("<f", 0.5)
    expected += b"s" + struct.pack("<I", 4) + b"text" + b"H" + struct.pack("<QQ", 2, 640)
    assert records.bytes(640) == expected


@needs_extension
def test_same_program_same_bytes_and_weights_stay_where_they_are() -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (128, 64), dtype=np.int8)
    whole = file_of(weight)
    assert np.array_equal(whole, file_of(weight)) and whole.ctypes.data % 64 == 0
    engine = _C.Engine("scalar", whole)
    assert engine.output_width == 128
    del engine


@needs_extension
def test_an_address_that_is_not_aligned_is_refused() -> None:
    whole = file_of(np.ones((16, 8), np.int8))
    moved = aligned(len(whole) + 64)[8:][: len(whole)]
    moved[:] = whole
    with pytest.raises(ValueError, match="does not start at a multiple of 64"):
        _C.Engine("scalar", moved)


@needs_extension
@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("mean", (0, 0), "record 1 \\(mean\\): it has 2 arguments, not 1"),
        ("mean", (), "record 1 \\(mean\\): it has only 0 arguments"),
        ("mean", ("0",), "record 1 \\(mean\\): argument 1 has another type"),
        ("mean", (1 << 40,), "record 1 \\(mean\\): argument 1 is beyond 32 bits"),
        ("nothing", (), "record 1 \\(nothing\\): there is no such record"),
    ],
)
def test_records_that_do_not_fit_are_refused(call: str, arguments: tuple[object, ...], message: str) -> None:
    file = FlatFile(1, 1)
    file.add(call, *arguments)
    with pytest.raises(ValueError, match=message):
        _C.Engine("scalar", file.bytes())
