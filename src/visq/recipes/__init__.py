"""Recipes: methods as YAML files over the vocabulary. `get_recipe` turns a name or a file into a `Recipe`."""

from visq.recipes.catalog import get_recipe, list_recipes, load_family
from visq.recipes.schema import Bits, Family, Recipe, Rule, Scope

__all__ = ["Bits", "Family", "Recipe", "Rule", "Scope", "get_recipe", "list_recipes", "load_family"]
