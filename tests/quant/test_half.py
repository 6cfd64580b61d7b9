"""Parameters in float16: what is rounded, what is not, and that artifacts lose nothing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from visq.quant.half import OF_LARGEST, RELATIVE, fits, round_parameters, stored

floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, min_size=1, max_size=20))
def test_what_fits_changes_by_little(values: list[float]) -> None:
    x = torch.tensor(values)
    error = (x - x.half().float()).abs()
    allowed = x.abs() * RELATIVE + x.abs().max() * OF_LARGEST
    assert fits(x) == bool((error <= allowed).all())
    assert fits(x.half().float()) or x.abs().max() > 65504
    again = stored(x)
    assert again.float().equal(x) and (again.dtype == torch.float16) == x.half().float().equal(x)


def test_what_does_not_fit() -> None:
    assert fits(torch.tensor([1.0, 1e-6, 0.0])) and fits(torch.zeros(0))
    assert not fits(torch.tensor([7e4])) and not fits(torch.tensor([1e-6])) and not fits(torch.tensor([float("nan")]))


def test_parameters_that_do_not_fit_stay() -> None:
    parameters = [nn.Parameter(torch.full((2,), value)) for value in (1 / 3, 1e-7, 7e4)]
    round_parameters(parameters)
    assert [p[0].item() for p in parameters] == [torch.tensor(1 / 3).half().item(), torch.tensor(1e-7).item(), 7e4]
