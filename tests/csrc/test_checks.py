"""What does not fit is refused with the operation, its index and the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.builder import Builder
from visq.native import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason="needs the C++ extension")

ONES, NONE = np.ones(64, np.float32), np.zeros(0, np.float32)


def new():  # type: ignore[no-untyped-def]
    """An engine with tensor 0, [6, 20] of floats."""
    engine = Builder("scalar", 3, 8)
    engine.add_tensor(6, 20, 0, -1)
    return engine


def test_messages_name_the_operation_and_the_numbers() -> None:
    def refused(message: str, call) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()

    engine = new()
    weight = np.zeros(30 * 20, np.float32)
    refused(
        "operation 0 \\(float linear\\): has 5 rows, but tensor 0 has 6",
        lambda: engine.float_linear(5, 30, 0, weight, ONES[:30]),
    )
    refused(
        "operation 0 \\(float linear\\): weight has 600 elements, not 620",
        lambda: engine.float_linear(6, 31, 0, weight, ONES[:31]),
    )
    engine.float_linear(6, 30, 0, weight, ONES[:30])
    refused(
        "operation 0, instruction 0 \\(rms_norm\\): weight has 29 elements, not 30",
        lambda: engine.rms_norm(1, 0, ONES[:29], 1e-5, 0),
    )
    engine.unary("silu", 1, 0, 0)
    refused("operation 0, instruction 1 \\(silu\\): register 1 is written twice", lambda: engine.unary("silu", 1, 0, 0))
    refused(
        "operation 0, instruction 1 \\(store\\): register 1 is \\[6, 30\\], but tensor 0 \\[6, 20\\]",
        lambda: engine.store(1, 0),
    )
    for offset in (29, -1, 2**63 - 1):  # the last one once overflowed the sum of both, and was read from
        refused(
            f"operation 0, instruction 1 \\(slice\\): 2 channels from {offset} on are not in the 30 of register 1",
            lambda offset=offset: engine.slice(2, 1, offset, 2),
        )
    engine.slice(2, 1, 0, 29)
    refused("operation 0, instruction 1 \\(turn\\): 29 channels are not pairs", lambda: engine.turn(3, 2, 0))
    refused("operation 1 \\(mean\\): tensor 7 is none of the 1", lambda: engine.mean(7))
    refused("tensor 1: its width is 1048577, not between 1 and 1048576", lambda: engine.add_tensor(1, 2**20 + 1, 0, -1))
    refused(
        "codec 0: codes from 0 to 256 are not bytes",
        lambda: engine.add_codec(
            20, 6, ONES[:20], ONES[:20], ONES[:6], ONES[:6], NONE, ONES[:6], 0.0, 256.0, NONE, NONE
        ),
    )


def test_more_memory_than_the_machine_has_is_refused_with_the_number() -> None:
    """Forty tensors of 2^20 rows once loaded, and ended in bad_alloc at the first image."""
    engine = new()
    rows, width = 2**20, 2**16
    for index in range(2):
        engine.add_tensor(rows, width, rows * width * 4 * index, -1)
    engine.rows(6)
    engine.load(0, 0, -1, 0)
    needed = rows * width * 4 * 2
    with pytest.raises(ValueError, match=f"need {needed} bytes at a time, more than the [0-9]+ bytes of memory here"):
        engine.finish(needed, 0)
    with pytest.raises(ValueError, match=f"the arena has 64 bytes, but tensors end at {needed}"):
        engine.finish(64, 0)


def test_windows_that_do_not_fit_are_refused() -> None:
    engine = new()
    weight, bias = np.zeros(4 * 6 * 20, np.float32), ONES[:4]

    def refused(message: str, call) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()

    refused(
        "operation 0 \\(windows\\): its input has 6 rows, which is no square map",
        lambda: engine.windows(0, *[1] * 6, 0),
    )
    refused("tensor 0: has 6 rows, which are no map 4 high", lambda: engine.map(0, 4))
    engine.map(0, 2)
    refused(
        "operation 0 \\(windows\\): windows of 2 with padding 2 do not fit a side of 2",
        lambda: engine.windows(0, 2, 3, 1, 1, 2, 0, 0),
    )
    refused(
        "operation 0 \\(windows\\): the code outside is 256, no byte", lambda: engine.windows(0, 2, 3, 1, 1, 0, 0, 256)
    )
    engine.windows(0, 2, 3, 1, 1, 1, 0, 0)
    refused("operation 0 \\(mean\\): follows windows, which belong to a linear layer", lambda: engine.mean(0))
    refused(
        "operation 0 \\(float linear\\): has 6 rows, but 3 x 1 windows",
        lambda: engine.float_linear(6, 4, 0, weight, bias),
    )
    refused(
        "operation 0 \\(float linear\\): weight has 480 elements, not 600",
        lambda: engine.float_linear(3, 5, 0, weight, ONES[:5]),
    )
    engine.float_linear(3, 4, 0, weight, bias)
    refused(
        "operation 1 \\(shuffle\\): tensor 0 has 20 channels, which are no 3 x 3 times others",
        lambda: engine.pixel_shuffle(0, 3),
    )
