"""visq: post-training quantization for Vision Mamba.

    model = visq.load_model("vim_nano_fmnist")
    model = visq.quantize(model, "kscaled-w8a8", "fashion-mnist", out="vim-nano-w8a8")
    print(visq.evaluate(visq.load("vim-nano-w8a8"), "fashion-mnist").top1)

Importing this costs nothing; torch is loaded by the first call.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visq._version import __version__

if TYPE_CHECKING:
    from visq.analysis import Evaluation
    from visq.data import Dataset
    from visq.models import ModelCard
    from visq.recipes import Recipe

__all__ = ["load_model", "quantize", "load", "evaluate", "list_models", "list_recipes", "__version__"]


def load_model(name: str | None, checkpoint: Path | str | None = None, **options: Any) -> Any:
    """An FP32 model by name, with the packaged weights or a checkpoint; options as in `visq.models.load_model`."""
    from visq.models import load_model

    return load_model(name, checkpoint, **options)


def quantize(
    model: Any,
    recipe: Recipe | str | Path,
    dataset: Dataset | str,
    *,
    samples: int = 256,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """Quantize an FP32 model (or a model by name) in place and return its simulation; `out` saves it as an artifact.

    `dataset` is a Dataset, taken whole, or what `visq.data.open_dataset` opens, of which `samples` images are drawn by
    `seed`. Raises VisqError for bad input, and leaves nothing behind then.
    """
    from visq.data import open_dataset
    from visq.pipeline import quantize
    from visq.recipes import get_recipe

    model = load_model(model) if isinstance(model, str) else model
    recipe = get_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if isinstance(dataset, str):
        dataset = open_dataset(dataset, model.card.preprocess, split="calib").subset(samples, seed)
    out = None if out is None else Path(out)
    return quantize(model, recipe, dataset, seed=seed, out=out, resume=resume, overwrite=overwrite).model


def load(path: Path | str, *, backend: str = "sim", threads: int | None = None) -> Any:
    """The quantized model in an artifact folder, completely checked.

    `backend="sim"` is its simulation, a torch module; `backend="int"` the integer engine (`visq.runtime.Engine`), NumPy
    in and out without torch, on `threads` threads.
    """
    if backend == "int":
        from visq.runtime import load_engine

        return load_engine(path, threads=threads)
    if backend != "sim":
        from visq.errors import VisqError

        raise VisqError(f"backend '{backend}' is unknown; there are sim and int")
    from visq.artifact import load

    return load(path)


def evaluate(model: Any, dataset: Dataset | str, *, limit: int | None = None, batch_size: int = 32) -> Evaluation:
    """Top-1 and top-5 on labelled images: a Dataset, or what `visq.data.open_dataset` opens."""
    from visq.analysis import evaluate
    from visq.data import open_dataset

    if isinstance(dataset, str):
        dataset = open_dataset(dataset, model.card.preprocess, split="test", classes=model.card.classes)
    return evaluate(model, dataset, limit=limit, batch_size=batch_size)


def list_models() -> list[ModelCard]:
    """The models visq knows by name."""
    from visq.models import list_models

    return list_models()


def list_recipes() -> list[Recipe]:
    """The packaged recipes in every scope at the usual bits."""
    from visq.recipes import list_recipes

    return list_recipes()
