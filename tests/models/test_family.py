"""Tests the declarations of a family: kinds of its sites, and its roles in recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from visq.errors import VisqError
from visq.models.family import FAMILIES, register_family
from visq.models.vim import VimConfig
from visq.recipes import get_recipe
from visq.recipes.roles import all_roles, expand


@pytest.mark.parametrize(
    "family, site, kind",
    [
        ("vim", "layers.11.mixer.in_proj.weight", "in_proj.weight"),
        ("vim", "layers.0.mixer.conv1d_b.in", "conv1d.in"),
        ("vim", "layers.0.mixer.a_b_log", "a_log"),
        ("vim", "layers.3.mixer.scan_b.h", "scan.h"),
        ("vim", "layers.3.norm.out", "norm.out"),
        ("vim", "patch_embed.proj.in", "patch_embed.proj.in"),
        ("vmamba", "layers.0.blocks.1.op.directions.3.scan.h", "scan.h"),
        ("vmamba", "layers.1.downsample.conv.in", "downsample.conv.in"),
        ("dvmsr", "layers.2.residual_group.blocks.1.mixer.in_proj.in", "in_proj.in"),
        ("dvmsr", "conv_first.weight", "conv_first.weight"),
        ("mambavision", "levels.2.blocks.5.mixer.attn.q", "attn.q"),
        ("mambavision", "levels.0.downsample.reduction.0.in", "downsample.reduction.0.in"),
    ],
)
def test_kind_drops_layer_and_direction(family: str, site: str, kind: str) -> None:
    assert FAMILIES[family].kind_of(site) == kind


@pytest.fixture
def other_family() -> Iterator[None]:
    """Registers a family whose blocks have a linear of their own, and a role that no other family has."""

    class Config(VimConfig):
        pass

    register_family(
        replace(
            FAMILIES["vim"],
            name="other",
            config=Config,
            roles={"linears": ("?*.qkv",), "pooling": ("?*.pool",)},
        )
    )
    yield
    del FAMILIES["other"]


def test_a_family_adds_to_the_roles_of_packaged_recipes(other_family: None) -> None:
    assert expand("@pooling.q") == ("?*.pool.q",)
    assert "?*.qkv.weight" in expand("@linears.weight")
    patterns = {pattern for rule in get_recipe("visq-w8a8").scope.sites for pattern in rule.match}
    assert "?*.qkv.weight" in patterns


def test_without_it_recipes_are_what_they_were() -> None:
    assert "pooling" not in all_roles()
    with pytest.raises(VisqError, match=r"'@pooling\.q' names no role; known: @linears\.<site>"):
        expand("@pooling.q")


def test_patterns_of_a_family_must_not_bind_others() -> None:
    with pytest.raises(VisqError, match="must start with"):
        replace(FAMILIES["vim"], name="strict", roles={"linears": ("*.qkv",)})
