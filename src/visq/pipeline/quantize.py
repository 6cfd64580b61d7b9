"""From an FP32 model, a recipe and images to a quantized model, saved when asked for."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from visq import parallel
from visq.artifact import ArtifactConfig, CalibrationData, Provenance, check_destination, lowered, save
from visq.calibrate import Calibration, calibrate
from visq.data import Dataset
from visq.errors import VisqError
from visq.memory import peak_rss, reset_peak_rss
from visq.models.family import family_of, num_classes
from visq.pipeline.check_fp32 import check_finite
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.recipes import Recipe
from visq.simulation import deploy


@dataclass(frozen=True)
class Quantized:
    """A quantized model and how it came about.

    Attributes:
        model: the simulation, with `model.recipe` and `model.provenance`; deployed where the engine can run it.
        config: of the artifact, when one was written.
        peak_rss: the most memory the process held meanwhile, in bytes.
    """

    model: Any
    calibration: Calibration
    config: ArtifactConfig | None
    peak_rss: int


def work_folder(out: Path) -> Path:
    """Where a calibration for the artifact `out` keeps its state."""
    return out.with_name(out.name + ".calibration")


def quantize(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Quantized:
    """Calibrate `model` in place and save it as an artifact. Under torchrun all ranks call it, and rank 0 writes.

    Arguments:
        model: FP32, with `model.card`.
        dataset: the calibration images, already chosen.
        out: the artifact's folder; None to keep the result in memory only.
        resume: continue a killed run for the same `out`; it ends in the same bytes.
    Raises:
        VisqError: bad input of any kind. Neither an artifact nor calibration state is left then; only state that
            `resume` found stays.
    """
    progress = progress or Progress("silent")
    if any(site.quantizer is not None for _, site in named_sites(model)):
        raise VisqError("the model is quantized already; load it again before quantizing it with another recipe")
    check_applies(model, recipe)
    work, found = parallel.on_rank_zero(lambda: _prepare(out, resume, overwrite, progress))
    keep = found and resume
    try:
        result = _quantize(model, recipe, dataset, work, seed, out, resume, overwrite, batch_size, progress)
        keep = False
        return result
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise VisqError(f"cannot keep the state of the calibration in {work}: {reason}") from error
    except KeyboardInterrupt:
        keep = out is not None
        raise
    finally:
        if not keep and parallel.rank() == 0:
            shutil.rmtree(work, ignore_errors=True)


def check_applies(model: Any, recipe: Recipe) -> None:
    """VisqError unless the recipe can be carried out on this network: every pattern matches, no scale per position
    where images have any size, no gradient of a classifier's loss where there are no classes."""
    names = [name for name, _ in named_sites(model)]
    specs, family = recipe.resolve(names), family_of(model.config)
    positional = list(dict.fromkeys(family.kind_of(name) for name in recipe.positional(names)))
    if family.any_size and positional:
        raise VisqError(
            f"{family.title} takes images of any size, but recipe {recipe.name} has scales for the positions of one "
            f"({', '.join(positional)}); quantize it without them: --without-positions, or recipe.without_positions()"
        )
    guided = [name for name, spec in specs.items() if spec.estimator.params.get("score") == "hessian"]
    if guided and num_classes(model.config) is None:
        raise VisqError(
            f"recipe {recipe.name} weighs errors by the gradient of a classifier's loss, and {family.title} has no "
            "classes; use another recipe"
        )


def _prepare(out: Path | None, resume: bool, overwrite: bool, progress: Progress) -> tuple[Path, bool]:
    """(folder of the calibration's state, whether a killed run left one). VisqError when `out` cannot be written."""
    if out is None:
        return Path(tempfile.mkdtemp(prefix="visq-")), False
    check_destination(out, overwrite)
    work = work_folder(out)
    found = work.exists()
    if found and any(work.iterdir()) and not (work / "run.json").exists():
        raise VisqError(f"{work} is in the way: the calibration keeps its state there; move it or choose another name")
    if found and not resume:
        progress.say(f"discarding the unfinished calibration in {work}; --resume would have continued it")
        shutil.rmtree(work, ignore_errors=True)
    elif resume and not found:
        progress.say(f"nothing to resume in {work}; starting from the beginning")
    return work, found


def _quantize(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    work: Path,
    seed: int,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    batch_size: int,
    progress: Progress,
) -> Quantized:
    reset_peak_rss()
    check_finite(model, dataset, batch_size=batch_size, progress=progress)
    with progress.task("calibrating", total=len(model.stages())) as task:
        calibration = calibrate(
            model,
            recipe,
            dataset,
            work_dir=work,
            seed=seed,
            batch_size=batch_size,
            resume=resume,
            report=lambda done, _, name: task.reach(done, note=name),
        )
    if lowered(model)[0] is not None:
        deploy(model)
    model.recipe = recipe
    model.provenance = Provenance(
        model=model.card.name,
        checkpoint_sha256=model.card.checkpoint_sha256,
        calibration=CalibrationData(
            data=",".join(Path(part).name for part in dataset.name.split(",")),
            fingerprint=dataset.fingerprint(),
            images=len(dataset) - len(dataset.skipped),
            seed=seed,
        ),
    )
    config = None if out is None else parallel.on_rank_zero(lambda: save(model, out, overwrite=overwrite))
    return Quantized(model, calibration, config, peak_rss())
