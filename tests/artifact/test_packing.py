"""Tests that packed codes unpack to themselves, and that bad codes and bytes are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visq.artifact.packing import pack, packed_bytes, unpack
from visq.errors import VisqError


@given(st.data(), st.integers(2, 8), st.lists(st.integers(0, 4), max_size=3))
def test_unpack_inverts_pack(data: st.DataObject, bits: int, shape: list[int]) -> None:
    count = int(np.prod(shape))
    offset = data.draw(st.sampled_from([0, 2 ** (bits - 1), 2 ** (bits - 1) - 1]))
    values = data.draw(st.lists(st.integers(-offset, 2**bits - 1 - offset), min_size=count, max_size=count))
    codes = np.array(values, np.int16).reshape(shape)
    packed = pack(codes, bits, offset)
    assert packed.dtype == np.uint8 and packed.size == packed_bytes(count, bits) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, tuple(shape), offset), codes)


def test_bit_order_is_the_documented_one() -> None:
    assert pack(np.array([0x1, 0xA]), 4).tolist() == [0xA1]
    six = [1, 2, 3, 4]
    word = sum(code << (6 * i) for i, code in enumerate(six))
    assert pack(np.array(six), 6).tolist() == list(word.to_bytes(3, "little"))
    assert pack(np.array([-8, 7]), 4, offset=8).tolist() == [0xF0]
    assert pack(np.array([-128, 127]), 8, offset=128).tolist() == [0, 255]


@pytest.mark.parametrize("bits, codes, offset", [(4, [16], 0), (4, [-1], 0), (2, [2], 2), (8, [128], 128)])
def test_codes_that_do_not_fit_are_refused(bits: int, codes: list[int], offset: int) -> None:
    with pytest.raises(VisqError, match="do not fit"):
        pack(np.array(codes), bits, offset)


def test_wrong_size_and_padding_are_refused() -> None:
    with pytest.raises(VisqError, match="2 bytes for 5 codes"):
        unpack(np.zeros(2, np.uint8), 4, (5,))
    with pytest.raises(VisqError, match="padding"):
        unpack(np.array([0, 0x10], np.uint8), 4, (3,))
