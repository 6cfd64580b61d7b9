"""Finds the tables, which are files of the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from visq.errors import VisqError, first_problem
from visq.reproduce.schema import Table
from visq.strict_yaml import read_yaml


@cache
def _texts() -> dict[str, str]:
    """Returns the texts of the files by the table's name, which is the file's."""
    found = (file for file in files("visq.reproduce").joinpath("tables").iterdir() if file.name.endswith(".yaml"))
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in found}


def table_names() -> list[str]:
    """Returns the names of all tables."""
    return sorted(_texts())


def get_table(name: str) -> Table:
    """Returns a table by name.

    Raises:
        VisqError: there is none of that name.
    """
    if name not in _texts():
        raise VisqError(f"unknown table '{name}'; there are {', '.join(table_names())}")
    values = {key: value for key, value in read_yaml(_texts()[name]).items() if not key.startswith("x-")}
    try:
        return Table.model_validate({"name": name, **values})
    except ValueError as error:
        raise VisqError(f"table {name}: {first_problem(error)}") from error
