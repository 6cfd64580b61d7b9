"""Bilinear resampling and averages over parts: against PyTorch, and the engine against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tests.runtime.agreement import check
from tests.runtime.programs import Maker
from tests.runtime.test_dense import a_map
from visq.integer import operations as ir
from visq.integer.resampling import average_pool, bilinear

SIZES = [((1, 1), (3, 4)), ((3, 5), (6, 10)), ((4, 7), (8, 13)), ((9, 6), (4, 4)), ((2, 3), (2, 3))]


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_the_definition_is_pytorchs(size: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(*size, 3, generator=torch.Generator().manual_seed(0))
    maps = x.permute(2, 0, 1)[None]
    wanted = F.interpolate(maps, target, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(bilinear(x.numpy(), *target), wanted.numpy(), rtol=1e-6, atol=1e-6)
    means = F.adaptive_avg_pool2d(maps, target)[0].permute(1, 2, 0)
    np.testing.assert_allclose(average_pool(x.numpy(), *target), means.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [None, "channel"])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_the_engine_has_the_oracles_bits(kind: str | None, size: tuple[int, int], target: tuple[int, int]) -> None:
    maker = Maker(3)
    x, like = a_map(maker, *size, 21, kind), a_map(maker, *target, 2, None)
    rows = target[0] * target[1]
    maker.operation(ir.Bilinear(input=x, like=like), rows, 21)
    maker.store()
    maker.operation(ir.AveragePool(input=x, height=target[0], width=target[1]), rows, 21)
    check(maker, maker.store(kind="tensor"))


@pytest.mark.parametrize("kind", ["bilinear", "average_pool"])
def test_a_program_that_does_not_fit_is_refused(kind: str) -> None:
    maker = Maker(4)
    x = a_map(maker, 4, 4, 8, None)
    source = ir.Bilinear(input=x, like=x) if kind == "bilinear" else ir.AveragePool(input=x, height=2, width=3)
    maker.operation(source, 12, 8)
    output = maker.store()
    with pytest.raises(ValidationError, match="shape is not that of"):
        maker.program(output)
