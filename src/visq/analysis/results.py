"""Makes the rows of results that the command line writes as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from visq.analysis.evaluate import Evaluation
from visq.analysis.machine import kernels, versions
from visq.device import described, device_of
from visq.quant.site import INNER, WEIGHT, named_sites
from visq.recipes import Recipe
from visq.recipes.catalog import FP32
from visq.runtime import engine_backends


def recipe_of(model: Any) -> Recipe:
    """Returns the recipe a model was quantized with; `fp32` when it was not."""
    recipe: Recipe = getattr(model, "recipe", FP32)
    return recipe


def fp32_bytes(model: nn.Module) -> int:
    """Returns the size of a model's parameters in float32 [bytes]."""
    return sum(4 * parameter.numel() for parameter in model.parameters())


def effective_bits(model: nn.Module) -> dict[str, int]:
    """Returns the recipe's bits for weights, activations and states; 32 where none of them is quantized."""
    bits = recipe_of(model).bits
    quantized = [(name, site) for name, site in named_sites(model) if site.quantizer is not None]
    states = [name for name, site in quantized if site.kind == INNER and name.endswith(".h")]
    weights = [name for name, site in quantized if site.kind == WEIGHT]
    return {
        "weight_bits": bits.weight if weights else 32,
        "activation_bits": bits.activation if len(quantized) > len(states) + len(weights) else 32,
        "state_bits": bits.state if states else 32,
    }


def evaluation_row(model: Any, evaluation: Evaluation, *, backend: str, size: int) -> dict[str, Any]:
    """Returns the object that `visq eval --json` writes.

    Arguments:
        backend: `fp32`, `sim`, or a backend of the engine (an `EngineModel`).
        size: bytes of the artifact, or of the FP32 parameters.
    """
    recipe, card = recipe_of(model), model.card
    calibration = getattr(getattr(model, "provenance", None), "calibration", None)
    return {
        "model": card.name,
        "checkpoint_sha256": card.checkpoint_sha256,
        "recipe": recipe.name,
        "scope": recipe.scope_name,
        **effective_bits(model),
        "backend": backend,
        "kernels": {"engine": model.engine.kernel} if backend in engine_backends() else kernels(device_of(model).type),
        "device": described(device_of(model)),
        "n": evaluation.n,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "bytes": size,
        "seconds": evaluation.seconds,
        "images_per_second": evaluation.images_per_second,
        "threads": torch.get_num_threads(),
        "seed": None if calibration is None else calibration.seed,
        "versions": versions(),
        "skipped": list(evaluation.skipped),
    }
