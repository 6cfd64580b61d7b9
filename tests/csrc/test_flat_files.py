"""The networks that libvisq is tested with on every processor."""

from __future__ import annotations

from typing import get_args

from tests.csrc.flat_files import NETWORKS, small
from visq.integer.operations import Source
from visq.lowering import lower


def test_the_networks_have_every_kind_of_operation() -> None:
    """A new operation needs a network here, so that ARM and WebAssembly run it."""
    found = set()
    for network in NETWORKS:
        model = small(network)
        side = model.card.preprocess.image_size
        found |= {type(operation.source) for operation in lower(model, (side, side)).operations}
    assert found == set(get_args(get_args(Source)[0]))
