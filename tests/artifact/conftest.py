"""Provides a tiny Vim with hand-made quantizers of every form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from visq.artifact import CalibrationData, Provenance
from visq.integer.spec import Granularity, Named, Spec
from visq.models import VisionMamba, create_model
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import ACTIVATION, INNER, WEIGHT, bake_weights, named_sites, site_parameter
from visq.recipes import Bits, Recipe, Rule, Scope

GEOMETRY = {
    "image_size": 16,
    "patch_size": 4,
    "stride": 4,
    "channels": 1,
    "embed_dim": 16,
    "depth": 2,
    "d_state": 4,
    "num_classes": 10,
}

PROVENANCE = Provenance(
    model="vim",
    checkpoint_sha256="0" * 64,
    calibration=CalibrationData(data="images", fingerprint="f" * 64, images=8, seed=0),
)


def weight_quantizer(weight: Tensor, bits: int, form: int) -> Quantizer:
    """Makes a quantizer per tensor, channel or group, unsigned with zero points, smoothed, or with a table."""
    flat = weight.reshape(weight.shape[0], -1)
    rows = flat.abs().amax(1).clamp_min(1e-3)
    qmax = 2 ** (bits - 1) - 1
    if form == 0:
        return Quantizer(Spec(bits=bits, narrow=True), rows.max().view(1) / qmax)
    if form == 1:
        return Quantizer(Spec(bits=bits, granularity=Granularity(kind="channel")), rows / qmax, axis=0)
    if form == 2:
        group = torch.arange(weight.shape[0]) % 3
        scale = torch.tensor([rows.max().item() / qmax / 2**i for i in range(3)])
        spec = Spec(bits=bits, granularity=Granularity(kind="channel_groups", k=3, power_of_two=True))
        return Quantizer(spec, scale, axis=0, group=group)
    if form == 3:
        scale = (flat.amax(1) - flat.amin(1)).clamp_min(1e-3) / (2**bits - 1)
        zero = (-flat.amin(1) / scale).round().clamp(0, 2**bits - 1)
        return Quantizer(Spec(bits=bits, symmetric=False, granularity=Granularity(kind="channel")), scale, zero, axis=0)
    if form == 4 and weight.ndim == 2:
        smooth = torch.linspace(0.5, 2, weight.shape[1])
        return Quantizer(Spec(bits=bits), (flat / smooth).abs().max().view(1) / qmax, smooth=smooth)
    table = torch.linspace(-1, 1, 2**bits - 1).sign() * torch.linspace(-1, 1, 2**bits - 1).abs() ** 2
    return Quantizer(Spec(bits=bits, codebook=Named(name="power")), rows.max().view(1), table=table)


def activation_quantizer(width: int, tokens: int, bits: int, form: int) -> Quantizer:
    qmax = 2 ** (bits - 1) - 1
    if form == 0:
        spec = Spec(bits=bits, granularity=Granularity(kind="token_groups", k=4))
        return Quantizer(spec, torch.tensor([1.0, 0.5, 2.0, 4.0]) / qmax, axis=-2, group=torch.arange(tokens) % 4)
    if form == 1:
        return Quantizer(
            Spec(bits=bits, granularity=Granularity(kind="channel")), torch.rand(width) / qmax + 0.01, axis=-1
        )
    return Quantizer(
        Spec(bits=bits, symmetric=False), torch.tensor([3.0 / qmax]), torch.tensor([float(2 ** (bits - 1))])
    )


@pytest.fixture
def quantized() -> Callable[..., VisionMamba]:
    """Returns build(inner=..., seed=...), which makes a baked model with a recipe that names its sites."""

    def build(inner: bool = True, seed: int = 0) -> VisionMamba:
        torch.manual_seed(seed)
        model = create_model("vim", **GEOMETRY).eval().requires_grad_(False)
        config = model.config
        counts = Counter[str]()
        for name, site in named_sites(model):
            i = counts[site.kind]
            counts[site.kind] += 1
            bits = 2 + i % 7
            if site.kind == WEIGHT:
                site.quantizer = weight_quantizer(site_parameter(model, name, site), bits, i % 6)
            elif site.kind == INNER and inner:
                if name.endswith(".h"):
                    spec = Spec(bits=8, granularity=Granularity(kind="step"))
                    site.quantizer = StateQuantizer(
                        spec,
                        torch.rand(config.num_tokens) + 0.1,
                        torch.rand(config.d_inner) + 0.1,
                        torch.rand(config.d_state) + 0.1,
                        i % 2 == 0,
                    )
                else:
                    site.quantizer = Quantizer(Spec(bits=8), torch.tensor([1 / 64]))
            elif site.kind == ACTIVATION and name.endswith("in_proj.in"):
                site.quantizer = activation_quantizer(config.embed_dim, config.num_tokens, bits, int(name[7]) % 2)
            elif site.kind == ACTIVATION and name.endswith("gate.out"):
                site.quantizer = activation_quantizer(config.d_inner, config.num_tokens, bits, 2)
        bake_weights(model)
        rules = tuple(
            Rule(match=name, bits=site.quantizer.spec.bits)
            for name, site in named_sites(model)
            if site.quantizer is not None
        )
        model.recipe = Recipe(
            name="hand-w8a8",
            family="hand",
            title="",
            source="",
            scope_name="full",
            bits=Bits(),
            scope=Scope(sites=rules),
        )
        model.provenance = PROVENANCE
        model.card = replace(model.card, classes=tuple(f"class {i}" for i in range(10)), checkpoint_sha256="0" * 64)
        return model

    return build


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(7))
