"""Writes rows of a comparison as JSON and as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from visq.analysis.machine import machine, versions

Row = dict[str, Any]

HEADER = ("model", "recipe", "scope", "W/A/H", "top-1", "drop", "p", "MB", "sites", "calibration s", "peak MB")


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns `{"rows": [...], "machine": {...}, "versions": {...}}`."""
    return {"rows": list(rows), "machine": machine(), "versions": versions()}


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns a table's cells, a line for each model and recipe; several seeds become mean and standard deviation."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["recipe"]), []).append(row)
    return [_line(group) for group in groups.values()]


def to_markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown, with a line on how to read it."""
    lines = [HEADER, tuple("---" for _ in HEADER), *table(rows)]
    counts = sorted({row["n"] for row in rows})
    note = (
        f"Top-1 in percent on {', '.join(map(str, counts))} images; drop against FP32 on the same images; p: McNemar's "
        "exact test, the largest over seeds; 32 bits: not quantized."
    )
    if any(row["backend"] == "int" for row in rows):
        note += " Quantized rows are measured on the integer engine."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n"


def _line(group: Sequence[Row]) -> tuple[str, ...]:
    first = group[0]
    quantized = first["recipe"] != "fp32"
    bits = "/".join(str(first[key]) for key in ("weight_bits", "activation_bits", "state_bits"))
    return (
        first["model"],
        first["recipe"],
        first["scope"],
        bits,
        _spread([row["top1"] for row in group]),
        _spread([row["drop"] for row in group]) if quantized else "",
        _p_value(max(row["p_value"] for row in group)) if quantized else "",
        f"{first['bytes'] / 1e6:.2f}",
        f"{first['sites_quantized']}/{first['sites_targeted']}" if quantized else "",
        f"{mean(row['calibration_seconds'] for row in group):.1f}" if quantized else "",
        f"{max(row['peak_rss_bytes'] for row in group) / 1e6:.0f}",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
