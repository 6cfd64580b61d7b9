"""Searches the bits of every site under a budget: mixed precision as an ordinary recipe. docs/search.md."""

from visq.search.budget import Budget, parse_budget
from visq.search.run import Found, Search, search

__all__ = ["Budget", "Found", "Search", "parse_budget", "search"]
