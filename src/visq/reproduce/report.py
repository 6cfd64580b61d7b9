"""Writes a table with our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from visq.analysis.machine import machine, versions
from visq.reproduce.schema import Table

Row = dict[str, Any]


def published_name(row: Row, network: str) -> str:
    """Returns a row's published number for one network as text; empty where there is none."""
    number = row["published"].get(network)
    if number is None:
        return ""
    return f"{number['top1']:.1f}" if not number["note"] else f"{number['top1']:.2f} ({number['note']})"


def table_lines(table: Table, rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the header and the cells: a line for each row of the paper, several seeds as mean and deviation."""
    header = ("row", "W/A/H", *(f"{name}, published" for name in table.networks), "top-1 here", "drop here", "p")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["label"], []).append(row)
    return header, [_line(table, group) for group in groups.values()]


def _line(table: Table, group: Sequence[Row]) -> tuple[str, ...]:
    first, quantized = group[0], group[0]["recipe"] != "fp32"
    return (
        first["label"],
        "/".join(str(first[key]) for key in ("weight_bits", "activation_bits", "state_bits")),
        *(published_name(first, name) for name in table.networks),
        _spread([row["top1"] for row in group]),
        _spread([row["drop"] for row in group]) if quantized else "",
        f"{max(row['p_value'] for row in group):.3f}" if quantized else "",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def remarks(table: Table, model: Any, settings: dict[str, Any]) -> list[str]:
    """Returns the sentences below a table: what was measured, whether it is the paper's network, and its caveats.

    Arguments:
        settings: `samples`, `calib`, `data`, `n` (images measured on) and `device`.
    """
    card, found = model.card, table.network(model.config)
    official = (
        f"This is {found} of the table."
        if found
        else "This network is none of the table's: " + ("the published numbers stand beside it, they are not its own.")
    )
    fewer = "" if settings["samples"] == table.samples else f" (the paper: {table.samples})"
    return [
        f"Network {card.name}, checkpoint {(card.checkpoint_sha256 or 'random weights')[:12]}. {official}",
        f"Calibrated on {settings['samples']} images{fewer} of {settings['calib']}, measured on {settings['n']} of "
        f"{settings['data']}, on {settings['device']}. Top-1 in percent; p: McNemar's exact test against FP32.",
        *table.caveats,
    ]


def to_markdown(table: Table, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Returns the table in Markdown."""
    header, lines = table_lines(table, rows)
    cells = [header, tuple("---" for _ in header), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in cells)
    return f"# {table.title}\n\nSource: {table.source}.\n\n{text}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def to_json(table: Table, rows: Sequence[Row], notes: Sequence[str]) -> dict[str, Any]:
    """Returns the table for JSON: its name and source, the rows, the remarks, machine and versions."""
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "notes": list(notes),
        "rows": list(rows),
        "machine": machine(),
        "versions": versions(),
    }
