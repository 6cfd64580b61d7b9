"""The page in a browser: at three widths, in the dark, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import CHROMIUM, Browser
from tests.report.conftest import Report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(360, False), (800, True), (1280, False)])
def test_the_page_fits_and_nothing_complains(
    browser: Browser, made: Report, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.open(made.page, width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(16, 21, 27)" if dark else "rgb(255, 255, 255)")
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('main svg text')].map(text => text.getBoundingClientRect().height))"
    )
    assert smallest > 9  # pixels of a line, so that ticks can be read on a phone
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert browser.complaints == []
    assert set(browser.requests) == {made.page.absolute().as_uri()}


def test_a_table_is_sorted_by_keyboard(browser: Browser, made: Report) -> None:
    browser.open(made.page, 800)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.evaluate("table = [...document.querySelectorAll('table')].find(t => t.caption.innerText.includes('stage'))")
    browser.evaluate("table.tHead.rows[0].cells[1].querySelector('button').focus()")
    values = "[...table.tBodies[0].rows].map(row => Number(row.querySelector('data').value))"
    before = browser.evaluate(values)
    for order, expected in (("ascending", sorted(before)), ("descending", sorted(before)[::-1])):
        browser.press("Enter", 13)
        assert browser.evaluate("table.tHead.rows[0].cells[1].getAttribute('aria-sort')") == order
        assert browser.evaluate(values) == expected
    assert browser.complaints == []


def test_the_page_is_whole_without_scripts(browser: Browser, made: Report) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made.page, 800)
        assert browser.evaluate("document.querySelectorAll('button').length") == 0
        assert browser.evaluate("document.querySelectorAll('table').length") > 6
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints_on_white_paper(browser: Browser, made: Report) -> None:
    browser.open(made.page, 800, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    browser.call("Emulation.setEmulatedMedia", media="")
