"""Runs a table: every row is calibrated and measured on the same images, and kept when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from visq.analysis import Subject, compare
from visq.device import CPU
from visq.progress import Progress
from visq.reproduce.schema import Table

Row = dict[str, Any]


def reproduce(
    table: Table,
    subject: Subject,
    *,
    samples: int,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    batch_size: int = 32,
    cache: Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> list[Row]:
    """Returns the rows of a table for one network, in the table's order and for each seed.

    Arguments:
        subject: the network, its calibration images and the images to measure on.
        samples, seeds, limit, batch_size, cache, on_row, device: as in `visq.analysis.compare`.
    Returns:
        rows of `compare` with `label`, the row's name, and `published`, its numbers by network.
    Raises:
        VisqError: as in `compare`; finished rows are in the cache.
    """
    rows = {table.recipe(row).name: row for row in table.rows}

    def labelled(found: Row) -> Row:
        row = rows[found["recipe"]]
        return {
            **found,
            "label": row.label,
            "published": {name: number.model_dump() for name, number in row.published.items()},
        }

    found = compare(
        [subject],
        [table.recipe(row) for row in table.rows],
        samples=samples,
        seeds=seeds,
        limit=limit,
        batch_size=batch_size,
        cache=cache,
        on_row=None if on_row is None else lambda row: on_row(labelled(row)),
        progress=progress,
        device=device,
    )
    return [labelled(row) for row in found if row["recipe"] in rows]
