"""A page as a tree, and what a reader of it would trip over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

VOID = {"meta", "rect", "circle", "line", "path", "wbr", "br"}
INLINE = {"a", "code", "data", "small", "span", "strong", "wbr"}


@dataclass
class Element:
    """An element: children are elements and strings."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        """Returns the elements below this one with one of the tags, in order."""
        return [element for element in self.walk() if element.tag in tags]

    def walk(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.walk()

    def text(self, without: tuple[str, ...] = ()) -> str:
        """Returns the text, without that of elements that have one of the tags."""
        found = self._text(without)
        return found if self.tag in ("script", "style", "pre") else " ".join(found.split())

    def _text(self, without: tuple[str, ...]) -> str:
        parts = []
        for child in self.children:
            if isinstance(child, str):
                parts.append(child)
            elif child.tag not in without and child.attributes.get("class") != "tick":
                text = child._text(without)
                parts.append(text if child.tag in INLINE else f" {text} ")
        return "".join(parts)


class Reader(HTMLParser):
    """Builds the tree; a tag that is closed by another is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parse(html: str) -> Element:
    """Returns the root of a page whose tags are all closed in order."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader._open == [reader.root], [element.tag for element in reader._open]
    return reader.root


def scalars(value: Any) -> Iterator[Any]:
    """Yields every number and string of a document."""
    if isinstance(value, dict):
        yield from value  # keys are printed, too
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from scalars(item)
    elif value is not None:
        yield value


def check_structure(root: Element) -> None:
    """Asserts headings in order, tables with captions and scopes, drawings with titles, links that lead somewhere."""
    levels = [int(element.tag[1]) for element in root.walk() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    ids = [element.attributes["id"] for element in root.walk() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in root.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids and link.text()
    for table in root.all("table"):
        assert table.all("caption")[0].text()
        assert all(head.attributes["scope"] in ("col", "row") for head in table.all("th"))
        columns = len(table.all("thead")[0].all("th"))
        rows = table.all("tbody")[0].all("tr")
        assert rows and all(len(row.all("td", "th")) == columns and len(row.all("th")) == 1 for row in rows)
    for drawing in root.all("svg"):
        if drawing.attributes.get("aria-hidden") != "true":
            assert drawing.attributes["role"] == "img"
            named = drawing.attributes["aria-labelledby"].split()
            parts = [drawing.all("title")[0], drawing.all("desc")[0]]
            assert [part.attributes["id"] for part in parts] == named and all(part.text() for part in parts)
    for region in root.all("div"):
        if region.attributes.get("class") == "scroll":  # what scrolls is reached by keyboard and has a name
            assert region.attributes["tabindex"] == "0" and region.attributes["aria-label"]


def check_numbers(root: Element, document: dict[str, Any]) -> int:
    """Asserts that every number of the page is in its document; returns how many there are."""
    known = {json.dumps(value) for value in scalars(document) if isinstance(value, int | float)}
    numbers = root.all("data")
    for element in numbers:
        value, shown = element.attributes["value"], element.text().replace("−", "-").replace(",", "")
        assert value in known, f"{shown} is not in the document"
        if shown == "< 0.001":
            assert 0 <= float(value) < 0.001
            continue
        factors = (1, 100, 1e-6, -1)  # as it is, percent, megabytes, a negative drop as a gain
        near = [abs(float(shown) - float(value) * factor) for factor in factors]
        digits = len(shown.partition(".")[2]) if "e" not in shown else 0
        assert min(near) <= 0.5000001 * 10.0**-digits or abs(float(shown) / float(value) - 1) < 5e-3, (shown, value)
    words = {"FP32", "float32", "95", "sha256", "top-1", "Top-1", "top\N{NON-BREAKING HYPHEN}1"}
    strings = json.dumps(document, ensure_ascii=False)
    body = root.all("body")[0].text(without=("data", "script", "style", "pre"))
    for token in re.findall(r"[^\s,;:()/'\[\]]*\d[^\s,;:()/'\[\]]*", body):
        assert token.rstrip(".") in words or token.rstrip(".") in strings, f"{token} comes from nowhere"
    return len(numbers)
