"""YAML by hand: what is said twice, what refers to itself, and what grows."""

from __future__ import annotations

import pytest
import yaml

from visq.strict_yaml import read_yaml


def test_plain_values_are_those_of_yaml() -> None:
    text = "a: [1, 2.5, x]\nb: {c: null, d: true}\ne: &e {f: 1}\ng: {<<: *e, h: 2}\ni: {<<: *e, f: 3}\n3: three\n"
    assert read_yaml(text) == yaml.safe_load(text) and read_yaml(text)["i"] == {"f": 3}
    late = "e: &e {f: 1}\nx: {y: {z: &a {<<: *e, f: 3}}}\nb: {<<: *a, f: 4}"
    assert read_yaml(late) == yaml.safe_load(late) == {"e": {"f": 1}, "x": {"y": {"z": {"f": 3}}}, "b": {"f": 4}}
    assert read_yaml("") is None and read_yaml("7") == 7


@pytest.mark.parametrize(
    "text,message",
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice, line 3"),
        ("x: {c: 1, c: 2}", "key 'c' stands twice, line 1"),
        ("1: a\n1: b", "key '1' stands twice"),
        ("a: &a [*a]", "an alias refers to itself"),
        ("a: &a {b: *a}", "an alias refers to itself"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: 2024-99-99", "month must be in"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("x" * 2_000_000, "2,000,000 characters"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)


def test_a_value_that_grows() -> None:
    """Half a kilobyte that stands for 387 million values; an error message once printed them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(yaml.YAMLError, match="expand to more than 100,000 values"):
        read_yaml("\n".join([*lines, "base: *a8"]))
