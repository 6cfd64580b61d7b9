"""Reads recipes: methods as YAML files over visq's vocabulary. `get_recipe` makes one of a name or a file."""

from visq.recipes.catalog import get_recipe, list_recipes, load_method
from visq.recipes.schema import Bits, Method, Recipe, Rule, Scope

__all__ = ["Bits", "Method", "Recipe", "Rule", "Scope", "get_recipe", "list_recipes", "load_method"]
