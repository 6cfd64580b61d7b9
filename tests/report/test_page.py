"""The page of the embedded model: its structure, its numbers, and that nothing in it can do harm or load anything."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import visq.report
from tests.report.conftest import Report
from tests.report.parsed import check_numbers, check_structure, parse
from visq.report.page import TEMPLATES, num, p_value, percent, render, wrapping

SECTIONS = (
    "Coverage",
    "Where the error arises",
    "Worst sites",
    "Scales and clipping",
    "Error along the scan",
    "Classes that lose most",
    "Recipe and provenance",
)


def test_the_page_is_well_formed(made: Report) -> None:
    root = parse(made.html)
    check_structure(root)
    assert root.all("h1")[0].text() == "visq-w4a4 on vim_nano_fmnist"
    assert tuple(heading.text() for heading in root.all("h2")) == SECTIONS
    assert root.all("html")[0].attributes["lang"] == "en"
    titles = [title.text() for title in root.all("title")]
    assert sum("before and after quantization" in title for title in titles) == 8
    assert "SQNR of each stage's output against FP32" in titles and "Relative error of y along the scans" in titles


def test_every_number_is_in_the_json(made: Report) -> None:
    assert check_numbers(parse(made.html), made.document) > 400


def test_the_verdict_comes_first_and_is_that_of_the_json(made: Report) -> None:
    artifact = made.document["artifacts"][0]
    found = artifact["decisions"]
    lead = next(p for p in parse(made.html).all("p") if p.attributes.get("class") == "lead").text()
    assert lead.startswith(f"Quantized top-1 is {found['top1']:.2f} %")
    assert f"{artifact['bytes'] / 1e6:.2f} MB" in lead and "24 images of fashion-mnist" in lead
    assert found["images"] == 24 and found["top1"] == pytest.approx(found["fp32_top1"] - found["drop"], abs=1e-3)
    assert found["drop_low"] <= found["drop"] <= found["drop_high"]
    assert "no latency: it was not measured; add --time" in made.said
    assert "latency: it was not measured; add --time" in parse(made.html).all("main")[0].text()


def test_the_numbers_are_those_of_the_commands(made: Report) -> None:
    """The engine's own decisions on the same images, and the sites of `diagnose` on as many of the same set."""
    from visq import analysis
    from visq.artifact import artifact_bytes, load
    from visq.data import open_dataset

    model = load(made.artifact)
    images = open_dataset("fashion-mnist", model.card.preprocess, split="test", classes=model.card.classes)
    found = analysis.evaluate(analysis.EngineModel(made.artifact, threads=1), images, limit=24)
    artifact = made.document["artifacts"][0]
    assert artifact["decisions"]["top1"] == pytest.approx(found.top1, rel=1e-5)
    assert artifact["bytes"] == artifact_bytes(made.artifact)
    rows = {row["name"]: row for row in analysis.diagnose(model, images, images=2)["sites"]}
    worst = artifact["errors"]["worst"]
    assert all(row["sqnr_db"] == pytest.approx(rows[row["name"]]["sqnr_db"], rel=1e-4) for row in worst)
    assert [row["sqnr_db"] for row in worst] == sorted(row["sqnr_db"] for row in worst)
    coverage = artifact["coverage"]
    assert coverage["quantized"] == coverage["targeted"] == sum(row["quantized"] for row in coverage["kinds"])


def test_same_input_same_bytes(made: Report, tmp_path: Path) -> None:
    found = visq.report.write([made.artifact], tmp_path / "again.html", limit=24, site_images=2, threads=1)
    assert json.loads(json.dumps(found)) == made.document
    assert (tmp_path / "again.html").read_bytes() == made.page.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_the_page_loads_nothing(made: Report) -> None:
    html, root = made.html, parse(made.html)
    assert not re.search(r"(?i)https?:|@import|//[a-z]", html)
    assert set(re.findall(r"url\(([^)]*)\)", html)) == {"#hatch"}
    for element in root.walk():
        assert not element.attributes.keys() & {"src", "srcset", "data", "action", "poster"}
        assert element.attributes.get("href", "#").startswith("#")
        assert not [name for name in element.attributes if name.startswith("on")]
    scripts = root.all("script")
    digest = base64.b64encode(hashlib.sha256(scripts[0].text().encode()).digest()).decode()
    policy = next(meta for meta in root.all("meta") if "http-equiv" in meta.attributes).attributes["content"]
    assert len(scripts) == 1 and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert len(html) < 150_000


def poisoned(value: Any) -> Any:
    """Returns a document all of whose strings would be tags or end attributes if they were not escaped."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return f"{value}<script>alert('1')</script>\"><b onload='x'>&" if isinstance(value, str) else value


def test_every_string_is_escaped(made: Report) -> None:
    document = copy.deepcopy(made.document)
    document["artifacts"] = poisoned(document["artifacts"])
    root = parse(render(document))
    check_structure(root)
    assert len(root.all("script")) == 1 and not root.all("b")
    assert not [element for element in root.walk() if "onload" in element.attributes]
    classes = next(table for table in root.all("table") if "by class" in table.all("caption")[0].text())
    assert "<script>alert('1')</script>" in classes.text()


def test_the_self_check_is_shown_when_the_artifact_holds_one(made: Report) -> None:
    document = copy.deepcopy(made.document)
    part = {"images": 32, "agree": 29, "sqnr_db": 12.3, "psnr_db": None, "non_finite": 0}
    held_out = {**part, "agree": 27, "sqnr_db": None, "non_finite": 2}
    document["artifacts"][0]["check"] = {
        "verdict": "doubtful", "calibration": part, "held_out": held_out, "worst_sites": [], "problem": None
    }  # fmt: skip
    root = parse(render(document))
    check_numbers(root, document)
    text = root.all("main")[0].text()
    assert "Self-check after calibration: doubtful." in text
    assert "29 of 32 calibration images decided as in FP32, outputs at 12.3 dB" in text
    assert "27 of 32 held-out images decided as in FP32. Outputs of 2 images are not finite." in text


def test_measured_latency_is_shown(made: Report) -> None:
    document = copy.deepcopy(made.document)
    operations = [{"kind": "linear", "ms": 0.3, "share": 0.75}, {"kind": "scan", "ms": 0.1, "share": 0.25}]
    document["artifacts"][0] |= {
        "time": {
            "ms": 0.25, "fp32_ms": 2.5, "times_faster": 10.0, "threads": 1, "kernel": "cpp-avx2",
            "processor": "a processor", "operations": operations,
        },
        "missing": [],
    }  # fmt: skip
    root = parse(render(document))
    check_structure(root)
    check_numbers(root, document)
    assert "0.250 ms an image at batch 1" in root.all("main")[0].text()
    assert "Thread time of the engine by kind of operation" in [title.text() for title in root.all("title")]


def test_numbers_as_they_are_shown() -> None:
    assert num(1769512) == '<data value="1769512">1,769,512</data>'
    assert num(-0.5, ".1f") == '<data value="-0.5">−0.5</data>'
    assert percent(0.0125) == '<data value="0.0125">1.25</data>'
    assert p_value(0.0004) == '<data value="0.0004">&lt; 0.001</data>' and "0.125" in p_value(0.125)
    assert "not measured" in num(None)
    assert wrapping("a.b_c<") == "a.<wbr>b_<wbr>c&lt;"


def contrast(first: str, second: str) -> float:
    """Returns WCAG's ratio of two colours `#rgb` or `#rrggbb`."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        parts = [
            int(part, 16) / 255 for part in (re.findall("..", digits) if len(digits) == 6 else [c * 2 for c in digits])
        ]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_every_scheme() -> None:
    style = (TEMPLATES / "style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        for paper in (scheme["paper"], scheme["tint"]):
            assert all(contrast(scheme[ink], paper) >= 4.5 for ink in ("ink", "soft", "blue"))
        assert all(contrast(scheme[line], scheme["paper"]) >= 3 for line in ("blue", "orange"))
