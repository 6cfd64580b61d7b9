from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from visq.errors import VisqError
from visq.recipes import get_recipe

SITES = ["a.0.in", "a.0.weight", "a.1.in", "a.1.weight", "head.weight"]


def write(folder: Path, *rules: dict[str, Any], **changes: Any) -> Path:
    values = {"name": "own", "title": "t", "default_scope": "s", "scopes": {"s": {"sites": list(rules)}}, **changes}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_later_rules_win_and_skip_removes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"match": "*.weight", "bits": "weight", "granularity": "channel"},
        {"match": ["a.*.in"], "estimator": {"name": "percentile", "percentile": 99.9}},
        {"match": "a.1.weight", "bits": 3},
        {"match": "head.*", "skip": True},
        {"match": "?b.*"},
        bits={"weight": 4, "activation": 6},
    )
    specs = get_recipe(path).resolve(SITES)
    assert list(specs) == SITES[:4]
    assert [specs[name].bits for name in SITES[:4]] == [6, 4, 6, 3]
    assert specs["a.0.weight"].granularity.kind == "channel" and specs["a.1.weight"].granularity.kind == "tensor"
    assert specs["a.0.in"].estimator.params == {"percentile": 99.9}
    assert get_recipe(path).name == "own-w4a6h8"


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"match": "c.*"}, r"pattern 'c\.\*' matches no site"),
        ({"match": "a.*", "colour": "red"}, "colour"),
        ({"match": "a.*", "bits": "wieght"}, "bits"),
        ({"match": "a.*", "bits": 9}, "less than or equal to 8"),
        ({"match": "a.*", "bits": 1}, "greater than or equal to 2"),
        ({"match": "a.*", "granularity": "pixel"}, "granularity"),
        ({"match": "a.*", "granularity": {"kind": "channel_groups", "k": 0}}, "granularity"),
        ({"match": "a.*", "symmetric": False, "narrow": True}, "narrow"),
        ({"bits": 4}, "match"),
    ],
)
def test_wrong_rules(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(VisqError, match=message) as caught:
        get_recipe(write(tmp_path, rule)).resolve(SITES)
    assert "own" in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="surprise"):
        get_recipe(write(tmp_path, surprise=1))
    with pytest.raises(VisqError, match="default_scope 'x' is not one of"):
        get_recipe(write(tmp_path, default_scope="x"))
    path = tmp_path / "broken.yaml"
    for text, message in [("{[", "not valid YAML"), ("- a", "must be a mapping"), ("name: x", "title")]:
        path.write_text(text)
        with pytest.raises(VisqError, match=message) as caught:
            get_recipe(path)
        assert "broken.yaml" in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(VisqError, match=r"broken\.yaml"):
        get_recipe(path)


def test_anchors_live_under_keys_with_x(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: own\ntitle: t\ndefault_scope: s\n"
        "x-group: &group {kind: channel_groups, k: 2}\n"
        "scopes: {s: {sites: [{match: 'a.*', granularity: *group}]}}\n"
    )
    assert get_recipe(tmp_path / "own.yaml").resolve(SITES)["a.0.in"].granularity.k == 2
