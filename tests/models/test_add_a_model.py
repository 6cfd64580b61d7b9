"""Runs the code blocks of docs/add-a-model.md, and checks what stays in floating point."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.conftest import environment
from visq.analysis.left_out import left_out
from visq.errors import VisqError
from visq.models import create_model
from visq.models.directions import split_directions, stack_directions
from visq.native.extension import available
from visq.recipes import get_recipe
from visq.recipes.roles import matches

PAGE = Path(__file__).parents[2] / "docs/add-a-model.md"


@pytest.mark.skipif(not available(), reason="the page runs the C++ engine")
def test_the_page_runs(tmp_path: Path) -> None:
    """A process of its own, because its networks would be registered in this one."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    assert len(blocks) == 7
    (tmp_path / "page.py").write_text("\n\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "page.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "stem.weight (1): scope linear leaves it; take minmax-w8a8" in done.stdout.splitlines()
    assert (tmp_path / "leaf-w8a8/config.json").is_file() and (tmp_path / "sprout-w8a8/config.json").is_file()


def test_directions_come_back() -> None:
    stacked = {
        "op.x_proj_weight": torch.rand(4, 7, 6),
        "op.dt_projs_weight": torch.rand(4, 6, 3),
        "op.dt_projs_bias": torch.rand(4, 6),
        "op.A_logs": torch.rand(24, 2),
        "op.Ds": torch.rand(24),
        "A_logs": torch.rand(8, 2),
        "head.weight": torch.rand(2, 2),
    }
    split = split_directions(stacked)
    assert torch.equal(split["op.directions.2.A_log"], stacked["op.A_logs"][12:18])
    assert torch.equal(split["directions.3.A_log"], stacked["A_logs"][6:])
    back = stack_directions(split)
    assert back.keys() == stacked.keys() and all(torch.equal(back[name], stacked[name]) for name in stacked)
    for shape in ((3, 7, 6), (0, 7, 6), ()):
        with pytest.raises(VisqError, match=r"op\.x_proj_weight .* does not hold the 4 directions"):
            split_directions({"op.x_proj_weight": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*.head.in", "head.in", True),
        ("*.head.in", "a.head.in", True),
        ("*.head.in", "ahead.in", False),
        ("head.in", "a.head.in", False),
        ("*.conv?d*.weight", "conv2d.weight", True),
        ("*", "head.in", True),
    ],
)
def test_patterns_match_modules_at_the_top(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) == expected


def test_what_stays_is_said_with_the_reason_and_the_change() -> None:
    model = create_model("dvmsr", embed_dim=8, depths=[1, 1], d_state=2)
    assert left_out(model, get_recipe("minmax-w8a8")) == []
    said = [str(weights) for weights in left_out(model, get_recipe("minmax-w8a8-linear"))]
    assert "conv1d.weight (2): scope linear leaves it; take minmax-w8a8" in said
    model.extra = nn.Linear(3, 3)
    model.mixed = create_model("dvmsr", embed_dim=8, depths=[1]).conv_first  # a convolution under another name
    said = [str(weights) for weights in left_out(model, get_recipe("minmax-w8a8"))]
    assert said == [
        'mixed.weight (1): no role of the recipe names it; add roles={"ends": ("?*.mixed",)} to its family, or a rule '
        "to the recipe",
        "extra.weight (1): Linear of PyTorch has no sites; take visq.models.layers.Linear",
    ]
