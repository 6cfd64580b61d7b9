"""Calibrates every site at every bit width in one pass over the stages, and keeps the quantizers on disk."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from visq.calibrate.driver import observe, write_images
from visq.data import Dataset
from visq.data.dataset import mixed
from visq.errors import VisqError
from visq.files import replacing
from visq.quant.half import round_parameters
from visq.quant.serialize import quantizer_from_parts, quantizer_to_parts
from visq.quant.site import SiteQuantizer, bake_weights, named_sites, without_codes
from visq.recipes import Recipe
from visq.search.groups import KINDS, kinds_of, specs_of
from visq.stages.stage_run import StageRun, belongs
from visq.stages.stream import Stream
from visq.transforms import make_transform

#: Transforms that look at bits see these; every width then has the same smoothing and the same parameters.
TRANSFORM_BITS = 4


class Library:
    """Holds the quantizers of a network's sites at every width, and the network they were made for.

    Attributes:
        model: FP32 with the recipe's transforms applied, weights not rounded.
        quantizers: by width and site.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.quantizers: dict[int, dict[str, SiteQuantizer]] = {}

    def add(self, width: int, found: Mapping[str, SiteQuantizer]) -> None:
        self.quantizers.setdefault(width, {}).update(found)

    def network(self, widths: Mapping[str, int]) -> Any:
        """Returns a copy of the network with every site quantized at its width, weights rounded.

        Arguments:
            widths: by site; sites of the recipe that are not in it take their quantizer of the largest width.
        """
        model = copy.deepcopy(self.model)
        largest = max(self.quantizers)
        for name, site in named_sites(model):
            if name in self.quantizers[largest]:
                site.quantizer = copy.deepcopy(self.quantizers[widths.get(name, largest)][name])
        quantized = [(name, site) for name, site in named_sites(model) if site.quantizer is not None]
        round_parameters(parameter for _, parameter in without_codes(model, quantized))
        bake_weights(model)
        return model


def calibrate_widths(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    widths: Sequence[int],
    *,
    folder: Path,
    batch_size: int,
    seed: int,
    kinds: Sequence[str] = KINDS,
    report: Callable[[int, str], None] = lambda done, name: None,
) -> Library:
    """Returns the quantizers of `recipe` at all widths; `model` gets the recipe's transforms and stays FP32.

    Learners are left out. Finished stages lie in `folder`: a killed call goes on and ends in the same numbers.

    Arguments:
        kinds: of bits that are searched; sites of other kinds are calibrated at the largest width only.
        report: called after every stage with stages done and the stage's name.
    Raises:
        VisqError: a state that cannot be read, and whatever a calibration raises.
    """
    model.eval().requires_grad_(False)
    names = [name for name, _ in named_sites(model)]
    largest = max(widths)
    searched = {name for name, kind in kinds_of(recipe, names).items() if kind in kinds}
    specs = {
        width: {n: s for n, s in specs_of(recipe, names, width).items() if width == largest or n in searched}
        for width in widths
    }
    transforms = [make_transform(named) for named in recipe.scope.transforms]
    stages, library = model.stages(), Library(model)
    done = finished(folder, len(stages))
    for index in range(done):
        restore(stage_file(folder, index), library)
        report(index + 1, stages[index].name)
    if done == 0:
        write_images(stream(folder, 0), mixed(dataset, recipe.scope.search_images, seed), batch_size)
    for index in range(done, len(stages)):
        stage = stages[index]
        own = {width: {name: spec for name, spec in specs[width].items() if belongs(name, stage)} for width in widths}
        run = StageRun(
            model=model,
            stage=stage,
            following=stages[index + 1 :],
            inputs=Stream(stream(folder, index)),
            targets=Stream.create(stream(folder, index + 1)),
            specs={n: spec for n, spec in specs_of(recipe, names, TRANSFORM_BITS).items() if belongs(n, stage)},
            search_images=recipe.scope.search_images,
            seed=seed,
        )
        for transform in transforms:
            transform.apply(run)
        made = {width: observe(replace(run, specs=own[width])) for width in widths}
        run.targets.close()
        keep(stage_file(folder, index), model, stage, made)
        run.inputs.remove()
        for width, found in made.items():
            library.add(width, found)
        report(index + 1, stage.name)
    shutil.rmtree(stream(folder, len(stages)), ignore_errors=True)
    return library


def stage_file(folder: Path, index: int) -> Path:
    return folder / f"stage-{index:03d}.safetensors"


def stream(folder: Path, index: int) -> Path:
    return folder / f"stream-{index:03d}"


def finished(folder: Path, stages: int) -> int:
    """Returns how many stages are finished and can be gone on from."""
    count = 0
    while count < stages and stage_file(folder, count).exists():
        count += 1
    return count if count == stages or stream(folder, count).is_dir() else 0


def keep(path: Path, model: Any, stage: Any, made: Mapping[int, Mapping[str, SiteQuantizer]]) -> None:
    """Writes a stage's parameters and its quantizers at all widths."""
    tensors = {
        f"parameter/{name}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if belongs(name, stage)
    }
    meta: dict[str, Any] = {}
    for width, found in made.items():
        for name, quantizer in found.items():
            key = f"{width}/{name}"
            meta[key], parts = quantizer_to_parts(quantizer)
            tensors |= {f"site/{key}/{part}": tensor.contiguous() for part, tensor in parts.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"quantizers": json.dumps(meta)})


def restore(path: Path, library: Library) -> None:
    """Reads what `keep` wrote. Raises VisqError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["quantizers"])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        parameters = dict(library.model.named_parameters())
        for key, tensor in tensors.items():
            if key.startswith("parameter/"):
                parameters[key.removeprefix("parameter/")].data = tensor
        for key, entry in meta.items():
            prefix = f"site/{key}/"
            parts = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            width, _, site = key.partition("/")
            library.add(int(width), {site: quantizer_from_parts(entry, parts)})
    except Exception as error:
        raise VisqError(f"{path} is damaged; delete {path.parent} and start again") from error
