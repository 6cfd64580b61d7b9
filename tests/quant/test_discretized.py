"""Estimators of Abar and Bbar against the tensors themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visq import ops
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant import discretized
from visq.quant.discretized import make_discretized_estimator
from visq.quant.few_images import ENOUGH
from visq.quant.quantizer import Quantizer


def s4d(batch: int = 4, length: int = 30, channels: int = 12, states: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """A scan as in S4D: A = -(1..N), delta log-uniform in [1e-3, 1e-1], B and u normal."""
    g = torch.Generator().manual_seed(seed)
    delta = torch.exp(torch.rand(batch, length, channels, generator=g) * 4.6 - 6.9)
    return {
        "u": torch.randn(batch, length, channels, generator=g),
        "delta": delta,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(batch, length, states, generator=g).pow(3),
        "C": torch.randn(batch, length, states, generator=g),
    }


def tensors(scan: dict[str, Tensor]) -> dict[str, Tensor]:
    delta = scan["delta"][..., None]
    return {"abar": torch.exp(delta * scan["A"]), "bbar": delta * scan["B"][:, :, None]}


def estimate(
    site: str, scan: dict[str, Tensor], parts: int = 2, score: discretized.Score | None = None, **spec: object
) -> Quantizer:
    estimator = make_discretized_estimator(Spec.model_validate({"bits": 4, "signed": site == "bbar", **spec}), site)
    for delta, B in zip(scan["delta"].chunk(parts), scan["B"].chunk(parts), strict=True):
        estimator.observe(delta, scan["A"], B)
    return estimator.result(score)


def sqnr(quantizer: Quantizer, x: Tensor) -> float:
    return float(10 * torch.log10(x.square().sum() / (quantizer(x) - x).square().sum()))


def scan_loss(scan: dict[str, Tensor], **quantizers: Quantizer) -> float:
    exact = ops.selective_scan(*scan.values())
    found = ops.quantized_scan(*scan.values(), **{site: q.scan_argument() for site, q in quantizers.items()})
    return float((found - exact).square().sum())


@pytest.mark.parametrize("site", ["abar", "bbar"])
def test_minmax_is_the_range_of_the_tensor(site: str) -> None:
    scan = s4d()
    largest = tensors(scan)[site].abs().max()
    torch.testing.assert_close(estimate(site, scan).scale, (largest / (7 if site == "bbar" else 15)).view(1))


def test_bbar_has_the_range_of_each_channel() -> None:
    scan = s4d(batch=ENOUGH)
    scan["delta"][..., 3] = 0  # a channel that never drives its state
    x = tensors(scan)["bbar"].mT  # [B, L, N, C]
    quantizer = estimate("bbar", scan, granularity="channel")
    assert quantizer.smooth is not None
    largest, delta = x.abs().amax((0, 1, 2)), scan["delta"].amax((0, 1))
    reach = quantizer.smooth * quantizer.scale * 7
    torch.testing.assert_close(reach, torch.maximum(largest, delta * scan["B"].abs().max() / 4).clamp_min(1e-12))
    assert ((quantizer(x) - x).abs() <= reach / 14 * (1 + 1e-5)).all()
    assert (delta <= quantizer.smooth).all()
    assert sqnr(quantizer, x) > sqnr(estimate("bbar", scan), x)


@pytest.mark.parametrize("site", ["abar", "bbar"])
@pytest.mark.parametrize("bits", [4, 6])
def test_codebooks_are_ranked_as_the_method_says(site: str, bits: int) -> None:
    """uniform full range < uniform clipped <= power <= k-means."""
    scan = s4d()
    x = tensors(scan)[site]
    full = sqnr(estimate(site, scan, bits=bits), x)
    clipped = sqnr(estimate(site, scan, bits=bits, estimator="mse"), x)
    power = sqnr(estimate(site, scan, bits=bits, codebook="power", estimator="mse"), x)
    kmeans = sqnr(estimate(site, scan, bits=bits, codebook="kmeans", estimator="mse"), x)
    assert full <= clipped + 0.01
    assert clipped + 1.5 < power < kmeans + 0.01


@pytest.mark.parametrize("codebook", ["power", "two_segment", "log2", {"name": "power", "p": 0.4}])
def test_tables_of_abar_hold_one_exactly(codebook: object) -> None:
    scan = s4d()
    quantizer = estimate("abar", scan, codebook=codebook, estimator="mse")
    assert quantizer.table is not None
    assert quantizer.table[-1] == 1
    assert quantizer.table.numel() == 16
    assert (quantizer.table.diff() >= 0).all()
    assert quantizer(torch.ones(3)).tolist() == [1, 1, 1]
    x = tensors(scan)["abar"]
    assert torch.equal(quantizer(x), quantizer.decode(quantizer.encode(x)))


def test_bbar_of_zero_stays_zero() -> None:
    quantizer = estimate("bbar", s4d(), codebook="power", estimator="mse")
    assert quantizer(torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("site", ["abar", "bbar"])
@pytest.mark.parametrize("codebook", ["uniform", "power"])
def test_the_scan_has_the_last_word(site: str, codebook: str) -> None:
    """Scored on y, the choice is at least as good for y as the tensor's own."""
    scan = s4d()
    by_tensor = estimate(site, scan, codebook=codebook, estimator="mse")
    tried: list[float] = []

    def score(quantizer: Quantizer) -> float:
        tried.append(scan_loss(scan, **{site: quantizer}))
        return tried[-1]

    by_scan = estimate(site, scan, codebook=codebook, estimator={"name": "scan_output", "clips": 8}, score=score)
    assert scan_loss(scan, **{site: by_scan}) == min(tried)
    assert min(tried) <= scan_loss(scan, **{site: by_tensor}) * (1 + 1e-6)
    assert 8 <= len(tried) <= 30


def test_percentile_clips_bbar_and_leaves_abar() -> None:
    scan = s4d()
    x = tensors(scan)["bbar"]
    clipped = estimate("bbar", scan, estimator={"name": "percentile", "percentile": 99})
    expected = float(torch.quantile(x.abs().flatten(), 0.99))
    assert float(clipped.scale * 7) == pytest.approx(expected, rel=0.01)
    full = estimate("abar", scan)
    assert torch.equal(estimate("abar", scan, estimator={"name": "percentile", "percentile": 99}).scale, full.scale)


def test_large_tensors_are_sampled_over_all_channels_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stride would be a multiple of the number of channels if it were not moved to the next number prime to it."""
    scan = s4d(batch=8, channels=24)
    whole = estimate("bbar", scan, parts=1, codebook="power", estimator="mse")
    monkeypatch.setattr(discretized, "SAMPLES", scan["delta"].numel() * 8 // 24)
    estimator = make_discretized_estimator(Spec(bits=4, codebook="power", estimator="mse"), "bbar")
    assert isinstance(estimator, discretized.DiscretizedHistogram)
    x = tensors(scan)["bbar"]
    sample = estimator.sample(scan["delta"], scan["A"], scan["B"])
    assert x.numel() // 40 < sample.numel() <= x.numel() // 24
    found = torch.isin(x, sample).all(-1)
    assert found.any((0, 1)).all() and found.any((0, 2)).all()
    part = estimate("bbar", scan, parts=1, codebook="power", estimator="mse")
    assert sqnr(part, x) > sqnr(whole, x) - 4


@pytest.mark.parametrize(
    ("site", "spec", "message"),
    [
        ("abar", {"signed": True}, "Abar lies in"),
        ("bbar", {"signed": False}, "Abar lies in"),
        ("bbar", {"estimator": "hessian"}, "knows estimators"),
        ("bbar", {"granularity": "token"}, "not per token"),
        ("abar", {"granularity": "channel"}, "abar with estimator minmax is quantized per tensor"),
        ("bbar", {"granularity": "channel", "estimator": "mse"}, "bbar with estimator mse is quantized per tensor"),
        ("bbar", {"codebook": "power"}, "needs estimator mse or scan_output"),
        ("bbar", {"codebook": "power", "estimator": "percentile"}, "needs estimator mse or scan_output"),
        ("bbar", {"estimator": {"name": "mse", "images": 3}}, "estimator mse"),
        ("bbar", {"estimator": {"name": "scan_output", "images": 0}}, "images >= 1"),
        ("bbar", {"estimator": {"name": "percentile", "percentile": 20}}, "above 50"),
    ],
)
def test_bad_recipes_are_named(site: str, spec: dict[str, object], message: str) -> None:
    with pytest.raises(VisqError, match=message):
        make_discretized_estimator(Spec.model_validate({"bits": 4, "signed": site == "bbar", **spec}), site)


def test_skewed_takes_the_codebook_only_where_the_median_is_small() -> None:
    """Bbar's heavy tail is skewed; with B of one magnitude and even steps it is not, and has uniform codes."""
    scan, even = s4d(), s4d()
    even["delta"] = 0.05 + 0.05 * torch.rand(even["delta"].shape, generator=torch.Generator().manual_seed(1))
    even["B"] = even["B"].sign()
    options = {"codebook": "log2", "estimator": {"name": "skewed", "threshold": 0.25, "clips": 4}}
    for found, log2 in ((scan, True), (even, False)):
        quantizer = estimate("bbar", found, score=lambda q, s=found: scan_loss(s, bbar=q), **options)  # type: ignore[misc]
        share = tensors(found)["bbar"].abs().median() / tensors(found)["bbar"].abs().max()
        assert (share < 0.25) == log2
        assert (quantizer.table is not None) == log2 and quantizer.spec.codebook.name == ("log2" if log2 else "uniform")


@pytest.mark.parametrize("site", ["abar", "bbar"])
def test_skewed_is_tuned_on_the_output(site: str) -> None:
    """No clip of the same codes that the search tries leaves y with a larger error than the tensor's own choice."""
    scan = s4d()
    options = {"codebook": "log2", "estimator": {"name": "skewed", "threshold": 0.9}}
    tuned = estimate(site, scan, score=lambda q: scan_loss(scan, **{site: q}), **options)
    plain = estimate(site, scan, codebook="log2", estimator="mse")
    assert scan_loss(scan, **{site: tuned}) <= scan_loss(scan, **{site: plain})


@pytest.mark.parametrize("wrong", [{"codebook": "uniform"}, {"estimator": {"name": "skewed", "threshold": 1}}])
def test_skewed_needs_a_codebook_and_a_threshold(wrong: dict[str, object]) -> None:
    with pytest.raises(VisqError, match="estimator skewed needs a codebook and 0 < threshold < 1"):
        estimate("bbar", s4d(), **{"codebook": "log2", "estimator": "skewed", **wrong})
