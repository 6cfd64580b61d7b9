"""The printed table names the kernels that ran: it is held against the calls that the dispatcher counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from visq import ops, pipeline
from visq.analysis import coverage
from visq.artifact import load
from visq.data import Dataset
from visq.models import VisionMamba
from visq.models.layers import SelectiveScan
from visq.ops import backends
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.recipes.catalog import FP32
from visq.simulation import undeploy


def counted(model: Any) -> Counter[tuple[str, str]]:
    """What one forward pass calls."""
    with backends.recorded() as calls, torch.no_grad():
        model(torch.zeros(1, 1, 16, 16))
    return calls


def printed(model: Any) -> Counter[str]:
    """How many sites each entry of the table's last column stands for, weights left out."""
    rows = coverage(model, model.recipe)
    found: Counter[str] = Counter()
    for row in rows:
        if row["kernel"] not in ("", "packed codes"):
            found[row["kernel"]] += row["quantized"]
    return found


def kernel(op: str) -> str:
    return f"{backends.describe()[op].kernel} ({op})"


def test_nothing_is_quantized(model: VisionMamba) -> None:
    assert {row["kernel"] for row in coverage(model, FP32)} == {""}
    assert not [op for op, _ in counted(model) if op in ("fake_quantize", "fixed_scan", "quantized_scan")]


@pytest.mark.parametrize("name, scan", [("kscaled-w4a4", "fixed_scan"), ("visq-w4a4-fused", "fixed_scan")])
def test_a_deployed_network(model: VisionMamba, images: Dataset, tmp_path: Path, name: str, scan: str) -> None:
    pipeline.quantize(model, get_recipe(name), images, out=tmp_path / "a")
    deployed = load(tmp_path / "a")
    calls, table = counted(deployed), printed(deployed)
    assert table[kernel("fake_quantize")] == sum(n for (op, _), n in calls.items() if op == "fake_quantize") > 0
    scans = [module for module in deployed.modules() if isinstance(module, SelectiveScan)]
    assert sum(n for (op, _), n in calls.items() if op == scan) == len(scans) == 4
    rows = {row["kind"]: row["kernel"] for row in coverage(deployed, deployed.recipe)}
    assert rows["scan.h"] == kernel(scan) and rows["in_proj.weight"] == "packed codes"
    assert "quantized_scan" not in "".join(rows.values())


def test_a_table_of_values_is_rounded_by_torch(model: VisionMamba, images: Dataset) -> None:
    result = pipeline.quantize(model, get_recipe("qmamba-w4a4"), images, check=False)
    calls, table = counted(result.model), printed(result.model)
    assert table[kernel("fake_quantize")] == sum(n for (op, _), n in calls.items() if op == "fake_quantize")
    sites = [site for _, site in named_sites(result.model) if site.quantizer is not None and site.kind == "activation"]
    by_torch = [site for site in sites if getattr(site.quantizer, "table", None) is not None]
    assert table["torch"] >= len(by_torch)


@pytest.mark.parametrize(
    "match, expected",
    [("*.scan.h", "quantized_scan"), ("*.in_proj.in", "fake_quantize"), ("*.scan.delta", "fake_quantize")],
)
def test_a_partly_quantized_network(
    model: VisionMamba, images: Dataset, tmp_path: Path, match: str, expected: str
) -> None:
    granularity = {"granularity": "step"} if match.endswith(".h") else {}
    scope = {"sites": [{"match": match, "bits": 8, **granularity}]}
    text = {"name": "part", "title": "", "default_scope": "s", "scopes": {"s": scope}}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(text))
    result = pipeline.quantize(model, get_recipe(tmp_path / "part.yaml"), images, check=False)
    model = undeploy(result.model)
    calls = counted(model)
    quantized = sum(site.quantizer is not None for _, site in named_sites(model))
    assert quantized > 0 and printed(model) == {kernel(expected): quantized}
    assert sum(n for (op, _), n in calls.items() if op == expected) == quantized


def test_another_kernel_is_named(model: VisionMamba, images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pipeline.quantize(model, get_recipe("minmax-w8a8"), images, check=False)
    monkeypatch.setenv("VISQ_OPS", "naive")
    names = {row["kernel"] for row in coverage(result.model, result.model.recipe)}
    assert names == {"", "packed codes", "torch", "naive (fake_quantize)", "naive (fixed_scan)"} & names
    assert "naive (fake_quantize)" in names


def test_recorders_inside_each_other_each_count() -> None:
    x = torch.zeros(1, 2, 3)
    with backends.recorded() as outer:
        for _ in range(2):
            with backends.recorded() as inner:
                ops.fake_quantize(x, torch.ones(1), None, None, -1, 1, "tensor")
            assert sum(inner.values()) == 1
        with backends.recorded() as idle:
            pass
    assert sum(outer.values()) == 2 and not idle
    ops.fake_quantize(x, torch.ones(1), None, None, -1, 1, "tensor")
    assert sum(outer.values()) == 2
