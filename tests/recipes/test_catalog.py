from __future__ import annotations

from pathlib import Path

import pytest

from visq.errors import VisqError
from visq.models import create_model
from visq.quant.site import named_sites
from visq.recipes import get_recipe, list_recipes
from visq.recipes.catalog import packaged_methods


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
    assert set(packaged_methods()["kscaled"].scopes) == {"paper", "linear", "full"}


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


def test_a_base_is_extended(tmp_path: Path, sites: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "{name: mine, base: kscaled, title: mine, bits: {weight: 4, activation: 8, state: 6}, scopes: {full: {"
        "search_images: 7, learners: [adaround], transforms: [{name: smooth, alpha: 0.5}],"
        "sites: [{match: head.*, skip: true}, {match: '*.scan.h', bits: 5, granularity: tensor}]}}}"
    )
    recipe, base = get_recipe(file), get_recipe("kscaled-w4a8h6")
    assert (recipe.name, recipe.source) == ("mine-w4a8h6", base.source)
    assert recipe.scope.search_images == 7
    assert [one.name for one in recipe.scope.learners] == [*(one.name for one in base.scope.learners), "adaround"]
    assert [one.name for one in recipe.scope.transforms] == [*(one.name for one in base.scope.transforms), "smooth"]
    found, expected = recipe.resolve(sites), base.resolve(sites)
    assert {name for name in expected if name not in found} == {"head.weight", "head.in"}
    changed = [name for name in found if found[name] != expected[name]]
    assert changed == ["layers.0.mixer.scan.h", "layers.1.mixer.scan.h"]
    assert found["layers.0.mixer.scan.h"].bits == 5 and expected["layers.0.mixer.scan.h"].bits == 6


def test_a_scope_extends_another_one(tmp_path: Path, sites: list[str]) -> None:
    full, fused = get_recipe("visq-w4a4"), get_recipe("visq-w4a4-fused")
    found, expected = fused.resolve(sites), full.resolve(sites)
    scans = [f"layers.{i}.mixer.scan{direction}" for i in (0, 1) for direction in ("", "_b")]
    gone = {f"{scan}.{site}" for scan in scans for site in ("abar", "bbar")}
    gone |= {f"layers.{i}.mixer.{layer}.out" for i in (0, 1) for layer in ("conv1d", "conv1d_b", "out_proj")}
    assert set(expected) - set(found) == gone
    assert set(found) - set(expected) == {f"{scan}.b" for scan in scans}
    assert {name for name in found if found[name] != expected.get(name)} == {f"{s}.{x}" for s in scans for x in "bh"}
    assert [found[f"{scan}.h"].estimator.params for scan in scans] == [{"read": "sum"}] * 4
    assert fused.scope.transforms == full.scope.transforms
    # The base's own `extends` is resolved first.
    rotated = get_recipe("visq-rotated-w4a4-fused").scope
    assert rotated.transforms == get_recipe("visq-rotated-w4a4").scope.transforms and rotated.sites == fused.scope.sites

    file = tmp_path / "mine.yaml"
    text = "{name: mine, title: t, default_scope: a, scopes: {a: {extends: b}, c: {sites: []}}}"
    file.write_text(text)
    with pytest.raises(VisqError, match=r"scopes\.a\.extends must be one of c"):
        get_recipe(file)


def test_scopes_of_a_base_are_kept_and_added_to(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    rule = "{match: '@linears.weight', bits: weight}"
    file.write_text(f"{{name: mine, base: gptq, title: t, default_scope: few, scopes: {{few: {{sites: [{rule}]}}}}}}")
    recipe = get_recipe(file)
    assert recipe.scope_name == "few" and not recipe.scope.learners and len(recipe.scope.sites) == 1
    text = file.read_text().replace("default_scope: few", "default_scope: linear")
    file.write_text(text)
    assert get_recipe(file).scope == get_recipe("gptq-w8a8").scope


@pytest.mark.parametrize(
    "text, message",
    [
        ("{name: a, base: kscald, title: t}", "base 'kscald' is not a packaged family .*kscaled"),
        ("{name: a, base: ../omse, title: t}", "is not a packaged family"),
        ("{name: a, base: [omse], title: t}", "is not a packaged family"),
        ("{name: a, base: omse, title: t, scopes: [full]}", "scopes must be a mapping"),
        ("{name: a, base: omse, title: t, scopes: {full: [1]}}", "scopes must be a mapping"),
        ("{name: a, base: omse, title: t, scopes: {full: {sites: 3}}}", "scopes.full.sites"),
    ],
)
def test_wrong_bases(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(VisqError, match=message):
        get_recipe(tmp_path / "a.yaml")
