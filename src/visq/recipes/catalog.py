"""Finds recipes by name, `<family>-w<bits>a<bits>[h<bits>][-<scope>]` such as `kscaled-w8a8` or `kscaled-w4a4h8-full`,
and reads recipe files."""

from __future__ import annotations

import difflib
import errno
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from visq import strict_yaml
from visq.errors import VisqError, first_problem
from visq.files import read_bytes
from visq.recipes.roles import all_roles
from visq.recipes.schema import Bits, Method, Recipe, Scope

NAME = re.compile(r"(?P<family>.+?)-w(?P<w>\d+)a(?P<a>\d+)(?:h(?P<h>\d+))?(?:-(?P<scope>[a-z]+))?")

#: Bits under which packaged recipes are listed; any from 2 to 8 may be asked for.
LISTED_BITS = ((8, 8), (6, 6), (4, 8), (4, 4))
_LISTED = tuple(f"w{weight}a{activation}" for weight, activation in LISTED_BITS)

FP32 = Recipe(
    name="fp32", family="fp32", title="no quantization", source="", scope_name="none", bits=Bits(), scope=Scope()
)


def get_recipe(name_or_file: str | Path) -> Recipe:
    """Returns a packaged recipe by name, or the one in a YAML file (at the file's own `bits`, in its `default_scope`).

    Raises:
        VisqError: unknown name (close ones are offered), bits outside 2..8, unknown scope, unreadable file, unknown or
            invalid key.
    """
    text = str(name_or_file)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        family = load_method(Path(text))
        return make_recipe(family, family.bits, family.default_scope)
    if text == "fp32":
        return FP32
    families = packaged_methods()
    match = NAME.fullmatch(text)
    if match is None or match["family"] not in families:
        if text in families:
            names = [f"{text}-{bits}" for bits in _LISTED]
            raise VisqError(
                f"unknown recipe '{text}': a name ends in bits, such as {', '.join(names[:-1])} or {names[-1]}"
            )
        close = difflib.get_close_matches(text, ["fp32", *(r.name for r in list_recipes())], n=3, cutoff=0.3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise VisqError(f"unknown recipe '{text}'{hint} (`visq recipes` lists them; a recipe file ends in .yaml)")
    family = families[match["family"]]
    try:
        bits = Bits(weight=int(match["w"]), activation=int(match["a"]), state=int(match["h"] or match["a"]))
    except ValueError as error:
        raise VisqError(f"recipe {text}: bits must be 2 to 8 ({first_problem(error)})") from error
    return make_recipe(family, bits, match["scope"] or family.default_scope)


def make_recipe(family: Method, bits: Bits, scope: str) -> Recipe:
    if scope not in family.scopes:
        raise VisqError(f"recipe family {family.name} has no scope '{scope}'; it has {', '.join(family.scopes)}")
    suffix = "" if scope == family.default_scope else f"-{scope}"
    return Recipe(
        name=f"{family.name}-{bits}{suffix}",
        family=family.name,
        title=family.title,
        source=family.source,
        scope_name=scope,
        bits=bits,
        scope=family.scopes[scope],
    )


def list_recipes() -> list[Recipe]:
    """Returns every packaged family in every scope at the usual bits, FP32 first."""
    recipes = [FP32]
    for family in packaged_methods().values():
        for scope in family.scopes:
            recipes += [make_recipe(family, Bits(weight=w, activation=a, state=a), scope) for w, a in LISTED_BITS]
    return recipes


def packaged_methods() -> dict[str, Method]:
    """Returns the packaged recipe files by name, their roles expanded for every registered family of networks."""
    return _packaged_methods(tuple(all_roles().items()))


@cache
def _packaged_methods(roles: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, Method]:
    families = [parse_method(text, f"{name}.yaml") for name, text in sorted(packaged_texts().items())]
    return {family.name: family for family in families}


@cache
def packaged_texts() -> dict[str, str]:
    """Returns the texts of the packaged recipe files by family name, which is the file's."""
    found = (file for file in files("visq.recipes").iterdir() if file.name.endswith(".yaml"))
    return {file.name.removesuffix(".yaml"): file.read_text() for file in found}


def load_method(path: Path) -> Method:
    """Returns the recipe in a file; raises VisqError naming the file and the key that is wrong."""
    try:
        text = read_bytes(path, strict_yaml.MOST_CHARACTERS).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            many = f"more than {strict_yaml.MOST_CHARACTERS:,} bytes"
            raise VisqError(f"recipe {path} has {many}; recipes are small") from None
        raise VisqError(f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_method(text, str(path))


def parse_method(text: str, where: str) -> Method:
    data = with_base(read_yaml(text, where), where)
    try:
        family = Method.model_validate(data)
    except ValueError as error:
        raise VisqError(f"recipe {where}: {first_problem(error)}") from error
    if family.default_scope not in family.scopes:
        raise VisqError(
            f"recipe {where}: default_scope '{family.default_scope[:60]}' is not one of its scopes "
            f"({', '.join(family.scopes)})"
        )
    return family


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Returns a recipe file's mapping, without the keys `x-...` that hold its anchors."""
    try:
        data = strict_yaml.read_yaml(text)
    except yaml.YAMLError as error:
        raise VisqError(f"recipe {where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise VisqError(f"recipe {where} must be a mapping with the keys name, title, default_scope, scopes")
    return {key: value for key, value in data.items() if not str(key).startswith("x-")}


def with_base(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the mapping laid over that of its `base`, a packaged family. In each scope, transforms, rules, learners
    follow the base's own (a later rule overrides an earlier one); every other key replaces the base's."""
    data = with_extensions(data, where)
    if "base" not in data:
        return data
    name, texts = data["base"], packaged_texts()
    if not isinstance(name, str) or name not in texts:
        raise VisqError(
            f"recipe {where}: base '{str(name)[:60]}' is not a packaged family ({', '.join(sorted(texts))})"
        )
    base = with_base(read_yaml(texts[name], f"{name}.yaml"), f"{name}.yaml")
    own = data.get("scopes", {})
    scopes = {scope: extended(base["scopes"].get(scope, {}), own.get(scope, {})) for scope in base["scopes"] | own}
    return {key: value for key, value in (base | data).items() if key != "base"} | {"scopes": scopes}


def with_extensions(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the mapping with every scope laid over the one of the file that it `extends`."""
    scopes = data.get("scopes", {})
    if not isinstance(scopes, dict) or not all(isinstance(scope, dict) for scope in scopes.values()):
        raise VisqError(f"recipe {where}: scopes must be a mapping of scopes")
    whole = {name: scope for name, scope in scopes.items() if "extends" not in scope}
    for name, scope in scopes.items():
        if name not in whole:
            if not isinstance(scope["extends"], str) or scope["extends"] not in whole:
                raise VisqError(f"recipe {where}: scopes.{name}.extends must be one of {', '.join(whole)}")
            rest = {key: value for key, value in scope.items() if key != "extends"}
            whole[name] = extended(whole[scope["extends"]], rest)
    return {**data, "scopes": whole} if scopes else data


def extended(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Returns one scope's mapping laid over the base's: lists follow, values replace."""
    shared = base.keys() & own.keys()
    lists = {key: base[key] + own[key] for key in shared if isinstance(base[key], list) and isinstance(own[key], list)}
    return base | own | lists
