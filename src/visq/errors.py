"""The one exception users see, and helpers that raise it or write its message."""

from __future__ import annotations

from typing import Any


class VisqError(Exception):
    """An error the user can act on. Its message is one line, which the command line prints without a traceback."""


def need(condition: Any, what: str) -> None:
    """Raises VisqError with the message `what` unless the condition holds."""
    if not condition:
        raise VisqError(what)


def first_problem(error: ValueError) -> str:
    """Returns a pydantic error as one line: `sites.3.bits: Input should be ..., not 9`."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if where and first["type"] == "missing":
        return f"{where} is missing"
    if where and first["type"] == "extra_forbidden":
        return f"{where} is no key that is known here"
    given = first.get("input")
    short = isinstance(given, str | int | float) and len(repr(given)) <= 60
    message = f"{first['msg']}, not {given!r}" if short and first["msg"].startswith("Input should") else first["msg"]
    return f"{where}: {message}" if where else str(message)
