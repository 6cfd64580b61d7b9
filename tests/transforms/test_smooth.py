"""Smoothing: sigma's formula, the network keeps its function, the search never does worse than no smoothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.layers import Linear
from visq.quant.site import ACTIVATION, WEIGHT
from visq.transforms.smooth import Smooth, estimate, search, smoothing

from .conftest import network, stage_run


def test_sigma_is_the_paper_s_up_to_a_constant() -> None:
    maximum, weight = torch.rand(6) + 0.1, torch.randn(4, 6)
    sigma = smoothing(maximum, weight, 0.3)
    expected = maximum**0.3 / weight.abs().amax(0) ** 0.7
    torch.testing.assert_close(sigma / sigma[0], expected / expected[0])
    assert float(sigma.log().mean()) == pytest.approx(0, abs=1e-5)


def test_a_dead_channel_stays_finite() -> None:
    maximum, weight = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[1.0, 0.0, 2.0]])
    for alpha in (0.0, 0.5, 1.0):
        sigma = smoothing(maximum, weight, alpha)
        assert torch.isfinite(sigma).all()
        assert (sigma > 0).all()
    assert torch.equal(smoothing(torch.zeros(3), torch.zeros(2, 3), 0.5), torch.ones(3))


@pytest.mark.parametrize("alpha", [0.5, "search"])
@pytest.mark.parametrize("fold", [False, True])
def test_the_network_computes_what_it_did(alpha: float | str, fold: bool, tmp_path: Path) -> None:
    model, images = network(), torch.randn(4, 1, 8, 8)
    before, norm = model(images), model.layers[0].norm.weight.clone()
    run = stage_run(model, images, tmp_path)
    Smooth(alpha=alpha, fold=fold, images=2).apply(run)
    torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)
    for name in run.smooth:
        path = name.rpartition(".")[0]
        sigma = run.smooth[f"{path}.in"]
        weight, x = model.get_submodule(path).weight, torch.randn(5, sigma.numel())
        product = (x / sigma) @ (weight / run.smooth[f"{path}.weight"]).T
        torch.testing.assert_close(product, x @ weight.T, rtol=1e-4, atol=1e-5)
    if alpha == 0.5:
        assert len({name.rpartition(".")[0] for name in run.smooth}) == (5 if fold else 6)
        assert torch.equal(norm, model.layers[0].norm.weight) != fold


def outlier_case() -> tuple[Tensor, Linear]:
    """Inputs [B, L, C] with two loud channels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 8, generator=generator)
    x[..., 1] *= 30
    x[..., 5] *= 10
    layer = Linear(8, 6, bias=False).requires_grad_(False)
    layer.weight.data = torch.randn(6, 8, generator=generator)
    return x, layer


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outliers", [False, True])
def test_the_search_never_loses_to_no_smoothing(bits: int, outliers: bool) -> None:
    x, layer = outlier_case()
    x = x if outliers else x / x.abs().amax((0, 1))
    estimator = {"name": "mse", "p": 2.4, "candidates": 20}
    activation = Spec(bits=bits, symmetric=False, granularity="token", estimator=estimator)
    weight = Spec(bits=bits, narrow=True, granularity="channel", estimator=estimator)

    def error(sigma: Tensor | None) -> float:
        x_hat = estimate(activation, ACTIVATION, x, sigma)(x)
        w_hat = estimate(weight, WEIGHT, layer.weight, None if sigma is None else 1 / sigma)(layer.weight)
        return float((x_hat @ w_hat.T - x @ layer.weight.T).square().mean())

    found = search(x, layer, x.abs().amax((0, 1)), activation, weight)
    assert error(found) <= error(None)
    if outliers:
        assert error(found) < 0.5 * error(None)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "serch"])
def test_an_impossible_exponent_is_refused(alpha: float | str) -> None:
    with pytest.raises(VisqError, match="alpha"):
        Smooth(alpha=alpha)
