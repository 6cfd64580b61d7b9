"""Finds where a quantized model loses: at which sites, in which stages, and along which recurrences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visq.analysis.recurrence import RecurrenceError
from visq.analysis.site_stats import SiteStats, ladder_row, weight_histogram
from visq.data import Dataset
from visq.data.dataset import mixed
from visq.device import device_of, reproducible
from visq.errors import VisqError
from visq.models.layers import SelectiveScan
from visq.models.stage import alike
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import ACTIVATION, WEIGHT, named_sites, site_parameter
from visq.quant.site_error import decibels
from visq.simulation.scan_trace import Trace, trace


@torch.no_grad()
def diagnose(
    model: Any,
    dataset: Dataset,
    *,
    fp32: Any = None,
    images: int = 32,
    batch_size: int = 4,
    any_fp32: bool = False,
) -> dict[str, Any]:
    """Streams a few images through a quantized model and, where given, through its FP32 original.

    Arguments:
        model: simulation of a quantized model.
        fp32: the network it was made of, on the same device; without it there are no errors against FP32.
        images: at most so many, drawn from all and always the same ones.
        any_fp32: accept an FP32 network of other weights than the artifact was made of.
    Returns:
        images: how many were seen.
        sites: for each quantizer, on the tensors of the quantized network itself: `sqnr_db`, `clipped` (share of the
            values), `range_used` (share of the span of codes), `nonfinite` (share of the values that are NaN or
            infinite before or after rounding), `histogram` of the finite values before and after rounding. A weight's
            SQNR is against FP32; it is None when a transform has rewritten the weights. Of a decay ladder the tensor is
            A, and its codes have no bits.
        stages: `sqnr_db` of each stage's output against FP32.
        scans: errors of h and y at each step against FP32, see `RecurrenceError.row`.
        A number that is NaN or infinite is None, because JSON has neither.
    Raises:
        VisqError: nothing in the model is quantized, or fp32 is another network or has other weights.
    """
    stats = {
        name: SiteStats(site.quantizer)
        for name, site in named_sites(model)
        if isinstance(site.quantizer, (Quantizer, StateQuantizer)) and site.kind != WEIGHT
    }
    if not any(site.quantizer is not None for _, site in named_sites(model)):
        raise VisqError("nothing in this model is quantized, so there is nothing to diagnose; pass an artifact")
    if fp32 is not None and [name for name, _ in named_sites(fp32)] != [name for name, _ in named_sites(model)]:
        raise VisqError("the FP32 model is not the network the artifact was made of: their sites differ")
    if fp32 is not None and not any_fp32:
        check_origin(model, fp32)
    model.eval()
    device = device_of(model)
    errors: dict[str, RecurrenceError] = {}
    stages: dict[str, list[float]] = {}
    seen = 0
    with reproducible(device, batch_size):
        for batch, _ in mixed(dataset, images, seed=0).batches(batch_size):
            batch = batch[: images - seen].to(device)
            exact, exact_outputs = ({}, []) if fp32 is None else passes(fp32.eval(), batch, {})
            found, outputs = passes(model, batch, stats)
            for name, here in found.items():
                for site, tensor in (("abar", here.abar), ("bbar", here.bbar), ("h", here.h)):
                    if f"{name}.{site}" in stats:
                        stats[f"{name}.{site}"].observe(tensor)
                if name in exact:
                    errors.setdefault(name, RecurrenceError()).observe(here, exact[name])
            for stage, here_out, exact_out in zip(model.stages(), outputs, exact_outputs, strict=False):
                sums = stages.setdefault(stage.name, [0.0, 0.0])
                sums[0] += float(exact_out.square().sum(dtype=torch.double))
                sums[1] += float((here_out - exact_out).square().sum(dtype=torch.double))
            seen += len(batch)
            if seen >= images:
                break
    scans = {name: model.get_submodule(name).site_h.quantizer for name in errors}
    report = {
        "images": seen,
        "sites": [{"name": name, **row} for name, row in site_rows(model, fp32, stats)],
        "stages": [{"name": name, "sqnr_db": decibels(*sums)} for name, sums in stages.items()],
        "scans": [{"name": name, **error.row(scans[name])} for name, error in errors.items()],
    }
    return {key: without_nonfinite(value) for key, value in report.items()}


def check_origin(model: Any, fp32: Any) -> None:
    """Raises VisqError when a network has another checkpoint than the one a quantized model was made of."""
    made_of, given = getattr(model, "card", None), getattr(fp32, "card", None)
    hashes = [getattr(card, "checkpoint_sha256", None) for card in (made_of, given)]
    if made_of is None or given is None or hashes[0] is None or hashes[0] == hashes[1]:
        return
    was, now = (f"the checkpoint {sha[:12]}..." if sha else "random weights" for sha in hashes)
    raise VisqError(
        f"the artifact was made of {made_of.name} with {was}, the FP32 model is {given.name} with {now}; give the "
        "checkpoint it was made of, or say --any-fp32 (any_fp32=True) to compare the two all the same"
    )


def without_nonfinite(value: Any) -> Any:
    """Returns a report's part with None in the place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def passes(model: Any, images: Tensor, stats: dict[str, SiteStats]) -> tuple[dict[str, Trace], list[Tensor]]:
    """One forward pass: every scan from inside, and every stage's output (the sum of its tensors: branch plus
    residual). The activation sites among `stats` observe what they receive."""
    traces: dict[str, Trace] = {}

    def watch_site(name: str) -> Callable[..., None]:
        def hook(site: nn.Module, args: tuple[Tensor, ...]) -> None:
            stats[name].observe(args[0])

        return hook

    def watch_scan(name: str) -> Callable[..., None]:
        def hook(scan: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(scan, SelectiveScan)
            traces[name] = trace(scan, *args)

        return hook

    scans = [(name, module) for name, module in model.named_modules() if isinstance(module, SelectiveScan)]
    sites = [(name, site) for name, site in named_sites(model) if site.kind == ACTIVATION and name in stats]
    hooks = [(site, watch_site(name)) for name, site in sites] + [(scan, watch_scan(name)) for name, scan in scans]
    outputs = []
    with attached(hooks):
        state: tuple[Tensor, ...] = (images,)
        for stage in model.stages():
            state = stage.forward(*state)
            outputs.append(torch.stack(alike(state)).sum(0))
    return traces, outputs


@contextmanager
def attached(hooks: list[Any]) -> Iterator[None]:
    """Attaches forward pre-hooks, given as (module, hook) pairs, inside a `with` block."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def site_rows(model: Any, fp32: Any, stats: dict[str, SiteStats]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, row) of all quantized sites in module order."""
    recipe = getattr(model, "recipe", None)
    rewritten = fp32 is None or recipe is None or bool(recipe.scope.transforms)
    for name, site in named_sites(model):
        if name in stats and stats[name].count:
            yield name, {"kind": site.kind, **stats[name].row()}
        elif site.kind == WEIGHT and isinstance(site.quantizer, Quantizer | LadderQuantizer):
            weight = site_parameter(model, name, site).detach()
            ladder = isinstance(site.quantizer, LadderQuantizer)
            if isinstance(site.quantizer, LadderQuantizer):
                weight = -weight.exp()
                row = ladder_row(weight)
            else:
                seen = SiteStats(site.quantizer)
                seen.observe(weight)
                row = seen.row()
            row |= {"kind": site.kind, "clipped": None, "sqnr_db": None}
            if not rewritten:
                original = site_parameter(fp32, name, site).detach()
                original = -original.exp() if ladder else original
                error = float((weight - original).square().sum(dtype=torch.double))
                row["sqnr_db"] = decibels(float(original.square().sum(dtype=torch.double)), error)
                row["histogram"] = weight_histogram(original, weight)
            yield name, row
