"""Tensors that are zero, constant, one-sided, tiny or a single spike in calibration.

Every scale stays finite both ways, and simulation, oracle and engine give the same finite logits.

A site's activation is replaced while calibration looks, and is itself again afterwards, so that each scale also meets
values it was not made for. A weight is replaced for good.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from visq.data import Dataset, open_dataset
from visq.models import create_model
from visq.pipeline import quantize
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import INNER, WEIGHT, named_sites, site_parameter
from visq.recipes import get_recipe
from visq.recipes.catalog import packaged_methods
from visq.runtime import load_engine
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle

SIZE = 16
NETWORKS = {
    "vim": {"image_size": SIZE, "patch_size": 4, "stride": 4, "embed_dim": 8, "depth": 1, "d_state": 4},
    "vmamba": {"image_size": SIZE, "embed_dim": 8, "depths": [1], "mlp_ratio": 2, "d_state": 1},
}
RECIPES = [f"{family}-{bits}" for family in packaged_methods() for bits in ("w8a8", "w4a4")]


def spike(x: Tensor) -> Tensor:
    """Zero but for one value."""
    y = torch.zeros(x.shape)
    y.view(-1)[x.numel() // 2] = 1e3
    return y


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, 0.37),
    "one-sided": torch.abs,
    "denormal": lambda x: (x * 1e-30) * 1e-10,
    "spike": spike,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=4, **NETWORKS[name]).eval()


def site_names(name: str) -> list[str]:
    """Sites whose tensor can be replaced: all but those that exist inside the recurrence only."""
    return [site for site, module in named_sites(network(name)) if module.kind != INNER]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(folder / f"{index}.png")
    return open_dataset(str(folder), network("vim").card.preprocess, split="calib")


@contextmanager
def degenerate(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces the tensor of site `name`: a weight for good, an activation while the context lasts."""
    site = dict(named_sites(model))[name]
    if site.kind == WEIGHT:
        parameter = site_parameter(model, name, site)
        # exp(A_log) is the state's decay: 1e3 there is no finite network.
        parameter.data = change(parameter.data).clamp(-4, 4) if name.endswith("log") else change(parameter.data)
        yield
        return
    handle = site.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def check(recipe: str, network_name: str, site: str, kind: str, images: Dataset, folder: Path) -> None:
    model = network(network_name)
    with degenerate(model, site, KINDS[kind]):
        quantize(model, get_recipe(recipe), images, out=folder)
    for name, found in named_sites(model):
        quantizer = found.quantizer
        factors = []
        if isinstance(quantizer, StateQuantizer):
            factors = [quantizer.scale()]
        elif isinstance(quantizer, Quantizer):
            smooth = torch.ones(1) if quantizer.smooth is None else quantizer.smooth
            factors = [quantizer.scale, smooth, quantizer.scale.min() * smooth, quantizer.scale.max() * smooth]
        for factor in factors:
            assert (factor > 0).all() and torch.isfinite(factor).all() and torch.isfinite(1 / factor).all(), name
    x = next(iter(images.batches(3)))[0]
    with torch.no_grad():
        simulated = model(x).numpy()
    assert np.isfinite(simulated).all()
    bundle = read_bundle(folder)
    assert bundle.config.program is not None, bundle.config.no_program
    assert np.array_equal(Oracle(bundle.config.program, bundle)(x.numpy()), simulated)
    assert np.array_equal(load_engine(folder, threads=1)(x.numpy()), simulated)


def cases(name: str) -> list[tuple[str, str]]:
    """Every (site, kind of tensor), in an order that is always the same and mixes both."""
    found = list(itertools.product(site_names(name), KINDS))
    random.Random(0).shuffle(found)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_site_of_each_recipe(recipe: str, images: Dataset, tmp_path: Path) -> None:
    """One case a recipe, on either network in turn: together they go through sites and kinds of tensors."""
    index = RECIPES.index(recipe)
    name = list(NETWORKS)[(index + index // 2) % 2]
    found = cases(name)
    check(recipe, name, *found[index % len(found)], images, tmp_path / "artifact")


@pytest.mark.parametrize("recipe", ["visq-w8a8", "visq-w8a8-fused", "visq-rotated-w4a4-fused", "kscaled-w8a8"])
def test_a_scan_that_does_nothing(recipe: str, images: Dataset, tmp_path: Path) -> None:
    """B, C and delta's input are zero, as after pruning; so is the state."""
    check(recipe, "vim", "layers.0.mixer.x_proj_b.weight", "zero", images, tmp_path / "artifact")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_many_sites_of_each_recipe(recipe: str, name: str, images: Dataset, tmp_path: Path) -> None:
    """Every twelfth case: all recipes together meet every case several times."""
    for index, (site, kind) in enumerate(cases(name)[RECIPES.index(recipe) % 12 :: 12]):
        try:
            check(recipe, name, site, kind, images, tmp_path / str(index))
        except Exception as error:
            raise AssertionError(f"{site} {kind}") from error
