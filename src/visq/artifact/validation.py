"""Validates an artifact for the simulation and the engine alike, without torch.

`visq.artifact.load` and `visq.runtime.bundle.read_bundle` both call `check_artifact`, so they refuse the same ones.
Only the network knows its sites, the shapes of its parameters and the order of its layers. `load` checks these
afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from visq.artifact.geometry_checks import check_geometry
from visq.artifact.program_checks import ProgramCheck
from visq.artifact.schema import ArtifactConfig, QuantizerRecord
from visq.artifact.site_checks import DTYPES, PARTS, check_site
from visq.data.preprocess import Preprocess
from visq.errors import VisqError, first_problem, need
from visq.integer.operations import Constant
from visq.integer.resizing import resized
from visq.integer.spec import Spec, describe_granularity
from visq.recipes import Recipe
from visq.recipes.roles import matches


def check_artifact(config: ArtifactConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Checks a config against the tensors it describes.

    Arguments:
        tensors: every tensor by name, including the shared ones of `config.shared`.
    Raises:
        VisqError: a key or tensor is wrong; the message names it.
    """
    parts, parameters = split_tensors(config, tensors)
    quantizers = {name: check_site(name, record, parts.get(name, {})) for name, record in config.sites.items()}
    for name, value in parameters.items():
        _check_parameter(name, value)
    check_geometry(config)
    _check_classes(config)
    _check_preprocess(config)
    _check_recipe(config.recipe, quantizers)
    _check_coverage(config, quantizers)
    if config.program is not None:
        ProgramCheck(config, config.program, quantizers, parts, parameters).run()
    _check_deploy_sizes(config)


def _check_deploy_sizes(config: ArtifactConfig) -> None:
    """Checks that the program can be made for every size of `deploy_sizes`."""

    def shape_of(constant: Constant) -> tuple[int, ...]:
        record = config.sites.get(constant.name)
        if record is not None and record.codes is not None:
            return record.codes.shape
        return tuple(config.tensors[config.shared.get(constant.name, constant.name)][1])

    for height, width in config.deploy_sizes:
        need(config.program is not None, "deploy_sizes belong to an artifact with a program")
        assert config.program is not None
        resized(config.program, height, width, shape_of)


def check_tensor_table(config: ArtifactConfig) -> None:
    """Checks the dtypes, shapes and shared names that a config lists, without the tensors. Raises VisqError."""
    for name, (dtype, shape) in config.tensors.items():
        need(dtype in DTYPES, f"tensors.{name}: {dtype} is no dtype of an artifact, these are {', '.join(DTYPES)}")
        need(all(size >= 0 for size in shape), f"tensors.{name}: {list(shape)} is no shape")
    for name, target in config.shared.items():
        fits = name not in config.tensors and target in config.tensors
        need(fits, f"shared.{name}: {target} must be stored, {name} must not")


def split_tensors(
    config: ArtifactConfig, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Splits tensors into the tensors of sites, by site and short name, and the parameters, by name."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    parameters: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        owner, _, part = name.rpartition(".")
        if owner in config.sites and part in PARTS:
            parts.setdefault(owner, {})[part] = value
        else:
            parameters[name] = value
    return parts, parameters


def _check_parameter(name: str, value: np.ndarray) -> None:
    need(
        value.dtype in (np.float16, np.float32), f"tensor {name} is {value.dtype}, a parameter's is float16 or float32"
    )
    need(np.isfinite(value).all(), f"tensor {name} holds NaN or Inf")


def _check_classes(config: ArtifactConfig) -> None:
    outputs = config.architecture.geometry.get("num_classes")
    if config.program is not None:
        width = config.program.tensors[config.program.output].width
        need(outputs in (None, width), f"architecture.geometry.num_classes is {outputs} for {width} outputs")
        outputs = width
    found = None if config.classes is None else len(config.classes)
    need(None in (found, outputs) or found == outputs, f"classes has {found} names for {outputs} outputs")


def _check_preprocess(config: ArtifactConfig) -> None:
    preprocess = Preprocess.from_dict(config.preprocess)
    found = (preprocess.image_size, preprocess.channels)
    geometry = config.architecture.geometry
    expected = tuple(geometry.get(key, value) for key, value in zip(("image_size", "channels"), found, strict=True))
    need(found == expected, "preprocess.image_size or channels do not belong to architecture.geometry")
    if config.program is not None:
        fits = found == (config.program.size, config.program.channels)
        need(fits, "preprocess.image_size or channels do not belong to the program")


def _check_recipe(recipe: Recipe, quantizers: Mapping[str, QuantizerRecord]) -> None:
    """Checks that the recipe names every quantized site with its bits."""
    chosen: dict[str, Spec | None] = {}
    nothing = ""
    for index, rule in enumerate(recipe.scope.sites):
        try:
            spec = None if rule.skip else rule.spec(recipe.bits)
        except ValueError as error:
            raise VisqError(f"recipe {recipe.name}: {first_problem(error)}") from error
        for pattern in rule.match:
            matched = [name for name in quantizers if matches(pattern.removeprefix("?"), name)]
            chosen.update(dict.fromkeys(matched, spec))
            if not (matched or rule.skip or pattern.startswith("?")):
                nothing = f"recipe {recipe.name}: pattern '{pattern}' matches no site that is quantized"
                need(any(later.skip for later in recipe.scope.sites[index:]), nothing)
    for name, quantizer in quantizers.items():
        wanted = chosen.get(name)
        if wanted is None:
            raise VisqError(nothing or f"recipe {recipe.name} does not name site {name}, which has a quantizer")
        found, bits = quantizer.spec.bits, wanted.bits
        need(found == bits, f"sites.{name}: quantized at {found} bits, by recipe {recipe.name} at {bits}")


def _check_coverage(config: ArtifactConfig, quantizers: Mapping[str, QuantizerRecord]) -> None:
    """Checks that the coverage rows add up to the sites. Only the network can tell which row a site belongs to."""
    rows = config.coverage
    for row in rows:
        whole = row.sites >= row.targeted == row.quantized >= bool(row.bits) == bool(row.granularity)
        need(whole, f"coverage of {row.kind} does not add up")
    need(len({row.kind for row in rows}) == len(rows), "coverage has two rows of one kind")
    total = sum(row.quantized for row in rows)
    need(total == len(quantizers), f"coverage is not that of its sites: it counts {total}, there are {len(quantizers)}")
    specs = [quantizer.spec for quantizer in quantizers.values()]
    right = {bits for row in rows for bits in row.bits} == {spec.code_bits for spec in specs}
    need(right, "coverage is not that of its sites: other bits")
    right = {words for row in rows for words in row.granularity} == {describe_granularity(spec) for spec in specs}
    need(right, "coverage is not that of its sites: other granularities")
