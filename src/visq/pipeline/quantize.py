"""Quantizes an FP32 model with a recipe and images, checks the result, and saves it when asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from visq import parallel
from visq.artifact import ArtifactConfig, CalibrationData, Check, Provenance, check_destination, lowered, save
from visq.artifact.program_checks import MAX_IMAGE_BYTES, image_bytes
from visq.calibrate import Calibration, calibrate
from visq.calibrate.learners import make_learner
from visq.calibrate.stage_store import LOCK, RUN, clear
from visq.data import Dataset
from visq.device import CPU, reproducible
from visq.errors import VisqError
from visq.files import is_temporary
from visq.integer.resizing import resized
from visq.memory import peak_rss, reset_peak_rss
from visq.models.family import family_of, image_classes
from visq.pipeline.check import Reference, SelfCheck, reference, self_check
from visq.pipeline.lock import held
from visq.pipeline.outputs import fp32_outputs
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.recipes import Recipe
from visq.simulation import deploy
from visq.transforms import make_transform


@dataclass(frozen=True)
class Quantized:
    """Holds a quantized model and how it came about.

    Attributes:
        model: the simulation, with `model.recipe`, `model.provenance` and `model.check`; deployed where the engine can
            run it.
        config: of the artifact, when one was written.
        peak_rss: the most memory the process held meanwhile [bytes].
        self_check: the check, its kernel and its time; None when it was not asked for.
    """

    model: Any
    calibration: Calibration
    config: ArtifactConfig | None
    peak_rss: int
    self_check: SelfCheck | None = None

    @property
    def check(self) -> Check | None:
        """Returns what the self-check found."""
        return None if self.self_check is None else self.self_check.check


def work_folder(out: Path) -> Path:
    """Returns the folder where a calibration for the artifact `out` keeps its state."""
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
    held_out: Dataset | None = None,
    check: bool = True,
    deploy_sizes: Sequence[tuple[int, int]] = (),
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Quantized:
    """Calibrates `model` in place, checks the result, and saves it. Under torchrun all ranks call it; rank 0 writes.

    Arguments:
        model: FP32, with `model.card`.
        dataset: the calibration images, already chosen.
        out: the artifact's folder; None to keep the result in memory only.
        resume: continue a killed run for the same `out`; it ends in the same bytes.
        held_out: images beside the calibration images that the self-check runs on (`visq.pipeline.draw` draws both).
        check: compare the result with FP32 before it is saved (docs/self-check.md).
        deploy_sizes: (height, width) of images beside those of calibration, which the engine makes programs for when it
            loads the artifact.
        device: where FP32 runs and the calibration computes. The result is on the CPU, as is the check of it.
    Raises:
        VisqError: bad input of any kind. Neither an artifact nor calibration state is left then; only state that
            `resume` found stays.
    """
    progress = progress or Progress("silent")
    if any(site.quantizer is not None for _, site in named_sites(model)):
        raise VisqError("the model is quantized already; load it again before quantizing it with another recipe")
    check_applies(model, recipe)
    check_deploy_sizes(model, recipe, deploy_sizes)
    lock = ExitStack()
    work, found = parallel.on_rank_zero(lambda: _prepare(out, resume, overwrite, lock, progress))
    keep = found and resume
    try:
        run = _Run(model, dataset, held_out if check else None, batch_size, progress)
        with reproducible(device, batch_size):
            exact, calibration = run.calibrate(recipe, work, seed, resume, check, device)
        result = run.finish(recipe, seed, out, overwrite, exact, calibration)
        keep = False
        return result
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise VisqError(f"cannot keep the state of the calibration in {work}: {reason}") from error
    except KeyboardInterrupt:
        keep = out is not None
        raise
    finally:
        if not keep and parallel.rank() == 0 and work.is_dir():
            with suppress(OSError):
                clear(work)
            shutil.rmtree(work, ignore_errors=True)
        lock.close()


def check_applies(model: Any, recipe: Recipe) -> None:
    """Raises VisqError unless the recipe can be carried out on this network: every pattern matches a site; there is no
    scale per position where images have any size, and no gradient of a classifier's loss without classes."""
    try:
        for named in recipe.scope.transforms:
            make_transform(named)
        for named in recipe.scope.learners:
            make_learner(named)
    except VisqError as error:
        raise VisqError(f"recipe {recipe.name}: {error}") from error
    names = [name for name, _ in named_sites(model)]
    specs, family = recipe.resolve(names), family_of(model.config)
    positional = list(dict.fromkeys(family.kind_of(name) for name in recipe.positional(names)))
    if family.any_size and positional:
        raise VisqError(
            f"{family.title} takes images of any size, but recipe {recipe.name} has scales for the positions of one "
            f"({', '.join(positional)}); quantize it without them: --without-positions, or recipe.without_positions()"
        )
    guided = [name for name, spec in specs.items() if spec.estimator.params.get("score") == "hessian"]
    if guided and image_classes(model.config) is None:
        raise VisqError(
            f"recipe {recipe.name} weighs errors by the gradient of a classifier's loss, and {family.title} gives an "
            "image no class; use another recipe"
        )


def check_deploy_sizes(model: Any, recipe: Recipe, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises VisqError unless a program for each size can be made, and notes the sizes as `model.deploy_sizes`."""
    model.deploy_sizes = tuple(dict.fromkeys(sizes))
    if not sizes:
        return
    positional = recipe.positional(name for name, _ in named_sites(model))
    if positional:
        raise VisqError(
            f"recipe {recipe.name} has scales for the positions of one image size ({positional[0]}, ...), so there "
            "is no other size to deploy; quantize without them: --without-positions, or recipe.without_positions()"
        )
    program, reason = lowered(model)
    if program is None:
        raise VisqError(f"there is no size to deploy, since the engine cannot run this network: {reason}")
    for height, width in model.deploy_sizes:
        made = resized(program, height, width, lambda constant: tuple(model.get_parameter(constant.name).shape))
        taken = image_bytes(made)
        if taken > MAX_IMAGE_BYTES:
            raise VisqError(
                f"an image of {height} x {width} pixels takes {taken:,} bytes at once in floating point, at "
                f"most {MAX_IMAGE_BYTES:,}; deploy a smaller size and cut images into tiles"
            )


def _prepare(out: Path | None, resume: bool, overwrite: bool, lock: ExitStack, progress: Progress) -> tuple[Path, bool]:
    """Returns (folder of the calibration's state, whether a killed run left one), and holds the folder until `lock` is
    closed.

    Raises:
        VisqError: `out` cannot be written, or another process writes it.
    """
    if out is None:
        return Path(tempfile.mkdtemp(prefix="visq-")), False
    check_destination(out, overwrite)
    work = work_folder(out)
    # A kill while run.json was written may have left a temporary file.
    there = {entry.name for entry in work.iterdir() if not is_temporary(entry.name)} if work.is_dir() else set()
    if os.path.lexists(work) and (not work.is_dir() or (there - {LOCK} and RUN not in there)):
        raise VisqError(f"{work} is in the way: the calibration keeps its state there; move it or choose another name")
    try:
        lock.enter_context(held(work))
    except OSError as error:
        raise VisqError(f"cannot keep the state of the calibration in {work}: {error.strerror or error}") from error
    found = (work / RUN).exists()
    if found and not resume:
        progress.say(f"discarding the unfinished calibration in {work}; --resume would have continued it")
        clear(work)
    elif resume and not found:
        progress.say(f"nothing to resume in {work}; starting from the beginning")
    return work, found


@dataclass(frozen=True)
class _Run:
    """A network and the images it is calibrated and checked with."""

    model: Any
    dataset: Dataset
    held_out: Dataset | None
    batch_size: int
    progress: Progress

    def calibrate(
        self, recipe: Recipe, work: Path, seed: int, resume: bool, check: bool, device: torch.device
    ) -> tuple[tuple[Reference, Reference | None] | None, Calibration]:
        """Returns FP32's outputs and what the calibration did; leaves the quantized model on the CPU.

        Arguments as in `quantize`, and `work`, the folder of the calibration's state.
        """
        reset_peak_rss()
        model = self.model.to(device)
        try:
            exact = self.references(check)
            with self.progress.task("calibrating", total=len(model.stages())) as task:
                return exact, calibrate(
                    model,
                    recipe,
                    self.dataset,
                    work_dir=work,
                    seed=seed,
                    batch_size=self.batch_size,
                    resume=resume,
                    report=lambda done, _, name: task.reach(done, note=name),
                )
        finally:
            model.to(CPU)

    def finish(
        self,
        recipe: Recipe,
        seed: int,
        out: Path | None,
        overwrite: bool,
        exact: tuple[Reference, Reference | None] | None,
        calibration: Calibration,
    ) -> Quantized:
        """Deploys the calibrated model, checks it against FP32's outputs, and saves it."""
        model, progress = self.model, self.progress
        if lowered(model)[0] is not None:
            deploy(model)
        model.recipe, model.provenance, model.check = recipe, self.provenance(seed), None
        checked = None
        if exact is not None:
            checked = self_check(model, *exact, batch_size=self.batch_size, progress=progress)
            model.check = checked.check
        config = None if out is None else parallel.on_rank_zero(lambda: save(model, out, overwrite=overwrite))
        return Quantized(model, calibration, config, peak_rss(), checked)

    def references(self, check: bool) -> tuple[Reference, Reference | None] | None:
        """Returns FP32's outputs for calibration and held-out images, which are finite; None without a check."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "progress": self.progress}
        if not check:
            fp32_outputs(self.model, self.dataset, keep=0, **options)
            return None
        held_out = None if self.held_out is None else reference(self.model, self.held_out, **options)
        return reference(self.model, self.dataset, **options), held_out

    def provenance(self, seed: int) -> Provenance:
        card, dataset = self.model.card, self.dataset
        return Provenance(
            model=card.name,
            checkpoint_sha256=card.checkpoint_sha256,
            calibration=CalibrationData(
                data=",".join(Path(part).name for part in dataset.name.split(",")),
                fingerprint=dataset.fingerprint(),
                images=len(dataset) - len(dataset.skipped),
                seed=seed,
            ),
        )
