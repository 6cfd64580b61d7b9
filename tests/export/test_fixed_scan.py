"""ONNX of scans in fixed point against the oracle: the engine's whole numbers, and y from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.programs import Maker
from tests.runtime.scan_programs import FUSED, at_their_ends, start_scan
from visq.integer.float_scan import FloatScan
from visq.runtime.operation_forms import form_of
from visq.runtime.oracle import Oracle

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.program import to_onnx
from visq.export.runtimes import installed

SCANS: dict[str, dict[str, Any]] = {
    "codes": {},
    "codes backwards": {"reverse": True},
    "4 bits": {"bits": 4},
    "one step": {"h": "one"},
    "divisors": {"bbar": "uniform channels", "delta": "channel"},
    "tables": {"abar": "table", "bbar": "table"},
    "fused": FUSED,
    "fused backwards": {**FUSED, "reverse": True, "b": "token", "c": "token asymmetric", "delta": "token"},
    "ladder": {**FUSED, "ladder": True},
}
#: What `make test-slow` runs.
LATER = ("codes backwards", "4 bits", "one step")


def check(maker: Maker, equal: float) -> None:
    """Compares y in every installed runtime with the oracle's; `equal` is the least fraction of equal elements."""
    output = maker.store()
    maker.tensors[output] = maker.tensors[output].model_copy(update={"height": 1})
    program = maker.program(output).model_copy(update={"output_map": True})
    assert not isinstance(form_of(program, program.operations[-1], maker.bundle), FloatScan)
    images = maker.images(2)
    expected = Oracle(program, maker.bundle)(images)
    content = to_onnx(program, maker.bundle, chunk=4).SerializeToString()
    for name, open_content in installed().items():
        found = open_content(content, 1)[0](images)
        assert found.shape == expected.shape
        apart = np.abs(found - expected) / np.abs(expected).max()
        # One code of an input, or one unit of a product, may fall to the other side of an edge.
        assert (apart < 1e-6).mean() >= equal, name
        assert apart.max() < 0.05, name


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in LATER else kind for kind in SCANS]
)
def test_scans_are_the_engines(kind: str) -> None:
    maker = Maker(1)
    start_scan(maker, 11, 6, 10 if kind == "ladder" else 4, **SCANS[kind])
    check(maker, 0.97)


@pytest.mark.parametrize("kind", ["codes", "fused"])
def test_states_at_their_ends(kind: str) -> None:
    maker = Maker(0)
    start_scan(maker, 12, 24, 8, **SCANS[kind], largest_u=100.0)
    at_their_ends(maker)
    check(maker, 0.97)
