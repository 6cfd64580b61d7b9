"""Translates between VMamba's official checkpoints and our network: names, stacked directions, geometry.

Official files keep the four directions in one tensor each (`x_proj_weight` [4, R + 2N, C], `A_logs` [4 C, N], ...); our
network has four modules. Files of several ages differ in spelling; all are understood, the latest is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from visq.errors import VisqError
from visq.models.directions import split_directions, stack_directions
from visq.models.family import Family, Shapes, Tensors, need_tensors, register_family
from visq.models.vmamba import VMamba, VMambaConfig

#: Older spelling -> the latest one, as the public code renames them.
_OLDER = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"\.downsample\.norm\.", ".downsample.1."),
    (r"\.downsample\.reduction\.", ".downsample.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.weight$", ".op.dt_projs_weight"),
)
#: Generation -> pairs of an official name and ours.
_STEM = {
    "v0": (("patch_embed.0.", "patch_embed.steps.0.conv."), ("patch_embed.2.", "patch_embed.steps.0.norm.")),
    "v05_noz": (
        ("patch_embed.0.", "patch_embed.steps.0.conv."),
        ("patch_embed.2.", "patch_embed.steps.0.norm."),
        ("patch_embed.5.", "patch_embed.steps.2.conv."),
        ("patch_embed.7.", "patch_embed.steps.2.norm."),
    ),
}
_DOWN = {
    "v0": ((".downsample.1.", ".downsample.norm."), (".downsample.2.", ".downsample.reduction.")),
    "v05_noz": ((".downsample.1.", ".downsample.conv."), (".downsample.3.", ".downsample.norm.")),
}
_ENDS = (("classifier.norm.", "norm."), ("classifier.head.", "head."))


def canonical(config: VMambaConfig, tensors: Tensors) -> Tensors:
    """Returns official tensors in their latest names and shapes; convolutions of 1 x 1 become matrices."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in _OLDER:
            name = re.sub(old, new, name)
        if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and "conv" not in name:
            tensor = tensor.flatten(1)
        if name.endswith(("x_proj_weight", "dt_projs_weight")) and tensor.ndim == 2 and tensor.shape[0] % 4 == 0:
            tensor = tensor.unflatten(0, (4, -1))
        result[name] = tensor
    return result


def unpack(config: VMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors."""
    split = split_directions(canonical(config, tensors))
    return {_renamed(name, config, forward=True): tensor for name, tensor in split.items()}


def pack(config: VMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors, in their latest names, of the network's parameters."""
    stacked = stack_directions(tensors)
    return {_renamed(name, config, forward=False): tensor for name, tensor in stacked.items()}


def _renamed(name: str, config: VMambaConfig, forward: bool) -> str:
    """Returns our name of an official one, or with `forward` false the official name of ours."""
    for theirs, ours in (*_STEM[config.forward_type], *_ENDS):
        old, new = (theirs, ours) if forward else (ours, theirs)
        if name.startswith(old):
            return new + name.removeprefix(old)
    for theirs, ours in _DOWN[config.forward_type]:
        name = name.replace(theirs, ours) if forward else name.replace(ours, theirs)
    return name


def infer_vmamba(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> VMambaConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors, in any of the official spellings.
        hints: `image_size` where it is known, because no tensor tells it.
        known: geometries whose image size is taken when they are the same otherwise and there is no hint.

    Raises VisqError when the tensors are not those of a VMamba `v0` or `v05_noz`.
    """
    blank = VMambaConfig()
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found: dict[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in canonical(blank, meta).items()}
    first = "layers.0.blocks.0.op."
    telling = {
        f"{first}A_logs": 2,
        f"{first}dt_projs_weight": 3,
        f"{first}in_proj.weight": 2,
        "classifier.head.weight": 2,
        "patch_embed.0.weight": 4,
    }
    need_tensors("a VMamba checkpoint", found, telling)
    gated = "patch_embed.5.weight" not in found
    mlp = found.get("layers.0.blocks.0.mlp.fc1.weight")
    if "layers.0.blocks.0.conv_branch.0.weight" in found:
        raise VisqError("not a VMamba checkpoint: a convolution lies beside the scans, as in EfficientVMamba")
    if f"{first}multi_scan.attn.norm.weight" in found:
        raise VisqError("not a VMamba checkpoint: gates lie behind the scans, as in LocalVMamba")
    if f"{first}out_norm.weight" not in found or f"{first}conv2d.weight" not in found or gated == (mlp is not None):
        raise VisqError("this VMamba variant is not supported; supported: v0 (gated) and v05_noz, both with out_norm")
    in_rows, dim = found[f"{first}in_proj.weight"]
    inner = found[f"{first}dt_projs_weight"][1]
    if 0 in (dim, inner) or in_rows != inner * (2 if gated else 1) or inner % dim:
        raise VisqError(f"this VMamba variant is not supported: in_proj makes {in_rows} channels, the scan has {inner}")
    depths: dict[int, set[str]] = {}
    for name in found:
        match = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name)
        if match:
            depths.setdefault(int(match[1]), set()).add(match[2])
    config = VMambaConfig(
        channels=found["patch_embed.0.weight"][1],
        embed_dim=dim,
        depths=tuple(len(depths[i]) for i in sorted(depths)),
        d_state=found[f"{first}A_logs"][1],
        expand=inner // dim,
        mlp_ratio=0 if mlp is None else mlp[0] // dim,
        forward_type="v0" if gated else "v05_noz",
        num_classes=found["classifier.head.weight"][0],
    )
    sizes = [other.image_size for other in known if replace(other, image_size=config.image_size) == config]
    return replace(config, image_size=hints.get("image_size") or (sizes or [config.image_size])[0])


VMAMBA = register_family(
    Family(
        "vmamba",
        "VMamba",
        VMambaConfig,
        VMamba,
        infer_vmamba,
        unpack=unpack,
        pack=pack,
        roles={
            "linears": ("?*.mlp.fc*", "?*.reduction"),
            "ends": ("?*.conv",),
            "activations": ("?*.mlp.act",),
        },
    ),
)
