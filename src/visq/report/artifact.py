"""What an artifact says of itself, without any image."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import yaml
from torch import Tensor

from visq.analysis import coverage, fp32_bytes
from visq.artifact import artifact_bytes
from visq.models.family import family_of
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import named_sites
from visq.runtime import Engine

Row = dict[str, Any]


def description(name: str, folder: Path, model: Any, engine: Engine | None) -> Row:
    """Returns the part of the report that needs the artifact alone.

    Arguments:
        name: what the page calls the artifact.
        model: the loaded simulation.
        engine: the artifact's engine; None where it has no program.
    """
    config = model.artifact
    recipe, size, exact = config.recipe, artifact_bytes(folder), fp32_bytes(model)
    return {
        "name": name,
        "model": config.provenance.model,
        "recipe": {
            "name": recipe.name,
            "title": recipe.title,
            "source": recipe.source,
            "scope": recipe.scope_name,
            "bits": recipe.bits.model_dump(mode="json"),
            "yaml": yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=100),
        },
        "bytes": size,
        "fp32_bytes": exact,
        "times_smaller": exact / size,
        "parameters": exact // 4,
        "check": self_check(config),
        "coverage": coverage_section(model),
        "engine": engine_section(config, engine),
        "scales": scale_rows(model),
        "provenance": provenance(config),
    }


def self_check(config: Any) -> Row | None:
    """Returns the self-check that `visq quantize` stored; None where the artifact holds none."""
    check = getattr(config, "check", None)
    return None if check is None else check.model_dump(mode="json")


def coverage_section(model: Any) -> Row:
    """Returns the coverage table: kinds the recipe targets, kinds it leaves in floating point, and the sums."""
    keys = ("kind", "sites", "targeted", "quantized", "bits", "granularity")
    rows = [{key: row[key] for key in keys} for row in coverage(model, model.recipe)]
    return {
        "kinds": [row for row in rows if row["targeted"]],
        "floating": [{"kind": row["kind"], "sites": row["sites"]} for row in rows if not row["targeted"]],
        "quantized": sum(row["quantized"] for row in rows),
        "targeted": sum(row["targeted"] for row in rows),
        "sites": sum(row["sites"] for row in rows),
    }


def engine_section(config: Any, engine: Engine | None) -> Row:
    """Returns how many operations the engine runs and why some are in float32."""
    if engine is None:
        return {"operations": None, "no_program": config.no_program or "an older visq wrote it", "in_float": []}
    reasons: dict[str, list[str]] = {}
    for operation, why in engine.in_float.items():
        reasons.setdefault(why, []).append(operation)
    rows = [
        {"why": why, "operations": len(names), "examples": sorted(names)[:2]} for why, names in sorted(reasons.items())
    ]
    return {"operations": len(engine.program.operations), "no_program": None, "in_float": rows}


def scale_rows(model: Any) -> list[Row]:
    """Returns the steps between two codes by kind of site: how many, the smallest, the middle and the largest."""
    kind_of = family_of(model.config).kind_of
    found: dict[str, list[float]] = {}
    for name, site in named_sites(model):
        if isinstance(site.quantizer, Quantizer | StateQuantizer):
            found.setdefault(kind_of(name), []).extend(steps(site.quantizer).tolist())
    return [
        {"kind": kind, "scales": len(values), "smallest": min(values), "median": median(values), "largest": max(values)}
        for kind, values in found.items()
    ]


def steps(quantizer: Quantizer | StateQuantizer) -> Tensor:
    """Returns the steps of a quantizer, flat: one a channel, token or row.

    A step of tokens or of a weight's rows is the one before smoothing. The hidden state has one a time step, at its
    largest channel and state.
    """
    if isinstance(quantizer, StateQuantizer):
        return (quantizer.step * quantizer.channel.max() * quantizer.state.max()).flatten()
    scale, smooth = quantizer.scale, quantizer.smooth
    if smooth is None or quantizer.axis not in (None, -1):
        return scale.flatten()
    return ((scale if quantizer.group is None else scale[quantizer.group]) * smooth).flatten()


def provenance(config: Any) -> Row:
    """Returns where the artifact comes from, as it is printed."""
    calibration = config.provenance.calibration
    return {
        "checkpoint_sha256": config.provenance.checkpoint_sha256,
        "calibration": None if calibration is None else calibration.model_dump(mode="json"),
        "visq_version": config.visq_version,
        "schema_version": config.schema_version,
        "self_hash": config.self_hash,
        "tensor_sha256": config.tensor_file.sha256,
        "family": config.architecture.family,
        "geometry": dict(config.architecture.geometry),
        "preprocess": dict(config.preprocess),
        "classes": None if config.classes is None else len(config.classes),
    }
