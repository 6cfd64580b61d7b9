"""Sites that one tensor feeds are one group."""

from __future__ import annotations

import torch

from tests.search.conftest import BASE, Case
from visq.models import create_model
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.search.groups import find_groups, kinds_of


def test_every_open_site_is_in_one_group(case: Case) -> None:
    names = [name for name, _ in named_sites(case.model)]
    groups = find_groups(case.model, BASE, next(case.images.batches(1))[0])
    grouped = [name for group in groups for name in group.sites]
    assert sorted(grouped) == sorted(kinds_of(BASE, names)) and len(set(grouped)) == len(grouped)


def test_a_flipped_sequence_is_the_same_tensor(case: Case) -> None:
    groups = find_groups(case.model, BASE, next(case.images.batches(1))[0])
    of = {name: group for group in groups for name in group.sites}
    assert of["layers.0.mixer.conv1d.in"] is of["layers.0.mixer.conv1d_b.in"]
    assert of["layers.0.mixer.silu.out"] is of["layers.0.mixer.x_proj.in"]
    assert of["layers.0.mixer.silu.out"] is not of["layers.0.mixer.silu_b.out"]
    assert of["layers.0.mixer.conv1d.in"] is not of["layers.0.mixer.in_proj.in"]


def test_kinds_are_those_of_the_rules(case: Case) -> None:
    names = [name for name, _ in named_sites(case.model)]
    kinds = kinds_of(get_recipe("visq-w8a8"), names)
    assert kinds["layers.0.mixer.scan.h"] == "state" and kinds["layers.0.mixer.in_proj.weight"] == "weight"
    assert kinds["layers.0.mixer.scan.bbar"] == "activation"
    assert "layers.0.mixer.a_log" not in kinds  # its rule says 8


def test_products_are_values_times_tokens(case: Case) -> None:
    groups = {group.name: group for group in find_groups(case.model, BASE, next(case.images.batches(1))[0])}
    weight = case.model.layers[0].mixer.in_proj.weight
    assert groups["layers.0.mixer.in_proj.weight"].products == weight.numel() * case.model.config.num_tokens
    assert groups["head.weight"].products == case.model.head.weight.numel()
    assert groups["layers.0.mixer.conv1d.weight"].products == 0 and isinstance(weight, torch.nn.Parameter)


def test_four_directions_read_one_tensor() -> None:
    """VMamba scans one map in four orders: the inputs of the four projections move together."""
    model = create_model("vmamba", image_size=32, embed_dim=8, depths=[1, 1], mlp_ratio=2, num_classes=4).eval()
    groups = find_groups(model.requires_grad_(False), get_recipe("visq-w8a8"), torch.randn(1, 3, 32, 32))
    of = {name: group for group in groups for name in group.sites}
    scans = [f"layers.0.blocks.0.op.directions.{i}.x_proj.in" for i in range(4)]
    assert all(of[name] is of["layers.0.blocks.0.op.silu.out"] for name in scans)
    weights = [f"layers.0.blocks.0.op.directions.{i}.x_proj.weight" for i in range(4)]
    assert len({of[name] for name in weights}) == 4
