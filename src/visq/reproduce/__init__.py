"""The tables of the papers: their settings and numbers as data, and what runs them on a network and images."""

from visq.reproduce.catalog import get_table, table_names
from visq.reproduce.report import published_name, to_json, to_markdown
from visq.reproduce.run import reproduce
from visq.reproduce.schema import Published, Table, TableRow

__all__ = [
    "Published",
    "Table",
    "TableRow",
    "get_table",
    "published_name",
    "reproduce",
    "table_names",
    "to_json",
    "to_markdown",
]
