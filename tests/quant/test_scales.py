"""A scale that divides by zero or overflows cannot be made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from visq.errors import VisqError
from visq.integer.codecs import make_codec, make_state_codec
from visq.integer.spec import Spec
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.scales import SMALLEST, even_positive, usable

#: (scale, smooth): a factor without an inverse, and products that leave float32 at either end.
BAD = [(1e-39, 1.0), (1e-30, 1e-20), (1e30, 1e20), (0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)]


@pytest.mark.parametrize(("scale", "smooth"), BAD)
@pytest.mark.parametrize("axis", [None, -1, -2])
def test_no_quantizer_has_a_scale_without_inverse(scale: float, smooth: float, axis: int | None) -> None:
    size = 1 if axis is None else 3
    with pytest.raises(VisqError, match="scale"):
        Quantizer(Spec(bits=8), torch.full((size,), scale), axis=axis, smooth=torch.full((3,), smooth))
    with pytest.raises(VisqError, match="smooth"):
        Quantizer(Spec(bits=8), torch.full((size,), smooth), axis=axis, smooth=torch.full((3,), scale))


@pytest.mark.parametrize(("scale", "smooth"), BAD)
def test_the_engine_refuses_what_the_simulation_refuses(scale: float, smooth: float) -> None:
    parts = {"scale": np.array([scale]), "smooth": np.full(3, smooth)}
    record: dict[str, Any] = {"spec": {"bits": 8}, "read_quantized": True}
    with pytest.raises(VisqError, match="site"):
        make_codec("site", record, parts)
    with pytest.raises(VisqError, match="site"):
        make_state_codec("site", record, {"step": parts["scale"], "channel": parts["smooth"], "state": np.ones(2)})


@pytest.mark.parametrize(("scale", "smooth"), BAD)
def test_no_state_has_a_scale_without_inverse(scale: float, smooth: float) -> None:
    one = torch.ones(2)
    for factors in (
        (one * scale, one * smooth, one),
        (one, one * scale, one * smooth),
        (one * smooth, one, one * scale),
    ):
        with pytest.raises(VisqError, match="hidden state"):
            StateQuantizer(Spec(bits=8), *factors)


def test_the_smallest_factors_make_a_scale() -> None:
    least = usable(torch.zeros(2))
    h = StateQuantizer(Spec(bits=8), least, least, least)
    assert torch.isfinite(1 / h.scale()).all() and float(h.scale().min()) > torch.finfo(torch.float32).tiny
    assert torch.isfinite(h(torch.ones(1, 2, 2, 2))).all()


def test_dead_magnitudes_do_not_become_factors() -> None:
    assert even_positive(torch.tensor([0.0, 2.0, 4.0]), 0.25).tolist() == [1, 2, 4]
    for dead in (0.0, 1e-40, SMALLEST / 2):
        assert even_positive(torch.full((3,), dead), 0.25).tolist() == [1, 1, 1]
