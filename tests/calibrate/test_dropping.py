"""Dropped quantizers: a share of codes is left out, sites come back, and learners repeat and resume with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from visq.calibrate.learners import JLSS, AdaRound
from visq.calibrate.learners.distill import Descent, Student
from visq.calibrate.learners.dropping import Dropped, dropping
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.vim import VisionMamba
from visq.quant.quantizer import Quantizer
from visq.quant.site import ACTIVATION, INNER, WEIGHT, Site
from visq.recipes import Recipe, get_recipe

from . import test_jlss
from .conftest import Images
from .test_distill import recipe, run
from .test_jlss import Killed, assert_same, everything


@pytest.fixture
def model(model: VisionMamba) -> VisionMamba:
    """The random network with logits as large as a trained one's, so that a loss can fall."""
    model.head.weight.data.mul_(30)
    return model


@pytest.fixture
def images() -> Images:
    return Images(torch.randn(24, 1, 12, 12, generator=torch.Generator().manual_seed(1)))


def site(kind: str) -> Site:
    found = Site(kind)
    found.quantizer = Quantizer(Spec(bits=4), torch.tensor([0.1]))
    return found


def test_a_share_of_the_values_keeps_no_codes() -> None:
    x = torch.rand(100, 100)
    activation = site(ACTIVATION)
    exact = activation(x)
    with dropping([activation], 0.25, torch.Generator().manual_seed(0)):
        found = activation(x)
    assert torch.equal(torch.where(found == x, exact, found), exact)
    assert 0.23 < float((found == x).float().mean()) < 0.27
    assert torch.equal(activation(x), exact)


def test_weights_states_and_free_sites_stay_and_errors_put_the_rest_back() -> None:
    sites = [site(ACTIVATION), site(WEIGHT), site(INNER), Site(ACTIVATION)]
    before = [s.quantizer for s in sites]
    with pytest.raises(ZeroDivisionError), dropping(sites, 0.5, torch.Generator()):
        assert isinstance(sites[0].quantizer, Dropped)
        assert [s.quantizer for s in sites[1:]] == before[1:]
        raise ZeroDivisionError
    assert [s.quantizer for s in sites] == before


def test_no_share_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    with dropping([activation := site(ACTIVATION)], 0.0, generator):
        activation(torch.rand(3, 4, 5))
    assert torch.equal(generator.get_state(), state)


def learned(name: str, **params: Any) -> Recipe:
    """A short recipe with the learner `name`."""
    if name == "jlss":
        return test_jlss.recipe(**params)
    base = get_recipe("visq-w4a4")
    learner = {"name": name, "epochs": 1, "batch": 8, "holdout": 0, **params}
    return Recipe.model_validate(base.model_dump() | {"scope": base.scope.model_dump() | {"learners": [learner]}})


@pytest.mark.parametrize("name", ["jlss", "adaround", "distill"])
def test_a_seed_gives_the_same_bytes_and_dropping_gives_others(
    name: str, model: VisionMamba, images: Images, tmp_path: Path
) -> None:
    again, without = copy.deepcopy(model), copy.deepcopy(model)
    run(model, images, tmp_path / "a", learned(name, drop=0.5), seed=3)
    run(again, images, tmp_path / "b", learned(name, drop=0.5), seed=3)
    run(without, images, tmp_path / "c", learned(name), seed=3)
    assert_same(everything(model), everything(again))
    with pytest.raises(AssertionError):
        assert_same(everything(model), everything(without))


def test_a_killed_run_with_dropping_and_an_average_resumes_to_the_same_bytes(
    model: VisionMamba, images: Images, tmp_path: Path
) -> None:
    chosen = recipe(epochs=2, drop=0.5, average=0.9)
    whole, killed, last = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    run(whole, images, tmp_path / "whole", chosen)

    def kill(done: int, total: int, line: str) -> None:
        if line.startswith("distilling, epoch 1 "):
            raise Killed

    with pytest.raises(Killed):
        run(killed, images, tmp_path / "killed", chosen, report=kill)
    run(model, images, tmp_path / "killed", chosen, resume=True)
    assert_same(everything(model), everything(whole))
    run(last, images, tmp_path / "last", recipe(epochs=2, drop=0.5))
    with pytest.raises(AssertionError):
        assert_same(everything(last), everything(whole))


def test_the_average_moves_by_its_share_and_is_held_only_within_the_block(model: VisionMamba, tmp_path: Path) -> None:
    student = Student(model)
    leaves = student.leaves()
    descent = Descent(tmp_path / "x", student, torch.optim.AdamW(leaves.values()))
    descent.average = student.values()
    before = student.values()
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(1.0)
    descent.move_average(0.25)
    for name, value in descent.average.items():
        torch.testing.assert_close(value, before[name] + 0.75)
    with student.holding(descent.average):
        assert_same(student.values(), descent.average)
    torch.testing.assert_close(student.values(), {name: value + 1 for name, value in before.items()})


@pytest.mark.parametrize("learner", [JLSS, AdaRound])
def test_shares_out_of_range(learner: type[JLSS | AdaRound]) -> None:
    with pytest.raises(VisqError, match="0 <= drop < 1, got 1"):
        learner(drop=1.0)
