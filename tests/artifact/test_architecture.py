"""Tests that a geometry which the file's weights cannot fit is refused before a network is built."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from visq.artifact.architecture import skeleton
from visq.artifact.schema import Architecture
from visq.errors import VisqError
from visq.models import VimConfig, VMambaConfig


@pytest.mark.parametrize(
    "family, config, change",
    [
        ("vim", VimConfig(), {"depth": 101}),
        ("vim", VimConfig(), {"embed_dim": 1 << 21}),
        ("vim", VimConfig(), {"drop_path": float("nan")}),
        ("vmamba", VMambaConfig(), {"depths": (50, 51)}),
        ("vmamba", VMambaConfig(), {"depths": (1,) * 101}),
        ("vmamba", VMambaConfig(), {"depths": (-1, 5)}),
    ],
)
def test_absurd_sizes(family: str, config: Any, change: dict[str, Any]) -> None:
    architecture = Architecture(family=family, geometry=asdict(config) | change)
    with pytest.raises(VisqError, match=f"architecture.geometry.{next(iter(change))} is .*no weights in the file"):
        skeleton(architecture, max_depth=100)


def test_values_of_another_kind() -> None:
    for change in ({"embed_dim": "wide"}, {"depths": 3}, {"forward_type": "v9"}):
        with pytest.raises(VisqError, match="must be"):
            skeleton(Architecture(family="vmamba", geometry=asdict(VMambaConfig()) | change), max_depth=100)
