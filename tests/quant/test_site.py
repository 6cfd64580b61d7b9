"""Sites: names, identity, baking."""

from __future__ import annotations

import torch

from visq.integer.spec import Spec
from visq.models import create_model
from visq.quant.estimators import make_estimator
from visq.quant.site import WEIGHT, bake_weights, named_sites, site_name, site_parameter

TINY = {
    "image_size": 8,
    "patch_size": 4,
    "stride": 4,
    "channels": 1,
    "embed_dim": 16,
    "depth": 1,
    "d_state": 4,
    "num_classes": 3,
}


def test_public_names_drop_the_prefix() -> None:
    assert site_name("layers.0.mixer.in_proj.site_in") == "layers.0.mixer.in_proj.in"
    assert site_name("site_a.site_b") == "a.b"


def test_sites_own_no_state() -> None:
    model = create_model("vim", **TINY)
    assert not [key for key in model.state_dict() if "site" in key]


def test_every_weight_site_names_its_parameter_and_baking_decodes_it() -> None:
    torch.manual_seed(0)
    model = create_model("vim", **TINY).eval().requires_grad_(False)
    images = torch.randn(2, 1, 8, 8)
    weights = {name: site for name, site in named_sites(model) if site.kind == WEIGHT}
    assert {"patch_embed.proj.weight", "layers.0.mixer.a_b_log", "head.weight"} <= set(weights)
    for name, site in weights.items():
        estimator = make_estimator(Spec(bits=4, granularity="channel"), WEIGHT)
        estimator.observe(site_parameter(model, name, site))
        estimator.end_pass()
        site.quantizer = estimator.result()
    simulated = model(images)
    bake_weights(model)
    assert all(site.baked for site in weights.values())
    torch.testing.assert_close(model(images), simulated, rtol=0, atol=0)
    for name, site in weights.items():
        parameter = site_parameter(model, name, site)
        assert parameter.flatten(1)[0].unique().numel() <= 16
