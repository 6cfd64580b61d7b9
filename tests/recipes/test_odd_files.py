"""Recipe files that are wrong as YAML, too large, or odd in any place: one line that names the file, and quickly."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.analysis.conftest import GEOMETRY
from visq.errors import VisqError
from visq.models import create_model
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.recipes.catalog import packaged_texts
from visq.strict_yaml import MOST_CHARACTERS

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB + "base: *a8\n", "its aliases expand to more than 100,000 values"),
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice, line 3"),
        ("scopes: {full: {sites: [], sites: []}}", "key 'sites' stands twice"),
        ("a: &a {<<: *a}", "refers to itself"),
        ("a: &a [*a]", "an alias refers to itself"),
        ("[" * 3000 + "]" * 3000, "nested too deep"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 2020-99-99", "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("", "must be a mapping"),
        ("base: [x]", r"base '\['x'\]' is not a packaged family"),
        (f"base: {'x' * 5000}", "base 'x{60}' is not a packaged family"),
    ],
)
def test_one_short_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(VisqError, match=message) as caught:
        get_recipe(file)
    assert "odd.yaml" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 and time.monotonic() - start < 20


def test_large_files_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("#" * MOST_CHARACTERS + "\nname: x")
    with pytest.raises(VisqError, match=r"large\.yaml has more than 1,000,000 bytes; recipes are small"):
        get_recipe(tmp_path / "large.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VisqError, match=r"cannot read recipe .*binary\.yaml"):
        get_recipe(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", sorted(packaged_texts()))
def test_a_recipe_that_is_odd_in_one_place_is_refused_or_works(name: str, tmp_path: Path) -> None:
    """Any other exception than VisqError would reach the user as a traceback."""
    sites = [site for site, _ in named_sites(create_model("vim", **GEOMETRY))]
    whole = yaml.safe_load(packaged_texts()[name])
    whole["name"] = "odd"
    draw = random.Random(name)
    odd = (None, [], {}, "x", "", -1, 1e400, 10**30, [None], {"a": None}, True, [[["x"]]], {"name": []}, "@linears")
    file = tmp_path / "odd.yaml"
    for _ in range(20):
        changed = yaml.safe_load(yaml.safe_dump(whole))
        place = draw.choice(places(changed))
        put(changed, place, draw.choice(odd))
        file.write_text(yaml.safe_dump(changed))
        try:
            get_recipe(file).resolve(sites)
        except VisqError as error:
            assert "\n" not in str(error), place


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path of keys and indices into nested lists and mappings."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([path] if path else []) + [found for key, part in inner for found in places(part, (*path, key))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new
