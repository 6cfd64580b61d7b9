"""The parts of `visq eval` for networks that return images, or a class for each pixel."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import typer

from visq.cli.output import Output, megabytes
from visq.errors import VisqError


def check_data(data: str | None, hr: Path | None, lr: Path | None, masks: Path | None) -> None:
    """Refuses anything but one of a data set, a pair of folders, and masks.

    Raises:
        VisqError: two of them, or half a pair.
        typer.BadParameter: none of them.
    """
    if (hr is None) != (lr is None):
        raise VisqError("--hr and --lr belong together: a folder of images, and one of the same images made small")
    given = (data is not None) + (hr is not None) + (masks is not None)
    ways = (
        "give --data with labelled images for top-1, or --hr and --lr with pairs of images for PSNR, or --masks with a "
        "class for each pixel for mean IoU"
    )
    if given > 1:
        raise VisqError(ways)
    if given == 0:
        raise typer.BadParameter(ways, param_hint="'--data'")


def evaluate_classes_of_pixels(
    output: Output,
    model: Any,
    backend: str,
    size: int,
    masks: Path,
    ignore: int | None,
    limit: int | None,
    picture: Path | None,
) -> None:
    """Prints and emits the intersection over union of every class, and their mean; draws some images."""
    from visq.analysis.mask_picture import MaskPicture
    from visq.analysis.segmentation import evaluate_masks
    from visq.data.masks import open_masks, subset

    start = time.perf_counter()
    pairs = subset(open_masks(masks), limit)
    drawing = MaskPicture(len(pairs))
    show = None if picture is None else drawing.add
    found = evaluate_masks(model, pairs, ignore=ignore, progress=output.progress, show=show)
    seconds = time.perf_counter() - start
    names = model.card.classes or [str(index) for index in range(len(found.iou))]
    shares = found.matrix.sum(1) / found.matrix.sum()
    if picture is not None:
        drawing.write(list(names), picture)
    lines = [
        (name, "-" if iou is None else f"{100 * iou:.2f} %", f"{100 * share:.2f} %")
        for name, iou, share in zip(names, found.iou, shares, strict=True)
    ]
    output.table(("class", "IoU", "of the pixels"), lines)
    recipe = "fp32" if backend == "fp32" else model.recipe.name
    output.say(
        f"{model.card.name} {recipe} ({backend}): mean IoU {100 * found.mean_iou:.2f} %, "
        f"{100 * found.accuracy:.2f} % of the pixels right; one confusion matrix over all images"
    )
    output.say(f"{found.images} images of {masks} in {seconds:.1f} s; {megabytes(size)}")
    output.emit(
        {
            "model": model.card.name,
            "recipe": recipe,
            "backend": backend,
            "mean_iou": found.mean_iou,
            "pixel_accuracy": found.accuracy,
            "classes": [{"class": name, "iou": iou} for name, iou in zip(names, found.iou, strict=True)],
            "matrix": found.matrix.tolist(),
            "n": found.images,
            "seconds": seconds,
            "bytes": size,
        }
    )


def evaluate_pairs(output: Output, model: Any, backend: str, size: int, hr: Path, lr: Path, border: int | None) -> None:
    """Prints and emits PSNR and SSIM of the luma of every pair of images, and their means."""
    from visq.analysis.super_resolution import evaluate_restoration

    start = time.perf_counter()
    found = evaluate_restoration(model, hr, lr, shave=border)
    seconds = time.perf_counter() - start
    used = model.config.upscale if border is None else border
    lines = [(name, _decibels(psnr), _ssim(found.ssim.get(name))) for name, psnr in found.psnr.items()]
    mean_ssim = found.mean_ssim if found.ssim else None
    output.table(("image", "PSNR", "SSIM"), [*lines, ("mean", _decibels(found.mean), _ssim(mean_ssim))])
    recipe = "fp32" if backend == "fp32" else model.recipe.name
    name = model.card.name
    output.say(
        f"{name} {recipe} ({backend}): PSNR {_decibels(found.mean)} dB, SSIM {_ssim(mean_ssim)}; "
        f"luma of BT.601, output rounded to 8 bits, {used} pixels of border left out"
    )
    output.say(f"{len(found.psnr)} images of {hr} in {seconds:.1f} s; {megabytes(size)}")
    values = {key: None if math.isinf(value) else value for key, value in found.psnr.items()}
    output.emit(
        {
            "model": name,
            "recipe": recipe,
            "backend": backend,
            "psnr_y": None if math.isinf(found.mean) else found.mean,
            "ssim_y": mean_ssim,
            "border": used,
            "images": [{"image": key, "psnr_y": values[key], "ssim_y": found.ssim.get(key)} for key in found.psnr],
            "seconds": seconds,
            "bytes": size,
        }
    )


def _decibels(psnr: float) -> str:
    return f"{psnr:.2f}"


def _ssim(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
