"""What a single process sees of `visq.parallel`; tests/calibrate/test_distributed.py runs several."""

from __future__ import annotations

import pytest

from visq import parallel
from visq.errors import VisqError


def test_a_single_process_has_everything() -> None:
    assert (parallel.world(), parallel.rank(), parallel.filler()) == (1, 0, False)
    assert list(parallel.share([1, 2, 3])) == [1, 2, 3] and list(parallel.each("x")) == ["x"]
    assert parallel.gather(7) == [7] and parallel.on_rank_zero(lambda: 8) == 8


@pytest.mark.parametrize("seconds", ["soon", "-1", "0", "1.5", ""])
def test_a_time_that_is_no_number_of_seconds(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was once reported as another process that does not answer."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(parallel.TIMEOUT, seconds)
    with pytest.raises(VisqError, match=f"{parallel.TIMEOUT} must be a whole number of seconds, not '{seconds}'"):
        parallel.start()
