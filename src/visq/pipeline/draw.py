"""Draws calibration images and held-out ones from one source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from visq.data import Dataset, Preprocess, as_dataset

#: So many images are read for one held-out image, until one differs from every calibration image.
TRIES = 4


def draw(source: Dataset, samples: int, held_out: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Returns (calibration images, held-out images), both in the order of the source.

    Arguments:
        samples: calibration images; the same ones as `source.subset(samples, seed)`.
        held_out: at most so many others, whose bytes differ from those of every calibration image; None are returned
            where the source has none left.
    Raises:
        VisqError: the source has fewer than `samples` images.
    """
    indices = source.drawn(samples, seed)
    calibration = source.select(indices)
    rest = np.setdiff1d(np.arange(len(source)), indices)
    seen = {source.content(index) for index in indices} if held_out and len(rest) else set()
    chosen: list[int] = []
    for index in np.random.default_rng([seed, 1]).permutation(rest).tolist()[: TRIES * held_out]:
        if len(chosen) < held_out and source.content(index) not in seen:
            chosen.append(index)
    return calibration, source.select(sorted(chosen)) if chosen else None


def drawn_from(
    given: Any, preprocess: Preprocess, samples: int, held_out: int | Dataset, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Returns (calibration images, held-out images) of whatever `visq.data.as_dataset` takes.

    A Dataset is taken whole and has no held-out images but those that are given.
    """
    count = held_out if isinstance(held_out, int) else 0
    others = None if isinstance(held_out, int) else held_out
    if isinstance(given, Dataset):
        return given, others
    if isinstance(given, str | Path):
        calibration, rest = draw(as_dataset(given, preprocess, split="calib"), samples, count, seed)
        return calibration, others or rest
    source = as_dataset(given, preprocess, split="calib", samples=samples + count)
    if count and len(source) > samples:
        return source.select(range(samples)), source.select(range(samples, len(source)))
    return source, others
