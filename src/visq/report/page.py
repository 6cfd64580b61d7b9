"""The document as HTML. The template sees nothing but the document, so every number of the page is in the JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from visq.report import charts

TEMPLATES = Path(__file__).parent / "templates"


def render(document: dict[str, Any]) -> str:
    """Returns the page, self-contained: styles, script and drawings are inside, and it may load nothing."""
    plain = json.loads(json.dumps(document, allow_nan=False))
    text = (
        environment()
        .get_template("page.html")
        .render(
            document=plain, style=source("style.css"), script=source("sort.js"), script_hash=hash_of(source("sort.js"))
        )
    )
    return "\n".join(line for line in text.split("\n") if line.strip()) + "\n"


@cache
def environment() -> Environment:
    """Returns the templates with everything escaped and nothing undefined."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"num": num, "percent": percent, "megabytes": megabytes, "p_value": p_value, "wrapping": wrapping}
    found.globals |= {"charts": charts}
    return found


def source(name: str) -> Markup:
    """Returns a file of the templates that goes into the page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8").strip())


def hash_of(script: str) -> str:
    """Returns what the page's content security policy allows: this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def num(value: float | int | None, form: str = ",", factor: float = 1) -> Markup:
    """Returns a number as text, with the document's own value in an attribute; None as a dash.

    Arguments:
        form: as Python's `format` takes it.
        factor: to the unit that the page shows.
    """
    if value is None:
        return Markup('<span class="none">–<span class="sr"> not measured</span></span>')
    shown = format(value if factor == 1 else value * factor, form)
    return Markup('<data value="{}">{}</data>').format(json.dumps(value), shown.replace("-", "−"))


def percent(share: float | None, digits: int = 2) -> Markup:
    """Returns a share as percent."""
    return num(share, f".{digits}f", 100)


def megabytes(size: int | None) -> Markup:
    """Returns bytes as megabytes."""
    return num(size, ".2f", 1e-6)


def p_value(p: float | None) -> Markup:
    """Returns the probability of a test; tiny ones as a bound."""
    return (
        num(p, ".3f") if p is None or p >= 0.001 else Markup('<data value="{}">&lt; 0.001</data>').format(json.dumps(p))
    )


def wrapping(name: str) -> Markup:
    """Returns a name that may break after dots, underscores and hyphens."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._-])(?=.)", name))
