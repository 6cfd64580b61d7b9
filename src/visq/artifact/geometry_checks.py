"""Checks a geometry against the program, without torch.

A program shows some fields of the geometry, and each family has its own way to read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from visq.artifact.schema import ArtifactConfig
from visq.errors import need
from visq.integer.operations import Attention, Linear, Operation, Patches, Scan, Turn
from visq.integer.program import Program


def check_geometry(config: ArtifactConfig) -> None:
    """Checks that a geometry holds plain sizes and, for a known family, that it fits the program.

    Raises:
        VisqError: a field is wrong; the message names it.
    """
    geometry = config.architecture.geometry
    for key, value in geometry.items():
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if not isinstance(n, str)]
        plain = all(math.isfinite(n) and n >= 0 for n in numbers)
        need(plain, f"architecture.geometry.{key} is {value}, which no weights in the file can belong to")
        if isinstance(value, float) and not value.is_integer():
            need(value < 1, f"architecture.geometry.{key} is {value}, neither a size nor a rate")
    rate = geometry.get("drop_path", 0.0)
    need(isinstance(rate, int | float) and rate < 1, f"architecture.geometry.drop_path is {rate!r}, no rate in [0, 1)")
    shown = FAMILIES.get(config.architecture.family)
    if config.program is None or shown is None:
        return
    for key, expected in shown(_Shown(config, config.program)).items():
        need(key in geometry, f"architecture.geometry: missing or unknown {key}")
        found = geometry[key]
        need(found == expected, f"architecture.geometry.{key} is {found}, the program's is {expected}")


class _Shown:
    """Looks up operations of a program by the end of their names."""

    def __init__(self, config: ArtifactConfig, program: Program) -> None:
        self.config, self.program = config, program
        self.operations = {operation.name: operation for operation in program.operations}

    def operation(self, end: str) -> Operation | None:
        """Returns the first operation whose name ends with `end`, or None."""
        return next((found for name, found in self.operations.items() if name.endswith(end)), None)

    def width(self, end: str) -> int:
        """Returns the width of the first operation whose name ends with `end`, or 0."""
        found = self.operation(end)
        return 0 if found is None else found.width

    def input_width(self, end: str) -> int:
        """Returns the number of channels that the first operation ending with `end` reads; 0 unless it is a linear."""
        found = self.operation(end)
        return self.program.tensors[found.source.input].width if found and isinstance(found.source, Linear) else 0

    def states(self) -> int:
        """Returns the number of states of the first scan; 0 without a scan."""
        scans = [op.source for op in self.program.operations if isinstance(op.source, Scan)]
        return self.program.tensors[scans[0].B].width if scans else 0

    def count(self, pattern: str) -> Mapping[str, int]:
        """Counts, for each first group of a pattern over names, its different second groups."""
        matches = [match for name in self.operations if (match := re.match(pattern, name))]
        found: dict[str, set[str]] = {}
        for match in matches:
            found.setdefault(match[1], set()).add(match[2])
        return {key: len(values) for key, values in found.items()}

    def kernel(self, weight: str) -> int:
        """Returns the size of a weight's last axis."""
        site, tensor = self.config.sites.get(weight), self.config.tensors.get(weight)
        shape = site.codes.shape if site is not None and site.codes is not None else tensor[1] if tensor else (0,)
        return shape[-1]


def _vim(shown: _Shown) -> dict[str, Any]:
    sources = [operation.source for operation in shown.program.operations]
    patches = [source for source in sources if isinstance(source, Patches) and source.input is None]
    dim = shown.width("patch_embed.proj")
    return {
        "patch_size": patches[0].patch if patches else 0,
        "stride": patches[0].stride if patches else 0,
        "embed_dim": dim,
        "depth": shown.count(r"(layers)\.(\d+)\.").get("layers", 0),
        "d_state": shown.states(),
        "expand": shown.width("mixer.scan") // max(dim, 1),
        "d_conv": shown.kernel("layers.0.mixer.conv1d.weight"),
    }


def _vmamba(shown: _Shown) -> dict[str, Any]:
    dim = shown.input_width("op.in_proj")
    expand = shown.width("scan") // max(dim, 1)
    return {
        "embed_dim": dim,
        "depths": tuple(shown.count(r"layers\.(\d+)\.blocks\.(\d+)\.").values()),
        "d_state": shown.states(),
        "expand": expand,
        "mlp_ratio": shown.width("mlp.fc1") // max(dim, 1),
        "forward_type": "v0" if shown.width("op.in_proj") == 2 * expand * dim else "v05_noz",
    }


def _mambavision(shown: _Shown) -> dict[str, Any]:
    dim = shown.input_width("mixer.in_proj")
    heads = {
        name.split(".")[1]: operation.source.heads
        for name, operation in shown.operations.items()
        if isinstance(operation.source, Attention)
    }
    depths = tuple(shown.count(r"levels\.(\d+)\.blocks\.(\d+)\.").values())
    # A level of one block has no attention, which then tells no heads.
    told = {"num_heads": tuple(heads.values())} if len(heads) == len(depths) - 2 else {}
    return {
        **told,
        "stem_dim": shown.width("conv_down.0"),
        "embed_dim": shown.width("conv_down.3"),
        "depths": depths,
        "d_state": shown.states(),
        "d_conv": shown.kernel("levels.2.blocks.0.mixer.conv1d_x.weight"),
        "expand": shown.width("mixer.in_proj") // max(dim, 1),
        "mlp_ratio": shown.width("mlp.fc1") // max(dim, 1),
    }


def _efficientvmamba(shown: _Shown) -> dict[str, Any]:
    depths = tuple(shown.count(r"layers\.(\d+)\.blocks\.(\d+)\.").values())
    first = [shown.input_width(f"layers.{level}.blocks.0.op.in_proj") for level in range(2)]
    later = [shown.width(f"layers.{level}.blocks.0.conv_pw2.0") for level in range(2, len(depths))]
    dim = max(first[0], 1)
    return {
        "dims": tuple(first + later),
        "depths": depths,
        "d_state": shown.states(),
        "expand": shown.width("scan") // dim,
        "mlp_ratio": shown.width("mlp.fc1") // dim,
        "hidden_ratio": shown.width("layers.2.blocks.0.conv_pw.0") // max(later[0] if later else 1, 1),
    }


def _localvim(shown: _Shown) -> dict[str, Any]:
    dim = shown.width("patch_embed.proj")
    turns = any(isinstance(step, Turn) for operation in shown.program.operations for step in operation.body)
    return {
        "embed_dim": dim,
        "depth": shown.count(r"(layers)\.(\d+)\.").get("layers", 0),
        "d_state": shown.states(),
        "expand": shown.width("directions.0.scan") // max(dim, 1),
        "d_conv": shown.kernel("layers.0.mixer.directions.0.conv1d.weight"),
        "reduced": shown.width("attn.global_reduce"),
        **({"variant": "rope"} if turns else {}),
    }


def _localvmamba(shown: _Shown) -> dict[str, Any]:
    dim = shown.input_width("op.in_proj")
    inner = shown.width("directions.0.scan")
    return {
        "embed_dim": dim,
        "depths": tuple(shown.count(r"layers\.(\d+)\.blocks\.(\d+)\.").values()),
        "d_state": shown.states(),
        "expand": inner // max(dim, 1),
    }


#: Reads the fields of a geometry from a program, by family.
FAMILIES: dict[str, Callable[[_Shown], dict[str, Any]]] = {
    "vim": _vim,
    "vim_seg": _vim,
    "vmamba": _vmamba,
    "mambavision": _mambavision,
    "efficientvmamba": _efficientvmamba,
    "localvim": _localvim,
    "localvmamba": _localvmamba,
}
