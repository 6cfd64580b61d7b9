"""visq: post-training quantization for Vision Mamba.

    result = visq.quantize("vim_nano_fmnist", "kscaled-w8a8", "fashion-mnist", out="vim-nano-w8a8")
    print(result.check.verdict)
    print(visq.evaluate(visq.load("vim-nano-w8a8", backend="int"), "fashion-mnist").top1)

Importing this costs nothing; torch is loaded by the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visq._version import __version__

if TYPE_CHECKING:
    from visq.analysis import Evaluation
    from visq.data import Dataset
    from visq.models import ModelCard
    from visq.recipes import Recipe
    from visq.result import Result

__all__ = ["load_model", "quantize", "load", "evaluate", "list_models", "list_recipes", "__version__"]


def load_model(name: str | None, checkpoint: Path | str | None = None, **options: Any) -> Any:
    """Returns an FP32 model by name, with the packaged weights or a checkpoint.

    Arguments:
        options: as in `visq.models.load_model`.
    """
    from visq.models import load_model

    return load_model(name, checkpoint, **options)


def quantize(
    model: Any,
    recipe: Recipe | str | Path,
    dataset: Any,
    *,
    samples: int = 256,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int = 16,
    held_out: int | Dataset = 64,
    check: bool = True,
    deploy_sizes: Sequence[tuple[int, int]] = (),
    device: str | None = None,
    progress: Callable[[str, int, int | None], object] | None = None,
) -> Result:
    """Quantizes an FP32 model in place, checks the result, and returns it (`visq.result.Result`).

    Arguments:
        model: an FP32 model, or the name of one.
        dataset: a Dataset, taken whole; a name or path that `visq.data.open_dataset` opens, of which `samples` images
            are drawn by `seed`; or arrays, tensors, PIL images, paths or a loader of these, of which the first
            `samples` are taken (`visq.data.as_dataset`). Float tensors must be normalized.
        out: the folder of an artifact; None keeps the result in memory only.
        resume: goes on with a run for the same `out` that was interrupted.
        held_out: how many further images of `dataset` the self-check runs on, or a Dataset of them.
        check: compares the result with FP32 (docs/self-check.md); `check.verdict` of the result says how it went.
        device: where the calibration computes: `cpu` (the default), `cuda`, `cuda:1` or `auto`. The result is on the
            CPU.
        deploy_sizes: image sizes (height, width) that the engine prepares for beside that of calibration.
        progress: called with (what is done, how much of it, of how much or None).
    Warns:
        UserWarning: too few images or images too alike, or a verdict that is not good.
    Raises:
        VisqError: bad input of any kind; nothing is left behind then.
    """
    import warnings

    from visq.analysis.given import fp32_model
    from visq.device import resolve_device
    from visq.errors import VisqError
    from visq.pipeline import drawn_from, quantize
    from visq.pipeline.wording import meaning
    from visq.progress import Progress
    from visq.recipes import Recipe, get_recipe
    from visq.result import Result

    model = fp32_model(model)
    if not isinstance(recipe, Recipe):
        if not isinstance(recipe, str | Path):
            raise VisqError(
                f"a recipe is a name, a YAML file or a Recipe, not an object of type {type(recipe).__name__}"
            )
        recipe = get_recipe(recipe)
    calibration, others = drawn_from(dataset, model.card.preprocess, samples, held_out if check else 0, seed)
    quantized = quantize(
        model,
        recipe,
        calibration,
        seed=seed,
        out=None if out is None else Path(out),
        resume=resume,
        overwrite=overwrite,
        batch_size=batch_size,
        held_out=others,
        check=check,
        deploy_sizes=deploy_sizes,
        progress=Progress("silent", callback=progress),
        device=resolve_device(device),
    )
    result = Result(quantized, None if out is None else Path(out))
    for note in result.notes:
        warnings.warn(note, stacklevel=2)
    if result.check is not None and result.check.verdict != "good":
        warnings.warn(f"self-check: {result.check.verdict} - {meaning(result.check)}", stacklevel=2)
    return result


def load(path: Path | str, *, backend: str = "sim", threads: int | None = None, device: str | None = None) -> Any:
    """The quantized model in an artifact folder, completely checked.

    `backend="sim"` is its simulation, a torch module; `backend="int"` the integer engine (`visq.runtime.Engine`), NumPy
    in and out without torch, on `threads` threads; `backend="cuda"` the same on a GPU, `cuda` or `cuda:<index>`, with
    the same bits.
    """
    from visq.errors import VisqError
    from visq.runtime import engine_backends, load_engine

    if backend in engine_backends():
        return load_engine(path, backend=backend, threads=threads, device=device)
    if backend != "sim":
        raise VisqError(f"backend '{backend}' is unknown; there are sim, {' and '.join(engine_backends())}")
    if device not in (None, "cpu"):
        raise VisqError("the simulation runs on the CPU; use backend 'cuda' for a GPU")
    from visq.artifact import load
    from visq.native.threads import checked_threads

    checked_threads(threads)  # the simulation runs on torch's threads, but a wrong number is wrong here too
    return load(path)


def evaluate(
    model: Any,
    dataset: Any,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    progress: Callable[[str, int, int | None], object] | None = None,
) -> Evaluation:
    """Returns top-1 and top-5 on labelled images.

    Arguments:
        model: an FP32 model, a simulation, an `Engine` or a `Result`, or the name of a model or folder of an artifact.
        dataset: a Dataset, a name or path that `visq.data.open_dataset` opens, or pairs of images and labels
            (`visq.data.as_dataset`).
        limit: at most so many images, chosen at random but always the same ones.
        device: moves a network there first; by default it stays where it is. A simulation computes in PyTorch's float32
            on a device without kernels for the engine's bits.
        deploy_sizes: image sizes (height, width) that the engine prepares for beside that of calibration.
        progress: called with (what is done, how much of it, of how much or None).
    Raises:
        VisqError: images without labels, labels that are not the model's, logits that are not finite.
    """
    from visq.analysis import evaluate
    from visq.analysis.given import class_names, measurable_model, place
    from visq.data import as_dataset
    from visq.device import resolve_device
    from visq.progress import Progress
    from visq.result import Result

    model = measurable_model(model.model if isinstance(model, Result) else model)
    if device is not None:
        place(model, resolve_device(device))
    dataset = as_dataset(dataset, model.card.preprocess, split="test", classes=class_names(model, dataset))
    shown = Progress("silent", callback=progress)
    return evaluate(model, dataset, limit=limit, batch_size=batch_size, progress=shown)


def list_models() -> list[ModelCard]:
    """The models visq knows by name."""
    from visq.models import list_models

    return list_models()


def list_recipes() -> list[Recipe]:
    """The packaged recipes in every scope at the usual bits."""
    from visq.recipes import list_recipes

    return list_recipes()
