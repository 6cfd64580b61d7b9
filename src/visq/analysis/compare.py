"""Calibrates and evaluates every model with every recipe and seed on the same images; a killed run goes on."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visq._version import __version__
from visq.analysis.coverage import totals
from visq.analysis.engine import EngineModel
from visq.analysis.evaluate import Evaluation, check_labels, evaluate, limited
from visq.analysis.results import evaluation_row, fp32_bytes
from visq.analysis.significance import mcnemar
from visq.artifact import artifact_bytes, save
from visq.artifact.schema import canonical
from visq.data import Dataset
from visq.device import CPU, described
from visq.errors import VisqError
from visq.memory import peak_rss, reset_peak_rss
from visq.pipeline.quantize import Quantized, quantize
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.recipes import Recipe
from visq.runtime import engine_backends
from visq.simulation import move

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model to compare recipes on, and the images it is calibrated and measured with."""

    model: Any
    calibration: Dataset
    data: Dataset


def compare(
    subjects: Sequence[Subject],
    recipes: Sequence[Recipe],
    *,
    samples: int = 256,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    batch_size: int = 32,
    calibration_batch_size: int = 16,
    backend: str = "sim",
    cache: Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> list[Row]:
    """Returns a row for each model in FP32, then one for each of its recipes and seeds.

    Arguments:
        samples: calibration images, drawn by the seed.
        limit: at most so many images are evaluated.
        backend: what quantized rows are measured on, `sim` or a backend of the engine, `int` or `cuda`.
        cache: a JSON-lines file of finished rows, valid while model, recipe, images, seed and version stay the same.
        device: where networks are calibrated and simulated; the engine runs on the CPU.
        on_row: called with each row when it is finished.
    Returns:
        evaluation rows (see `visq.analysis.results`) plus `fp32_top1, drop, calibration_seconds, peak_rss_bytes,
        sites_quantized, sites_targeted`, and against FP32 on the same images `lost, gained, p_value` (McNemar).
    Raises:
        VisqError: bad input of any kind; finished rows are in the cache.
    """
    if backend not in ("sim", *engine_backends()):
        there = f"sim, {' and '.join(engine_backends())}"
        raise VisqError(f"backend '{backend}' is unknown; quantized models run on {there}")
    for subject in subjects:  # wrong input is found before hours are spent
        check_labels(subject.model, subject.data)
        subject.calibration.subset(samples, seed=0)
        for recipe in recipes:
            recipe.resolve(name for name, _ in named_sites(subject.model))
    progress = progress or Progress("silent")
    finished = Cache(cache)
    rows: list[Row] = []
    for subject in subjects:
        data = limited(subject.data, limit)
        card = subject.model.card
        base: Row = {"model": card.name, "checkpoint": card.checkpoint_sha256, "data": data.fingerprint()}
        if device != CPU:  # the last bits of sums are others there
            base["device"] = described(device)
        move(subject.model, device)
        reference, row = _fp32(subject.model, data, base, finished, batch_size, progress)
        rows.append(row)
        if on_row is not None:
            on_row(row)
        for recipe, seed in ((recipe, seed) for recipe in recipes if recipe.name != "fp32" for seed in seeds):
            calibration = subject.calibration.subset(samples, seed)
            key = {**base, "recipe": recipe.digest(), "calibration": calibration.fingerprint(), "seed": seed}
            if backend != "sim":
                key["backend"] = backend
            cell = finished.get(key)
            if cell is None:
                progress.say(f"{card.name} {recipe.name} seed {seed}")
                network = copy.deepcopy(subject.model)
                result = quantize(
                    network,
                    recipe,
                    calibration,
                    seed=seed,
                    batch_size=calibration_batch_size,
                    check=False,
                    progress=progress,
                    device=device,
                )
                if backend == "sim":
                    move(result.model, device, bits=False)
                cell = _measured(result, data, backend, batch_size, progress)
                finished.put(key, cell)
            row = _against(cell, reference)
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


@dataclass(frozen=True)
class Cell:
    """A finished row before it is compared with FP32, and which images were right [n]."""

    row: Row
    correct: NDArray[np.bool_]


def _fp32(
    model: Any, data: Dataset, base: Row, finished: Cache, batch_size: int, progress: Progress
) -> tuple[Cell, Row]:
    cell = finished.get({**base, "recipe": "fp32"})
    if cell is None:
        reset_peak_rss()
        evaluation = evaluate(model, data, batch_size=batch_size, progress=progress, name=f"{model.card.name} fp32")
        row = evaluation_row(model, evaluation, backend="fp32", size=fp32_bytes(model))
        cell = _finished(row, evaluation, calibration_seconds=0.0, quantized=0, targeted=0)
        finished.put({**base, "recipe": "fp32"}, cell)
    return cell, _against(cell, cell)


def _measured(result: Quantized, data: Dataset, backend: str, batch_size: int, progress: Progress) -> Cell:
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "artifact"
        config = save(result.model, folder)
        model = result.model if backend == "sim" else EngineModel(folder, backend=backend)
        evaluation = evaluate(model, data, batch_size=batch_size, progress=progress, name=model.recipe.name)
        row = evaluation_row(model, evaluation, backend=backend, size=artifact_bytes(folder))
    quantized, targeted = totals(config.coverage)
    seconds = result.calibration.seconds
    return _finished(row, evaluation, calibration_seconds=seconds, quantized=quantized, targeted=targeted)


def _finished(row: Row, evaluation: Evaluation, *, calibration_seconds: float, quantized: int, targeted: int) -> Cell:
    measured = {
        "calibration_seconds": calibration_seconds,
        "peak_rss_bytes": peak_rss(),
        "sites_quantized": quantized,
        "sites_targeted": targeted,
    }
    return Cell({**row, **measured}, evaluation.correct)


def _against(cell: Cell, reference: Cell) -> Row:
    if len(cell.correct) != len(reference.correct):
        raise VisqError("the images changed between two rows; they cannot be compared")
    paired = mcnemar(reference.correct, cell.correct)
    fp32_top1 = reference.row["top1"]
    drop = fp32_top1 - cell.row["top1"]
    return {**cell.row, "fp32_top1": fp32_top1, "drop": drop, **vars(paired)}


class Cache:
    """Keeps finished cells in a JSON-lines file. A line that a kill cut short is ignored."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._cells: dict[str, Cell] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    bits = np.frombuffer(base64.b64decode(entry["correct"]), np.uint8)
                    correct = np.unpackbits(bits, count=entry["row"]["n"]).astype(bool)
                    self._cells[entry["key"]] = Cell(entry["row"], correct)
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: Row) -> Cell | None:
        return self._cells.get(self._name(key))

    def put(self, key: Row, cell: Cell) -> None:
        self._cells[self._name(key)] = cell
        if self.path is None:
            return
        correct = base64.b64encode(np.packbits(cell.correct).tobytes()).decode()
        line = json.dumps({"key": self._name(key), "row": cell.row, "correct": correct})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise VisqError(f"cannot write {self.path}: {error.strerror or error}") from error

    @staticmethod
    def _name(key: Row) -> str:
        return hashlib.sha256(canonical({**key, "version": __version__})).hexdigest()
