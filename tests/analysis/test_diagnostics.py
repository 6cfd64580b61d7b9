"""Compares diagnostics with sums written out in the test."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.calibrate.conftest import Images, images, model  # noqa: F401 - fixtures
from visq.analysis import diagnose
from visq.analysis.plots import plot_accuracy, plot_diagnostics
from visq.analysis.site_stats import SiteStats, weight_histogram
from visq.calibrate import calibrate
from visq.cli.diagnose import badness
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.layers import SelectiveScan
from visq.models.vim import VisionMamba
from visq.ops import quantized_scan
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer
from visq.quant.site import named_sites, site_parameter
from visq.recipes import get_recipe
from visq.simulation.scan_trace import trace

WITH_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture
def quantized(model: VisionMamba, images: Images, tmp_path: Path) -> VisionMamba:  # noqa: F811
    copied = copy.deepcopy(model)
    calibrate(copied, get_recipe("minmax-channel-w6a6"), images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    copied.recipe = get_recipe("minmax-channel-w6a6")
    return copied


def test_sqnr_clipping_and_range_are_what_they_say() -> None:
    quantizer = Quantizer(Spec(bits=4), torch.tensor([0.5]))  # codes reach from -4 to 3.5
    stats = SiteStats(quantizer)
    x = torch.tensor([[-4.2, -1.1, 0.2, 1.0, 3.7, 3.8, 9.0]])
    stats.observe(x[:, :4])
    stats.observe(x[:, 4:])
    row = stats.row()
    error = float((quantizer(x) - x).square().sum())
    assert row["sqnr_db"] == pytest.approx(10 * math.log10(float(x.square().sum()) / error), abs=1e-4)
    assert row["clipped"] == pytest.approx(2 / 7)  # 3.8 and 9.0; -4.2 and 3.7 are rounded
    assert row["range_used"] == 1.0
    narrow = SiteStats(quantizer)
    narrow.observe(torch.tensor([[-0.5, 1.0]]))
    assert narrow.row()["range_used"] == pytest.approx(3 / 15)
    assert narrow.row()["sqnr_db"] is None
    assert sum(row["histogram"]["share"]) == pytest.approx(1)


def test_histograms_before_and_after_share_their_bins() -> None:
    stats = SiteStats(Quantizer(Spec(bits=2), torch.tensor([1.0])))  # codes -2 to 1
    x = torch.linspace(-2.4, 3.0, 1000)[None]
    stats.observe(x[:, :400])
    stats.observe(x[:, 400:])
    found = stats.row()["histogram"]
    edges, after = torch.tensor(found["edges"]), torch.tensor(found["after"])
    assert edges[0] == pytest.approx(-2.4, rel=0.03) and edges[-1] == pytest.approx(3.0, rel=0.03)
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0])
    bins = torch.bucketize(values, edges) - 1
    rounded = x.round().clamp(-2, 1)
    shares = [float((rounded == value).float().mean()) for value in values]
    assert after.nonzero().flatten().tolist() == sorted(bins.tolist())
    assert after[bins].tolist() == pytest.approx(shares)
    assert min(found["share"]) > 0


def test_a_weight_has_the_histogram_of_the_original_beside_its_own() -> None:
    found = weight_histogram(torch.linspace(-1, 1, 500), torch.tensor([-1.0, 1.0]))
    assert sum(found["share"]) == pytest.approx(1) and min(found["share"]) > 0
    assert found["after"][0] == found["after"][-1] == 0.5 and sum(found["after"]) == 1


@pytest.mark.parametrize("recipe", ["qmamba-w4a4", "kscaled-w4a4"])
def test_the_trace_is_the_scan(model: VisionMamba, images: Images, tmp_path: Path, recipe: str) -> None:  # noqa: F811
    calibrate(model, get_recipe(recipe), images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    seen: list[float] = []
    deployed: list[float] = []

    def hook(scan: SelectiveScan, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found, (u, delta, A, B, C) = trace(scan, *args), args
        inner = {"abar": scan.site_abar, "bbar": scan.site_bbar, "state": scan.site_h}
        quantizers = {name: site.quantizer.scan_argument() for name, site in inner.items()}  # type: ignore[union-attr]
        ideal = quantized_scan(u, scan.site_delta(delta), A, B, scan.site_c(C), **quantizers)
        seen.append(((found.y - ideal).norm() / ideal.norm()).item())
        deployed.append(((scan.site_y.quantizer(found.y) - output).norm() / output.norm()).item())  # type: ignore[misc]
        codes = scan.site_h.quantizer.encode(found.h)  # type: ignore[union-attr]
        torch.testing.assert_close(scan.site_h.quantizer.decode(codes), found.stored, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]

    for module in model.modules():
        if isinstance(module, SelectiveScan):
            module.register_forward_hook(hook)
    model(images.images)
    assert len(seen) == 4
    # Two orders of the same sums may round a value on a boundary to different codes.
    assert max(seen) < 0.05
    # The forward pass runs the engine's fixed-point scan, in which more values round to the neighbouring code.
    assert max(deployed) < 0.15


def test_the_report_covers_every_quantized_site(
    quantized: VisionMamba,
    model: VisionMamba,  # noqa: F811
    images: Images,  # noqa: F811
) -> None:
    report = diagnose(quantized, images, fp32=model, images=6, batch_size=4)  # type: ignore[arg-type]
    assert report["images"] == 6
    assert [row["name"] for row in report["sites"]] == [
        name for name, site in named_sites(quantized) if site.quantizer is not None
    ]
    # x_proj reads what silu.out has rounded already, with the same scale.
    assert all(row["sqnr_db"] is None or row["sqnr_db"] > 10 for row in report["sites"])
    assert all("x_proj" in row["name"] for row in report["sites"] if row["sqnr_db"] is None)
    assert len(report["scans"]) == 4
    assert all(len(row["h_error"]) == len(row["y_error"]) == 10 for row in report["scans"])
    assert all(0 < value < 0.6 for row in report["scans"] for value in row["h_error"])
    stages = {row["name"]: row["sqnr_db"] for row in report["stages"]}
    assert list(stages) == ["embed", "layers.0", "layers.1", "classify"]
    drawn = images.shuffled(0).images[:6]
    expected = (quantized(drawn) - model(drawn)).square().sum()
    decibels = 10 * math.log10(model(drawn).square().sum() / expected)
    assert stages["classify"] == pytest.approx(decibels, abs=1e-3)
    json.dumps(report, allow_nan=False)


def test_images_of_all_classes_are_looked_at(quantized: VisionMamba) -> None:
    """Forty images in the order of five classes, which the first pixel tells."""
    pixels = torch.randn(40, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    pixels[:, 0, 0, 0] = torch.arange(40) // 8
    labels: list[int] = []
    quantized.patch_embed.register_forward_pre_hook(lambda _, args: labels.extend(args[0][:, 0, 0, 0].int().tolist()))

    def seen(count: int) -> list[int]:
        labels.clear()
        report = diagnose(quantized, Images(pixels), images=count)  # type: ignore[arg-type]
        assert report["images"] == len(labels) == min(count, 40)
        return list(labels)

    drawn = seen(16)
    assert set(drawn) == set(range(5)) and drawn == seen(16)
    assert seen(41) == [label for label in range(5) for _ in range(8)]


def test_a_network_without_errors_has_none_along_time(quantized: VisionMamba, images: Images) -> None:  # noqa: F811
    report = diagnose(quantized, images, fp32=quantized, images=4, batch_size=4)  # type: ignore[arg-type]
    assert all(value < 1e-6 for row in report["scans"] for value in row["h_error"] + row["y_error"])


def test_without_fp32_there_are_sites_only(quantized: VisionMamba, images: Images) -> None:  # noqa: F811
    report = diagnose(quantized, images, images=4)  # type: ignore[arg-type]
    assert report["sites"] and not report["scans"] and not report["stages"]
    assert all(row["sqnr_db"] is None for row in report["sites"] if row["kind"] == "weight")


def test_a_model_that_is_not_quantized_is_refused(model: VisionMamba, images: Images) -> None:  # noqa: F811
    with pytest.raises(VisqError, match="nothing in this model is quantized"):
        diagnose(model, images)  # type: ignore[arg-type]


def test_sites_with_nan_are_counted_and_come_first(quantized: VisionMamba, model: VisionMamba, images: Images) -> None:  # noqa: F811
    broken = copy.deepcopy(quantized)
    with torch.no_grad():
        broken.layers[1].mixer.D[0] = float("nan")
    report = diagnose(broken, images, fp32=model, images=4)  # type: ignore[arg-type]
    json.dumps(report, allow_nan=False)
    first, *rest = sorted(report["sites"], key=badness)
    assert first["nonfinite"] == 1 and first["sqnr_db"] is None
    finite = [row["nonfinite"] == 0 for row in rest]
    assert finite == sorted(finite) and finite[-1]
    losses = [row["sqnr_db"] for row in rest if not row["nonfinite"] and row["sqnr_db"] is not None]
    assert losses == sorted(losses)


def test_another_fp32_network_is_refused_and_both_are_named(
    quantized: VisionMamba,
    model: VisionMamba,  # noqa: F811
    images: Images,  # noqa: F811
) -> None:
    artifact, other = copy.deepcopy(quantized), copy.deepcopy(model)
    artifact.card = replace(model.card, checkpoint_sha256="a" * 64)
    other.card = replace(model.card, checkpoint_sha256="b" * 64)
    with pytest.raises(VisqError, match=r"made of vim with the checkpoint a{12}\.\.\., the FP32 model .* b{12}\.\.\."):
        diagnose(artifact, images, fp32=other, images=4)  # type: ignore[arg-type]
    assert diagnose(artifact, images, fp32=other, images=4, any_fp32=True)["stages"]  # type: ignore[arg-type]
    other.card = artifact.card
    assert diagnose(artifact, images, fp32=other, images=4)["stages"]  # type: ignore[arg-type]


@pytest.mark.skipif(WITH_MATPLOTLIB, reason="matplotlib is installed")
def test_plots_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"visq\[plots\]"):
        plot_accuracy(
            [{"recipe": "a-w4a4", "scope": "full", "activation_bits": 4, "weight_bits": 4, "top1": 1.0}], tmp_path
        )


@pytest.mark.skipif(not WITH_MATPLOTLIB, reason="needs the extra `plots`")
def test_every_picture_is_drawn(quantized: VisionMamba, model: VisionMamba, images: Images, tmp_path: Path) -> None:  # noqa: F811
    report = diagnose(quantized, images, fp32=model, images=4)  # type: ignore[arg-type]
    assert len(plot_diagnostics(report, tmp_path / "plots")) == 4
    rows = [
        {"recipe": recipe, "scope": "full", "activation_bits": bits, "weight_bits": bits, "top1": top1}
        for recipe, bits, top1 in (("fp32", 32, 90.0), ("minmax-w8a8", 8, 89.0), ("minmax-w4a4", 4, 40.0))
    ]
    assert plot_accuracy(rows, tmp_path / "accuracy.png").stat().st_size > 1000


def test_a_ladder_has_a_row_whose_error_is_that_of_A(
    model: VisionMamba,  # noqa: F811
    images: Images,  # noqa: F811
    tmp_path: Path,
) -> None:
    recipe = get_recipe("visq-ladder-w8a8")
    copied = copy.deepcopy(model)
    calibrate(copied, recipe, images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    ladders = [name for name, site in named_sites(copied) if isinstance(site.quantizer, LadderQuantizer)]
    rows = {row["name"]: row for row in diagnose(copied, images, fp32=model, images=4)["sites"]}  # type: ignore[arg-type]
    assert ladders and set(ladders) <= set(rows)
    for name in ladders:
        assert (rows[name]["bits"], rows[name]["granularity"], rows[name]["clipped"]) == (0, "ladder", None)
        if rows[name]["sqnr_db"] is None:  # a transform rewrote the weights
            continue
        here, exact = (-site_parameter(net, name, dict(named_sites(net))[name]).exp() for net in (copied, model))
        ratio = float(exact.square().sum()) / float((here - exact).square().sum())
        assert rows[name]["sqnr_db"] == pytest.approx(10 * math.log10(ratio), abs=1e-3)
