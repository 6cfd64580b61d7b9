"""Checks a quantized network against FP32, on calibration images and on held-out ones."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visq.artifact import Agreement, Check, save
from visq.data import Dataset
from visq.data.dataset import mixed
from visq.errors import VisqError
from visq.models.family import family_of, image_classes
from visq.native.extension import available
from visq.pipeline.outputs import MOST_IMAGES, fp32_outputs, outputs
from visq.pipeline.verdict import verdict
from visq.pipeline.worst_sites import worst_sites
from visq.progress import Progress
from visq.quant.site_error import decibels
from visq.runtime import load_engine

#: Images, drawn, on which every site's error is measured. Scans run step by step for it, which is slow.
SITE_IMAGES = 4


@dataclass(frozen=True)
class Reference:
    """Holds images and FP32's outputs for them.

    Attributes:
        outputs: [n, ...] float32, of the first n images.
        per_pixel: the outputs are logits of positions, [n, classes, h, w].
    """

    images: Dataset
    outputs: Tensor
    per_pixel: bool = False


@dataclass(frozen=True)
class SelfCheck:
    """Holds a self-check and how it was made: the kernel that ran the network, and the wall time."""

    check: Check
    kernel: str
    seconds: float


def reference(model: Any, images: Dataset, *, batch_size: int, progress: Progress) -> Reference:
    """Returns the outputs of the FP32 network; raises VisqError where they are not finite."""
    keep = None if image_classes(model.config) is not None else MOST_IMAGES
    images = mixed(images, keep, seed=0)
    found = fp32_outputs(model, images, batch_size=batch_size, progress=progress, keep=keep)
    return Reference(images, found, family_of(model.config).per_pixel)


def self_check(
    model: Any, calibration: Reference, held_out: Reference | None, *, batch_size: int, progress: Progress
) -> SelfCheck:
    """Compares a quantized network with FP32. Ranks share the images.

    Arguments:
        model: the simulation, with `recipe` and `provenance`. Its artifact runs on the C++ engine where it can, which
            has the same bits.
    """
    start = time.perf_counter()
    references = [calibration] if held_out is None else [calibration, held_out]
    sample = next(mixed(references[-1].images, SITE_IMAGES, seed=0).batches(SITE_IMAGES))[0]
    sites, simulated = worst_sites(model, sample)
    found: list[Agreement] = []
    problem = None
    with tempfile.TemporaryDirectory(prefix="visq-check-") as folder:
        artifact = Path(folder) / "artifact"
        deployed = available() and save(model, artifact).program is not None
        try:
            kernel, network = on_engine(artifact) if deployed else ("simulation", model)
            found = [compared(network, one, batch_size, progress) for one in references]
            if not torch.equal(simulated.nan_to_num(), network(sample).nan_to_num()):
                problem = f"simulation and {kernel} give different outputs; please report this with recipe and network"
        except VisqError as error:
            kernel, problem = "engine", f"the engine refuses it: {error}"
            found = [Agreement(images=0, agree=None, sqnr_db=None) for _ in references]
    check = Check(
        verdict="broken" if problem else verdict(found),
        calibration=found[0],
        held_out=None if held_out is None else found[1],
        worst_sites=tuple(sites),
        problem=problem,
    )
    return SelfCheck(check, kernel, time.perf_counter() - start)


def on_engine(artifact: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Returns the kernel and the function of an artifact's engine: images [B, channels, H, W] -> outputs."""
    engine = load_engine(artifact, threads=torch.get_num_threads())
    return engine.kernel, lambda images: torch.from_numpy(engine(images.numpy()))


def compared(network: Callable[[Tensor], Tensor], exact: Reference, batch_size: int, progress: Progress) -> Agreement:
    """Runs a network on the images of a reference and compares."""
    found = outputs(
        network,
        exact.images,
        batch_size=batch_size,
        progress=progress,
        name="checking the result",
        keep=len(exact.outputs),
    )
    return agreement(found, exact.outputs, exact.per_pixel)


def agreement(found: Tensor, exact: Tensor, per_pixel: bool = False) -> Agreement:
    """Compares outputs with FP32's: logits [n, classes, ...], without what all classes share, or images.

    Arguments:
        per_pixel: maps are logits of positions, not images.
    """
    finite = torch.isfinite(found.flatten(1)).all(1)
    signal, noise = exact[finite].double(), (found[finite] - exact[finite]).double()
    counts: dict[str, Any] = {"images": len(exact), "non_finite": int((~finite).sum())}
    if exact.ndim == 2 or per_pixel:
        signal, noise = (x - x.mean(1, keepdim=True) for x in (signal, noise))
        counts["agree"] = int((found[finite].argmax(1) == exact[finite].argmax(1)).sum())
        if per_pixel:
            counts["positions"] = exact[:, 0].numel()
    else:
        counts["agree"] = None
        counts["psnr_db"] = _rounded(decibels(1.0, float(noise.square().mean())))
    sqnr_db = _rounded(decibels(float(signal.square().sum()), float(noise.square().sum())))
    return Agreement(**counts, sqnr_db=sqnr_db)


def _rounded(db: float | None) -> float | None:
    """Returns decibels to a hundredth, so that the last bits of float sums do not reach the artifact."""
    return None if db is None else round(db, 2)
