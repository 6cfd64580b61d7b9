"""Several networks beside each other: a table and the Pareto fronts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from visq.errors import VisqError
from visq.files import read_text

Row = dict[str, Any]

#: A drop that a reader may well accept [points].
MARGIN = 1.0

#: What the rows of `visq compare --json` must hold, and their types.
COMPARE_KEYS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "recipe": str,
    "scope": str,
    "weight_bits": int,
    "activation_bits": int,
    "state_bits": int,
    "backend": str,
    "n": int,
    "top1": (int, float),
    "drop": (int, float),
    "bytes": int,
    "p_value": (int, float),
    "sites_quantized": int,
    "sites_targeted": int,
}


def artifact_comparison(artifacts: Sequence[Row]) -> Row:
    """Returns the comparison of several artifacts: rows, and fronts against bytes and against milliseconds."""
    rows = []
    for number, artifact in enumerate(artifacts, 1):
        found, time, bits = artifact["decisions"] or {}, artifact["time"] or {}, artifact["recipe"]["bits"]
        rows.append(
            {
                "number": number,
                "name": artifact["name"],
                "model": artifact["model"],
                "recipe": artifact["recipe"]["name"],
                "scope": artifact["recipe"]["scope"],
                "bits": [bits["weight"], bits["activation"], bits["state"]],
                "fp32_top1": found.get("fp32_top1"),
                "top1": found.get("top1"),
                "drop": found.get("drop"),
                "p_value": found.get("p_value"),
                "agreement": found.get("agreement"),
                "bytes": artifact["bytes"],
                "ms": time.get("ms"),
                "sites_quantized": artifact["coverage"]["quantized"],
                "sites_targeted": artifact["coverage"]["targeted"],
            }
        )
    return {"source": None, "rows": rows, "pick": pick(rows), "fronts": fronts(rows), "machine": None, "versions": None}


def rows_comparison(path: Path) -> Row:
    """Returns the comparison that `visq compare --json` wrote; the seeds of a model and a recipe are averaged.

    Raises:
        VisqError: the file cannot be read or holds something else.
    """
    text = read(path)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in text["rows"]:
        groups.setdefault((row["model"], row["recipe"], row["scope"]), []).append(row)
    rows = [group_row(number, group) for number, group in enumerate(groups.values(), 1)]
    return {
        "source": path.name,
        "rows": rows,
        "pick": pick(rows),
        "fronts": fronts(rows),
        "machine": text.get("machine"),
        "versions": text.get("versions"),
    }


def pick(rows: Sequence[Row]) -> Row | None:
    """Returns the network to look at first: the smallest within `MARGIN` points of FP32, or else the one that loses
    least; None where no drop is known."""
    known = [row for row in rows if row["drop"] is not None]
    if not known:
        return None
    near = [row for row in known if row["drop"] <= MARGIN]
    best = min(near, key=lambda row: row["bytes"]) if near else min(known, key=lambda row: row["drop"])
    return {"number": best["number"], "within": bool(near), "margin": MARGIN}


def group_row(number: int, group: Sequence[Row]) -> Row:
    """Returns one line of the table from the rows of a model and a recipe."""
    first, top1 = group[0], [row["top1"] for row in group]
    quantized = first["recipe"] != "fp32"
    return {
        "number": number,
        "name": f"{first['model']} {first['recipe']}",
        "model": first["model"],
        "recipe": first["recipe"],
        "scope": first["scope"],
        "bits": [first[key] for key in ("weight_bits", "activation_bits", "state_bits")],
        "backend": first["backend"],
        "images": first["n"],
        "seeds": len(group),
        "fp32_top1": first.get("fp32_top1"),
        "top1": mean(top1),
        "top1_deviation": stdev(top1) if len(top1) > 1 else None,
        "drop": mean(row["drop"] for row in group) if quantized else None,
        "p_value": max(row["p_value"] for row in group) if quantized else None,
        "agreement": None,
        "bytes": first["bytes"],
        "ms": None,
        "sites_quantized": first["sites_quantized"] if quantized else None,
        "sites_targeted": first["sites_targeted"] if quantized else None,
    }


def read(path: Path) -> Row:
    """Returns a report of `visq compare --json`, every key checked that the page needs."""
    wrong = f"{path} is not a report of `visq compare --json`"
    try:
        values = json.loads(read_text(path), parse_constant=_refuse)
    except OSError as error:
        raise VisqError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise VisqError(f"{wrong}: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("rows"), list):
        raise VisqError(f"{wrong}: it has no list `rows`")
    if not values["rows"]:
        raise VisqError(f"{wrong}: `rows` is empty")
    for index, row in enumerate(values["rows"]):
        if not isinstance(row, dict):
            raise VisqError(f"{wrong}: rows[{index}] is not an object")
        for key, kind in COMPARE_KEYS.items():
            if not isinstance(row.get(key), kind) or isinstance(row.get(key), bool):
                raise VisqError(f"{wrong}: rows[{index}].{key} is missing or of another type")
    for key in ("machine", "versions"):
        if not isinstance(values.get(key, {}), dict):
            raise VisqError(f"{wrong}: {key} is not an object")
    return values


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def fronts(rows: Sequence[Row]) -> list[Row]:
    """Returns the Pareto fronts that the rows allow: accuracy, or else agreement, against bytes and against ms."""
    gain = next((key for key in ("top1", "agreement") if all(row[key] is not None for row in rows)), None)
    found = []
    for cost in ("bytes", "ms"):
        if gain is not None and all(row[cost] is not None for row in rows):
            best = front([(row[cost], row[gain]) for row in rows])
            points = [
                {"number": row["number"], "cost": row[cost], "gain": row[gain], "best": index in best}
                for index, row in enumerate(rows)
            ]
            found.append({"cost": cost, "gain": gain, "points": points})
    return found


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Returns the indices of the points (cost, gain) that no other point beats: none is as good in both and better in
    one."""

    def beaten(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)

    return {index for index, point in enumerate(points) if not beaten(*point)}
