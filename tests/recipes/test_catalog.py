from __future__ import annotations

from pathlib import Path

import pytest

from visq.errors import VisqError
from visq.models import create_model
from visq.quant.site import named_sites
from visq.recipes import get_recipe, list_recipes
from visq.recipes.catalog import packaged_families


@pytest.fixture(scope="module")
def sites() -> list[str]:
    model = create_model("vim", image_size=16, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, num_classes=4)
    return [name for name, _ in named_sites(model)]


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_packaged_recipe_fits_a_vim(recipe, sites: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert get_recipe(recipe.name) == recipe
    specs = recipe.resolve(sites)
    assert bool(specs) == (recipe.name != "fp32")
    for name, spec in specs.items():
        allowed = {recipe.bits.weight, recipe.bits.activation, recipe.bits.state, 8}
        assert spec.bits in allowed, name
    assert recipe.title and (recipe.source or recipe.name == "fp32")


def test_names_carry_bits_and_scope() -> None:
    recipe = get_recipe("kscaled-w4a8h6-linear")
    assert (recipe.bits.weight, recipe.bits.activation, recipe.bits.state) == (4, 8, 6)
    assert recipe.name == "kscaled-w4a8h6-linear" and recipe.scope_name == "linear" and recipe.family == "kscaled"
    assert get_recipe("kscaled-w4a4").bits.state == 4 and get_recipe("kscaled-w4a4").scope_name == "full"
    assert get_recipe("kscaled-w4a4-full").name == "kscaled-w4a4"
    assert get_recipe("minmax-channel-w8a8").family == "minmax-channel"
    assert set(packaged_families()["kscaled"].scopes) == {"paper", "linear", "full"}


def test_full_reaches_every_tensor_of_the_ssm(sites: list[str]) -> None:
    specs = get_recipe("kscaled-w6a6h4").resolve(sites)
    for tensor in ("delta", "abar", "bbar", "c", "h", "y"):
        for scan in ("scan", "scan_b"):
            assert f"layers.1.mixer.{scan}.{tensor}" in specs
    assert specs["layers.0.mixer.scan.h"].bits == 4 and specs["layers.0.mixer.in_proj.weight"].bits == 6
    gemms = [name for name in sites if name.endswith((".in", ".weight"))]
    assert [name for name in gemms if name not in specs] == []
    linear = get_recipe("kscaled-w6a6-linear").resolve(sites)
    assert linear and not any(".scan" in name for name in linear)


@pytest.mark.parametrize(
    "name, message",
    [
        ("kscaled-w9a8", "bits must be 2 to 8"),
        ("kscaled-w8a1", "bits must be 2 to 8"),
        ("kscaled-w8a8-half", "has no scope 'half'; it has"),
        ("kscald-w8a8", "did you mean kscaled-w8a8"),
        ("kscaled", "unknown recipe 'kscaled'"),
        ("none.yaml", "cannot read recipe none.yaml"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        get_recipe(name)


def test_digest_is_of_everything(tmp_path: Path) -> None:
    digests = {recipe.name: recipe.digest() for recipe in list_recipes()}
    assert len(set(digests.values())) == len(digests)
    assert get_recipe("kscaled-w8a8").digest() == digests["kscaled-w8a8"]
