"""JLSS: gradients reach what it claims to learn, the loss does not rise, runs repeat and resume to the last byte."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visq.calibrate import Calibration, calibrate
from visq.calibrate.learners import JLSS
from visq.calibrate.learners.jlss import LearnedLinear, learned_linears
from visq.calibrate.learners.reconstruction import Outcome, Reconstruction, cosine_distance, gather, split
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.vim import VisionMamba
from visq.quant.quantizer import Quantizer
from visq.quant.site import named_sites
from visq.recipes import Recipe, get_recipe
from visq.stages.stage_run import StageRun

from .conftest import Images

LINEARS = {"in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj"}


def recipe(**params: Any) -> Recipe:
    """ptq4vm-w4a4 with few epochs and a fixed exponent."""
    base = get_recipe("ptq4vm-w4a4")
    learner = {"name": "jlss", "epochs": 2, "batch": 4, "holdout": 0.25, **params}
    scope = base.scope.model_dump() | {"learners": [learner], "transforms": [{"name": "smooth", "alpha": 0.5}]}
    return Recipe.model_validate(base.model_dump() | {"scope": scope})


def run(model: VisionMamba, images: Images, folder: Path, **options: Any) -> Calibration:
    return calibrate(model, options.pop("recipe", recipe()), images, work_dir=folder, batch_size=4, **options)  # type: ignore[arg-type]


def everything(model: VisionMamba) -> dict[str, Tensor]:
    """Parameters and the tensors of all quantizers."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for name, site in named_sites(model):
        if site.quantizer is not None:
            tensors |= {f"{name}/{part}": buffer.clone() for part, buffer in site.quantizer.named_buffers()}
    return tensors


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_gradients_reach_sigma_and_both_steps_of_all_six_linears(
    model: VisionMamba, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, LearnedLinear] = {}

    def tune(self: JLSS, run: StageRun) -> None:
        layers = learned_linears(run)
        for layer in layers.values():
            layer.assign()
        if layers and run.student is not None:
            student, target = gather(run.student.batches()), gather(run.targets.batches())
            cosine_distance(run.stage.forward(*student), target).backward()
        seen.update(layers)
        with torch.no_grad():
            for layer in layers.values():
                layer.assign()

    monkeypatch.setattr(JLSS, "tune", tune)
    run(model, images, tmp_path)
    assert set(seen) == {f"layers.{i}.mixer.{name}" for i in range(2) for name in LINEARS}
    for path, layer in seen.items():
        for what in ("log_smooth", "log_input", "log_weight"):
            gradient = getattr(layer, what).grad
            assert gradient is not None, f"{path}.{what}"
            assert torch.isfinite(gradient).all(), f"{path}.{what}"
            assert (gradient != 0).float().mean() > 0.5, f"{path}.{what}"


def test_the_held_back_loss_does_not_rise_and_is_reported(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    lines: list[str] = []
    run(model, images, tmp_path, recipe=recipe(epochs=6, lr_scale=0.02), report=lambda *a: lines.append(a[2]))
    assert lines[0] == "embed"
    for line in lines[1:3]:
        before, after = line.split("(1 - cosine ")[1].rstrip(")").split(" -> ")
        assert float(after) <= float(before)
    assert any(line.split("(1 - cosine ")[1].split(" -> ")[0] not in line.split(" -> ")[1] for line in lines[1:3])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    model: VisionMamba, images: Images, tmp_path: Path
) -> None:
    again, other = copy.deepcopy(model), copy.deepcopy(model)
    run(model, images, tmp_path / "a", seed=3)
    run(again, images, tmp_path / "b", seed=3)
    run(other, images, tmp_path / "c", seed=4)
    assert_same(everything(model), everything(again))
    with pytest.raises(AssertionError):
        assert_same(everything(model), everything(other))


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bytes(model: VisionMamba, images: Images, tmp_path: Path, stage: int) -> None:
    whole, half = copy.deepcopy(model), copy.deepcopy(model)
    run(whole, images, tmp_path / "whole")

    def kill(done: int, total: int, name: str) -> None:
        if done == stage:
            raise Killed

    with pytest.raises(Killed):
        run(half, images, tmp_path / "half", report=kill)
    seen: list[int] = []
    run(model, images, tmp_path / "half", resume=True, report=lambda done, *_: seen.append(done))
    assert seen == list(range(stage + 1, 5))
    assert_same(everything(model), everything(whole))


def test_a_run_without_its_student_stream_starts_again(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    half = copy.deepcopy(model)
    run(half, images, tmp_path / "work")
    for folder in tmp_path.glob("work/student-*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    seen: list[int] = []
    run(model, images, tmp_path / "work", resume=True, report=lambda done, *_: seen.append(done))
    assert seen == [1, 2, 3, 4]


def test_learning_that_diverges_keeps_the_best_finite_state_and_says_so(
    model: VisionMamba, images: Images, tmp_path: Path
) -> None:
    result = run(model, images, tmp_path, recipe=recipe(lr_scale=1e4, lr_smooth=1e4))
    assert any("layers.0" in note and "best state is kept" in note for note in result.notes)
    assert all(torch.isfinite(tensor).all() for tensor in everything(model).values())
    assert torch.isfinite(model(images.images)).all()


def test_zero_points_follow_the_step_and_keep_the_minimum() -> None:
    spec = Spec(bits=4, symmetric=False, granularity="token")
    activation = Quantizer(spec, torch.tensor([0.1, 0.2]), torch.tensor([3.0, 0.0]), axis=-2)
    layer = LearnedLinear(4, activation, Quantizer(Spec(bits=4, granularity="channel"), torch.ones(3), axis=0))
    with torch.no_grad():
        layer.log_input += torch.tensor([0.5, 2.0]).log()
        layer.assign()
    torch.testing.assert_close(activation.scale, torch.tensor([0.05, 0.4]))
    torch.testing.assert_close(activation.zero_point, torch.tensor([6.0, 0.0]), rtol=0, atol=0)
    layer.assign()
    low = torch.full((1, 2, 4), -9.0)
    activation(low).sum().backward()
    # A value below the range decodes to the fixed minimum, whatever the step.
    torch.testing.assert_close(layer.log_input.grad, torch.zeros(2), rtol=0, atol=1e-6)


def test_the_first_assignment_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    sigma = torch.rand(4, generator=generator) + 0.5
    spec = Spec(bits=4, symmetric=False, granularity="token")
    activation = Quantizer(spec, torch.rand(5, generator=generator) + 0.1, torch.full((5,), 7.0), axis=-2, smooth=sigma)
    rows = Spec(bits=4, narrow=True, granularity="channel")
    of_weight = Quantizer(rows, torch.rand(3, generator=generator) + 0.1, axis=0, smooth=1 / sigma)
    before = activation(x), of_weight(weight)
    with torch.no_grad():
        LearnedLinear(4, activation, of_weight).assign()
    torch.testing.assert_close((activation(x), of_weight(weight)), before, rtol=1e-5, atol=1e-6)


def test_images_are_held_back_by_seed() -> None:
    training, held = split(16, 0.25, seed=5)
    assert len(held) == 4
    assert sorted(torch.cat([training, held]).tolist()) == list(range(16))
    assert torch.equal(split(16, 0.25, seed=5)[1], held)
    assert torch.equal(*split(1, 0.25, seed=5))


def test_the_outcome_is_told() -> None:
    run = type("Run", (), {"stage": type("Stage", (), {"name": "layers.7"}), "summary": "", "notes": []})()
    Outcome([3.0, 2.0, 1.0]).report(run, "loss")  # type: ignore[arg-type]
    assert (run.summary, run.notes) == (" (loss 3 -> 1)", [])
    Outcome([3.0, 2.0, 4.0]).report(run, "loss")  # type: ignore[arg-type]
    Outcome([3.0], diverged=True).report(run, "loss")  # type: ignore[arg-type]
    assert "rose to 4" in run.notes[0]
    assert "NaN or Inf in epoch 1" in run.notes[1]


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"batch": 0}, {"holdout": 1.0}])
def test_impossible_parameters_are_refused(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"epochs": 1, "batch": 1, "holdout": 0.1, "distance": cosine_distance}
    with pytest.raises(VisqError, match="learning needs"):
        Reconstruction(**(good | bad))
