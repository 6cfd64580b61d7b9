"""The self-check: its numbers against sums written out here, its verdict, and what is kept of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import visq
from visq import pipeline
from visq.artifact import Agreement, load, save
from visq.artifact.schema import render, self_hash
from visq.data import Dataset, Preprocess, open_dataset
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models import VisionMamba, create_model
from visq.native.extension import available
from visq.pipeline import check as self_checks
from visq.pipeline.check import agreement
from visq.pipeline.verdict import below, verdict
from visq.pipeline.wording import described
from visq.pipeline.worst_sites import worst_sites
from visq.progress import Progress
from visq.quant.quantizer import Quantizer
from visq.quant.site import named_sites
from visq.quant.site_error import SiteError
from visq.recipes import get_recipe

RECIPE = get_recipe("kscaled-w4a4")


def logits(network: object, images: Dataset) -> Tensor:
    return torch.cat([network(batch) for batch, _ in images.batches(8)])  # type: ignore[operator]


def test_numbers_are_those_of_fp32_and_the_simulation(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    calibration, held_out = pipeline.draw(images, 16, 8, seed=0)
    assert held_out is not None
    exact = [logits(model, part) for part in (calibration, held_out)]
    result = pipeline.quantize(model, RECIPE, calibration, held_out=held_out, out=tmp_path / "a")
    check = result.check
    assert check is not None and check.held_out is not None and check.problem is None
    for found, part, reference in zip((check.calibration, check.held_out), (calibration, held_out), exact, strict=True):
        here = logits(result.model, part)
        assert found.images == len(part) and found.non_finite == 0
        assert found.agree == int((here.argmax(1) == reference.argmax(1)).sum())
        centred = reference - reference.mean(1, keepdim=True)
        error = here - reference - (here - reference).mean(1, keepdim=True)
        assert found.sqnr_db == pytest.approx(
            float(10 * torch.log10(centred.square().sum() / error.square().sum())), abs=0.01
        )
    assert load(tmp_path / "a").check == check == result.model.check
    assert result.self_check is not None and result.self_check.seconds > 0
    assert result.self_check.kernel.startswith("cpp" if available() else "simulation")


def test_the_engine_and_the_simulation_find_the_same(
    model: VisionMamba, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pipeline.quantize(copy.deepcopy(model), RECIPE, images)
    monkeypatch.setattr(self_checks, "available", lambda: False)
    second = pipeline.quantize(copy.deepcopy(model), RECIPE, images)
    assert second.self_check is not None and second.self_check.kernel == "simulation"
    assert first.check == second.check


def test_same_seed_same_bytes_and_old_artifacts_load(model: VisionMamba, image_folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        visq.quantize(copy.deepcopy(model), "minmax-w8a8", str(image_folder), samples=8, out=tmp_path / name)
    config = tmp_path / "a/config.json"
    assert config.read_bytes() == (tmp_path / "b/config.json").read_bytes()
    assert load(tmp_path / "a").check.held_out.images == 16
    values = json.loads(config.read_text())
    del values["check"]
    config.write_text(render({**values, "self_hash": self_hash(values)}))
    old = load(tmp_path / "a")
    assert old.check is None
    save(old, tmp_path / "c")
    assert (tmp_path / "c/config.json").read_bytes() == config.read_bytes()


def test_sites_are_measured_on_images_of_several_classes(
    model: VisionMamba, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first four of the folder are of one class."""
    seen: list[Tensor] = []

    def watched(network: object, sample: Tensor) -> object:
        seen.append(sample)
        return worst_sites(network, sample)

    monkeypatch.setattr(self_checks, "worst_sites", watched)
    pipeline.quantize(model, RECIPE, images)
    everything = next(images.batches(24))[0]
    where = [int((everything == image).flatten(1).all(1).nonzero()) for image in seen[0]]
    assert len(where) == 4 and len({images.labels[index] for index in where}) > 1


def test_what_cannot_be_compared_on_all_images_is_compared_on_drawn_ones() -> None:
    model = create_model("dvmsr", embed_dim=16, depths=[1], d_state=4, upscale=2).eval().requires_grad_(False)
    source = open_dataset("fashion-mnist", Preprocess(12, 12, (0.5,) * 3, (0.5,) * 3), split="calib").select(range(40))
    source = source.select(sorted(range(40), key=source.labels.__getitem__))
    exact = self_checks.reference(model, source, batch_size=8, progress=Progress("silent"))
    drawn = exact.images.labels[:16]
    assert len(exact.outputs) == 16 and len(set(drawn)) > len(set(source.labels[:16]))
    with torch.no_grad():
        torch.testing.assert_close(exact.outputs, model(next(exact.images.batches(16))[0]))
    few = source.select(range(10))
    assert self_checks.reference(model, few, batch_size=8, progress=Progress("silent")).images is few


def test_without_a_check_nothing_is_stored(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    result = pipeline.quantize(model, RECIPE, images, out=tmp_path / "a", check=False)
    assert result.check is None and "check" not in json.loads((tmp_path / "a/config.json").read_text())


def test_a_network_that_no_longer_decides_as_fp32_is_broken(model: VisionMamba, images: Dataset) -> None:
    """The network's function stays, but one channel is a million times larger, and a scale per tensor sees only it."""
    for block in model.layers:
        block.norm.weight[3] *= 1e6
        block.mixer.in_proj.weight[:, 3] /= 1e6
    model.requires_grad_(False)
    result = pipeline.quantize(model, get_recipe("minmax-w8a8"), images)
    assert result.check is not None and result.check.verdict == "broken"
    kinds = {site.kind for site in result.check.worst_sites}
    assert "in_proj.in" in kinds and "in_proj.in" in result.check.worst_sites[0].kind


def test_an_engine_that_refuses_is_a_problem_and_the_artifact_is_kept(
    model: VisionMamba, images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available():
        pytest.skip("needs the engine")

    def refuse(*_: object, **__: object) -> None:
        raise VisqError("A is not negative")

    monkeypatch.setattr(self_checks, "load_engine", refuse)
    result = pipeline.quantize(model, RECIPE, images, out=tmp_path / "a")
    assert result.check is not None and result.check.verdict == "broken"
    assert result.check.problem == "the engine refuses it: A is not negative" and (tmp_path / "a").is_dir()


def test_an_engine_of_other_bits_is_a_problem(
    model: VisionMamba, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available():
        pytest.skip("needs the engine")
    on_engine = self_checks.on_engine

    def other(artifact: Path) -> object:
        kernel, network = on_engine(artifact)
        return kernel, lambda x: network(x) * 1.0000002

    monkeypatch.setattr(self_checks, "on_engine", other)
    result = pipeline.quantize(model, RECIPE, images)
    assert result.check is not None and result.check.verdict == "broken"
    assert "different outputs" in str(result.check.problem)


def test_agreement_counts_images_that_are_not_finite() -> None:
    exact = torch.tensor([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    found = torch.tensor([[7.0, 8.0, 9.0], [1.0, 5.0, 2.0], [float("nan"), 0.0, 1.0]])
    counted = agreement(found, exact)
    # All classes of the first image moved alike, which changes no decision and is no error.
    assert (counted.images, counted.agree, counted.non_finite) == (3, 1, 1)
    signal = 2 + (5 - 8 / 3) ** 2 + (1 - 8 / 3) ** 2 + (2 - 8 / 3) ** 2
    assert counted.sqnr_db == pytest.approx(10 * np.log10(signal / 32), abs=0.01)
    assert agreement(exact, exact).sqnr_db is None and verdict([agreement(exact, exact)]) == "good"
    assert verdict([counted]) == "broken"


def test_agreement_of_images_is_psnr() -> None:
    exact = torch.full((1, 3, 4, 4), 0.5)
    counted = agreement(exact + 0.01, exact)
    assert counted.agree is None and counted.psnr_db == pytest.approx(40, abs=0.01)
    assert counted.sqnr_db == pytest.approx(20 * np.log10(50), abs=0.01)


def test_agreement_of_positions() -> None:
    exact = torch.zeros(2, 3, 2, 5)
    exact[:, 1] = 2.0
    found = exact.clone()
    found[0, 0, 0, :4] = 5.0  # four positions of twenty get another class
    found[1] += 3.0  # all classes alike: no error
    counted = agreement(found, exact, per_pixel=True)
    assert (counted.images, counted.positions, counted.agree, counted.psnr_db) == (2, 20, 16, None)
    assert verdict([counted]) == "broken" and verdict([agreement(exact, exact, per_pixel=True)]) == "good"
    assert described(counted).startswith("16 of 20 decisions at positions of 2 images are FP32's (80.0 %)")


def test_the_verdict_is_that_of_the_worse_set() -> None:
    def found(agree: int, sqnr_db: float) -> Agreement:
        return Agreement(images=100, agree=agree, sqnr_db=sqnr_db)

    assert verdict([found(100, 30.0), found(99, 25.0)]) == "good"
    assert verdict([found(100, 30.0), found(92, 25.0)]) == "doubtful"
    assert verdict([found(50, 30.0), found(99, 25.0)]) == "broken"
    assert verdict([found(100, 30.0), found(100, 1.0)]) == "broken"
    assert below("doubtful", "good") and below("broken", "doubtful") and not below("doubtful", "doubtful")


def test_a_network_without_classes_has_a_check() -> None:
    model = create_model("dvmsr", embed_dim=16, depths=[1, 1], d_state=4, upscale=2).eval().requires_grad_(False)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    class Crops:
        """Six images of 12 pixels that nothing has to be read for."""

        name, skipped, labels = "crops", (), [0] * 6
        pixels = torch.from_numpy(rng.random((6, 3, 12, 12), np.float32))

        def __len__(self) -> int:
            return 6

        def shuffled(self, seed: int) -> object:
            return self

        def fingerprint(self) -> str:
            return "crops"

        def batches(self, size: int) -> object:
            return ((self.pixels[i : i + size], torch.zeros(size)) for i in range(0, 6, size))

    recipe = get_recipe("minmax-w8a8").without_positions()
    check = pipeline.quantize(model, recipe, Crops(), batch_size=4).check  # type: ignore[arg-type]
    assert check is not None and check.calibration.agree is None and check.calibration.images == 6
    assert check.calibration.psnr_db is not None and check.calibration.sqnr_db is not None


def test_every_channel_counts_alike() -> None:
    """One channel of a thousand hides nothing: the others are rounded to zero, which is 0 dB."""
    x = torch.randn(64, 8)
    x[:, 0] *= 1e4
    quantizer = Quantizer(Spec(bits=8), x.abs().max().view(1) / 127)
    error = SiteError(quantizer)
    error.observe(x[:32])
    error.observe(x[32:])
    channels = (quantizer(x) - x).square().sum(0) / x.square().sum(0)
    assert error.sqnr_db() == pytest.approx(float(-10 * torch.log10(channels.mean())), abs=1e-4)
    assert error.sqnr_db() < 1
    assert np.isnan(_sqnr(quantizer, torch.full((2, 8), float("inf"))))
    assert _sqnr(quantizer, torch.zeros(2, 8)) == np.inf


def _sqnr(quantizer: Quantizer, x: Tensor) -> float:
    error = SiteError(quantizer)
    error.observe(x)
    return error.sqnr_db()


def test_worst_sites_are_measured_on_what_arrives(model: VisionMamba, images: Dataset) -> None:
    result = pipeline.quantize(model, RECIPE, images)
    batch = next(images.batches(4))[0]
    rows, outputs = worst_sites(result.model, batch, count=1000)
    sites = dict(named_sites(result.model))
    assert {row.name for row in rows} == {name for name, site in sites.items() if site.quantizer is not None}
    assert torch.equal(outputs, result.model(batch))
    values = [row.sqnr_db for row in rows if row.sqnr_db is not None]
    assert values == sorted(values)
    assert {row.bits for row in rows} == {spec.bits for spec in result.calibration.specs.values()}
    seen: list[Tensor] = []
    name = "layers.0.mixer.in_proj.in"
    hook = sites[name].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    result.model(batch)
    hook.remove()
    assert next(row.sqnr_db for row in rows if row.name == name) == round(_sqnr(sites[name].quantizer, seen[0]), 2)


def test_draw_never_takes_an_image_twice(model: VisionMamba, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
        if i < 3:
            Image.fromarray(pixels).save(tmp_path / f"{i:02d}-copy.png")
    source = open_dataset(str(tmp_path), model.card.preprocess, split="calib")
    for seed in range(5):
        calibration, held_out = pipeline.draw(source, 6, 4, seed)
        assert calibration.fingerprint() == source.subset(6, seed).fingerprint()
        assert held_out is not None and len(held_out) == 4
        contents = [{part.content(i) for i in range(len(part))} for part in (calibration, held_out)]
        assert not contents[0] & contents[1]
    assert pipeline.draw(source, 15, 4, 0)[1] is None and pipeline.draw(source, 6, 0, 0)[1] is None
    with pytest.raises(VisqError, match="only 15"):
        pipeline.draw(source, 16, 4, 0)
