"""Calibrates a network stage after stage: stream, observe, estimate, tune, bake, store."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq import parallel
from visq.calibrate.jobs import ActivationJob, Job, estimate_weight, naming
from visq.calibrate.layer_search import LayerSearch
from visq.calibrate.learners import Learner, NetworkLearner, NetworkRun, make_learner
from visq.calibrate.sample import Sample
from visq.calibrate.scan_job import ScanJob
from visq.calibrate.stage_store import FinishedStage, WorkFolder
from visq.data import Dataset
from visq.data.dataset import mixed
from visq.device import device_of
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.layers import SelectiveScan
from visq.models.stage import Stage
from visq.quant.estimators import Similarity
from visq.quant.half import round_parameters
from visq.quant.site import ACTIVATION, INNER, WEIGHT, Site, SiteQuantizer, bake_weights, named_sites
from visq.recipes import Recipe
from visq.stages.stage_run import StageRun, belongs
from visq.stages.stream import Stream, check_finite
from visq.transforms import make_transform

#: Called after every stage with (stages done, stages in all, name of the stage).
Report = Callable[[int, int, str], None]


@dataclass
class Calibration:
    """Says what a calibration did.

    Attributes:
        specs: every targeted site; each has its quantizer attached.
        images: calibration images seen.
        seconds: wall time of this call (a resumed run counts its own part).
        notes: remarks for the user.
    """

    specs: dict[str, Spec]
    images: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def calibrate(
    model: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    *,
    work_dir: Path,
    seed: int = 0,
    batch_size: int = 16,
    resume: bool = False,
    report: Report | None = None,
) -> Calibration:
    """Quantizes `model` in place, one stage at a time.

    Afterwards every targeted site has a quantizer and every targeted weight holds its decoded codes. `work_dir` keeps
    the state of the run: with `resume` a killed run continues from it and ends in the same bytes. The caller deletes
    the folder when the artifact is safe.

    Arguments:
        model: FP32, with `stages()` and sites, on the device that shall compute; put into eval mode.
        dataset: the calibration images, already chosen.
        seed: draws the images of searches, and for learners that draw random numbers.
    Raises:
        VisqError: an unusable recipe, no images, NaN or Inf in weights or activations, a work_dir of a different run,
            a targeted site that stayed unquantized.
    """
    start, device = time.perf_counter(), device_of(model)
    model.eval().requires_grad_(False)
    specs = recipe.resolve(name for name, _ in named_sites(model))
    transforms = [make_transform(named) for named in recipe.scope.transforms]
    made = [make_learner(named) for named in recipe.scope.learners]
    learners = [learner for learner in made if isinstance(learner, Learner)]
    network_learners = [learner for learner in made if isinstance(learner, NetworkLearner)]
    if len(dataset) == 0:
        raise VisqError("the calibration set is empty; pass images with --calib and at least --samples 1")
    exact = copy.deepcopy(model) if network_learners else model
    folder = WorkFolder(work_dir, model=model, recipe=recipe, dataset=dataset, seed=seed, batch_size=batch_size)
    stages: list[Stage] = model.stages()  # type: ignore[operator]
    with_student = any(learner.needs_student for learner in learners)
    done = parallel.on_rank_zero(lambda: folder.open(resume, with_student, bool(network_learners)))
    notes: list[str] = []
    for index in range(done):
        folder.finished(index).restore(model)
    if done == 0:
        images = mixed(dataset, recipe.scope.search_images, seed)
        notes += write_images(folder.stream(0), images, batch_size).warnings(recipe)
        if network_learners:
            write_teacher(model, Stream(folder.stream(0), device), folder.teacher)
    for index in range(done, len(stages)):
        stage = stages[index]
        inputs = Stream(folder.stream(index), device)
        run = StageRun(
            model=model,
            stage=stage,
            following=stages[index + 1 :],
            inputs=inputs,
            targets=Stream.create(folder.stream(index + 1), device),
            specs={name: spec for name, spec in specs.items() if belongs(name, stage)},
            search_images=recipe.scope.search_images,
            seed=seed,
            # The first stage's inputs are the images, quantized network or not.
            student=(Stream(folder.student(index), device) if index else inputs) if with_student else None,
        )
        for transform in transforms:
            transform.apply(run)
        quantizers = observe(run)
        for name, site in named_sites(model):
            if name in quantizers:
                site.quantizer = quantizers[name]
        left_alone = [(parameter, parameter.clone()) for parameter in run.left_alone()] if specs else []
        with torch.enable_grad():  # the caller may have switched gradients off
            for learner in learners:
                learner.tune(run)
        check_scales(run.sites().items())
        # Parameters that a learner changed keep its precision.
        round_parameters(parameter for parameter, before in left_alone if parameter.equal(before))
        bake_weights(model)
        if run.student is not None:
            advance_student(run, folder.student(index + 1))
        run.targets.close()
        finish(model, stage, folder.finished(index))
        run.inputs.remove()
        if run.student is not None:
            run.student.remove()
        notes += run.notes
        if report is not None:
            report(index + 1, len(stages), stage.name + run.summary)
    if specs:
        named = model.named_parameters()
        round_parameters(p for name, p in named if not any(belongs(name, stage) for stage in stages))
    if network_learners:
        network_run = NetworkRun(
            model,
            exact,
            Stream(folder.teacher, device),
            folder.path,
            seed,
            report=lambda line: None if report is None else report(len(stages), len(stages), line),
            notes=notes,
        )
        with torch.enable_grad():
            for network_learner in network_learners:
                network_learner.tune(network_run)
        check_scales(named_sites(model))
    missed = [name for name, site in named_sites(model) if name in specs and site.quantizer is None]
    if missed:
        raise VisqError(f"{len(missed)} targeted sites were not quantized: {', '.join(missed[:5])}")
    return Calibration(specs, len(dataset), time.perf_counter() - start, notes)


def check_scales(sites: Iterable[tuple[str, Site]]) -> None:
    """Checks the scales of sites again; learners write into quantizers. VisqError names the site."""
    for name, site in sites:
        if site.quantizer is not None:
            with naming(name):
                site.quantizer.check()


def finish(model: nn.Module, stage: Stage, store: FinishedStage) -> None:
    """Saves the stage on rank 0; the other processes load it.

    They computed the same unless their processor or number of threads differs.
    """
    parallel.on_rank_zero(lambda: store.save(model, stage))
    if parallel.rank() > 0:
        store.restore(model)


def write_images(folder: Path, dataset: Dataset, batch_size: int) -> Sample:
    """Writes the images, which are the first stage's inputs, and returns what they are like."""
    stream = Stream.create(folder)

    def read() -> Sample:
        sample = Sample()
        for images, _ in dataset.batches(batch_size):
            stream.append((images,))
            sample.add(images)
        if len(stream) == 0:
            raise VisqError("no calibration image could be read")
        return sample

    sample = parallel.on_rank_zero(read)
    stream.close()
    return sample


@torch.no_grad()
def write_teacher(model: nn.Module, images: Stream, folder: Path) -> None:
    """Writes what learners of the whole network compare with: batches of (images, FP32's outputs)."""
    stream = Stream.create(folder)
    for index, (batch,) in images.share():
        outputs = model(batch)
        if not parallel.filler():
            stream.append((batch, outputs), index)
    stream.close()


@torch.no_grad()
def advance_student(run: StageRun, folder: Path) -> None:
    """Writes the next stage's inputs in the quantized network: the finished stage's outputs on the student's inputs."""
    assert run.student is not None
    stream = Stream.create(folder)
    for index, batch in run.student.share():
        outputs = run.stage.forward(*batch)
        if not parallel.filler():
            stream.append(outputs, index)
    stream.close()


def observe(run: StageRun) -> dict[str, SiteQuantizer]:
    """Streams the stage as often as its jobs need and returns the quantizers by site name.

    The first pass also writes the stage's FP32 outputs.
    """
    jobs, quantizers = make_jobs(run)
    for index in range(max([1, *(job.passes for job in jobs)])):
        active = [job for job in jobs if index < job.passes]
        images = None if index == 0 else run.search_images
        plain = [job for job in active if not job.needs_gradient]
        guided = [job for job in active if job.needs_gradient]
        if plain or index == 0:
            stream_plain(run, plain, images, write=index == 0)
        if guided:
            stream_guided(run, guided, images)
        for job in active:
            job.end_pass()
    for job in jobs:
        quantizers |= job.result()
    return quantizers


def make_jobs(run: StageRun) -> tuple[list[Job], dict[str, SiteQuantizer]]:
    """Returns the jobs of a stage's targeted sites, and the quantizers of weights that need no data."""
    jobs: list[Job] = []
    quantizers: dict[str, SiteQuantizer] = {}
    sites = run.sites()
    taken: set[str] = set()
    for name, site in sites.items():
        spec = run.specs[name]
        if site.kind != WEIGHT and spec.granularity.kind == "ladder":
            raise VisqError(f"{name}: a ladder is for A_log, and this is no parameter")
        if site.kind == WEIGHT and spec.estimator.name == "similarity":
            if name in run.smooth or name in run.rotations:
                raise VisqError(f"{name}: a similarity search cannot follow a smoothing or rotation; use estimator mse")
            layer, out_name = name.rpartition(".")[0], name.rpartition(".")[0] + ".out"
            output = None
            if out_name in run.specs and run.specs[out_name].estimator.name == "similarity":
                out_job = ActivationJob(out_name, sites[out_name], run.specs[out_name], run.smooth.get(out_name))
                assert isinstance(out_job.estimator, Similarity)
                output = (out_name, out_job.estimator)
                taken.add(out_name)
            jobs.append(LayerSearch(name, run.model.get_submodule(layer), spec, output, **spec.estimator.params))
        elif site.kind == WEIGHT:
            quantizers[name] = estimate_weight(run, name, site)
    jobs += [
        ActivationJob(name, site, run.specs[name], run.smooth.get(name), run.rotations.get(name))
        for name, site in sites.items()
        if site.kind == ACTIVATION and name not in taken
    ]
    scans = {name.rpartition(".")[0] for name, site in sites.items() if site.kind == INNER}
    jobs += [ScanJob(path, scan, run) for path, scan in run.modules(SelectiveScan).items() if path in scans]
    return jobs, quantizers


@torch.no_grad()
def stream_plain(run: StageRun, jobs: Iterable[Job], images: int | None, write: bool) -> None:
    handles = [job.watched().register_forward_hook(job.observe) for job in jobs]
    try:
        for index, batch in run.inputs.share(images):
            outputs = run.stage.forward(*batch)
            if write and not parallel.filler():
                check_finite(outputs, run.stage.name)
                run.targets.append(outputs, index)
    finally:
        for handle in handles:
            handle.remove()
    parallel.barrier()


def stream_guided(run: StageRun, jobs: list[Job], images: int | None) -> None:
    """Streams the stage with gradients of the task loss: cross-entropy of the logits against their own decision."""
    for _, batch in run.inputs.share(images):
        seen: dict[Job, tuple[Tensor, Tensor]] = {}

        def remember(job: Job, seen: dict[Job, tuple[Tensor, Tensor]] = seen) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
                if not result.is_leaf:
                    result.retain_grad()
                seen[job] = (args[0], result)

            return hook

        handles = [job.watched().register_forward_hook(remember(job)) for job in jobs]
        with torch.enable_grad():
            state = tuple(tensor.requires_grad_() for tensor in batch)
            state = run.stage.forward(*state)
            for handle in handles:
                handle.remove()
            for stage in run.following:
                state = stage.forward(*state)
            logits = state[0]
            F.cross_entropy(logits, logits.argmax(-1), reduction="sum").backward()
        with torch.no_grad():
            for job, (x, output) in seen.items():
                gradient = torch.zeros_like(output) if output.grad is None else output.grad
                job.observe_gradient(x.detach(), output.detach(), gradient)
