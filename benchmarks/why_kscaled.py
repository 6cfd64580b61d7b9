"""Two explanations of docs/results.md, tested on 1,000 training images.

python benchmarks/why_kscaled.py changes     # kscaled-w4a4, scope full, with one thing changed
python benchmarks/why_kscaled.py balance     # Table II's cells at w4a4 with r_D scaled to a geometric mean of 1
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visq.analysis import evaluate
from visq.calibrate import calibrate
from visq.data import Dataset, open_dataset
from visq.models import load_model
from visq.pipeline import quantize
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import Bits, Recipe, get_recipe
from visq.recipes.schema import Rule
from visq.reproduce import get_table
from visq.transforms import state_factors

MODEL, DATA = "vim_nano_fmnist", "fashion-mnist"


def without(*patterns: str) -> Callable[[Rule], Rule | None]:
    """A rule without some of its patterns; None when nothing is left."""

    def change(rule: Rule) -> Rule | None:
        left = tuple(pattern for pattern in rule.match if pattern not in patterns)
        return rule.model_copy(update={"match": left}) if left else None

    return change


def squared_error(rule: Rule) -> Rule:
    similar = isinstance(rule.estimator, dict) and rule.estimator.get("name") == "similarity"
    return rule.model_copy(update={"estimator": "mse"}) if similar else rule


def changed(recipe: Recipe, change: Callable[[Rule], Rule | None] | None = None, **fields: Any) -> Recipe:
    if change is not None:
        fields["sites"] = tuple(found for rule in recipe.scope.sites if (found := change(rule)) is not None)
    return recipe.model_copy(update={"scope": recipe.scope.model_copy(update=fields)})


def changes(model: Any, calibration: Dataset, images: Dataset) -> None:
    full, outputs = get_recipe("kscaled-w4a4"), without("*.conv1d*.out", "*.out_proj.out")
    found = {
        "omse": get_recipe("omse-w4a4"),
        "kscaled": full,
        "squared error instead of cosine": changed(full, squared_error),
        "without conv1d.out and out_proj.out": changed(full, outputs),
        "squared error, without conv1d.out and out_proj.out": changed(changed(full, squared_error), outputs),
        "without reparameterization": changed(full, transforms=()),
        "without bias correction": changed(full, learners=()),
        "without x_proj.in": changed(full, without("*.x_proj*.in")),
        "without x_proj.in, conv1d.out and out_proj.out": changed(changed(full, without("*.x_proj*.in")), outputs),
    }
    for name, recipe in found.items():
        result = quantize(copy.deepcopy(model), recipe, calibration.select(range(256)))
        print(f"{name}: {evaluate(result.model, images).top1:.1f}", flush=True)


def cell(table: str, label: str) -> Recipe:
    """Returns the recipe of a row of a table of the paper, at four bits."""
    found = get_table(table)
    row = next(row for row in found.rows if row.label == label)
    return found.recipe(row.model_copy(update={"bits": Bits(weight=4, activation=4, state=4)}))


def state_only(recipe: Recipe, sites: list[str]) -> Recipe:
    """Returns a recipe of Table II without what it shares with Table I: x_proj and the scan are left."""
    shared = tuple(site for site in sites if ".x_proj" not in site and ".scan" not in site)
    return changed(recipe, sites=(*recipe.scope.sites, Rule(match=shared, skip=True)), learners=())


def quantized(recipe: Recipe) -> Any:
    """Returns the network under a recipe, calibrated on 256 images."""
    model = load_model(MODEL)
    calibration = open_dataset(DATA, model.card.preprocess, split="calib").subset(256, 0)
    with tempfile.TemporaryDirectory() as work:
        calibrate(model, recipe, calibration, work_dir=Path(work) / "w")
    return model


def graft(part: Any, whole: Any) -> Any:
    """Returns a copy of `whole` with the quantizers and quantized weights of `part`."""
    model = copy.deepcopy(whole)
    target = dict(named_sites(model))
    for name, site in named_sites(part):
        if site.quantizer is not None:
            target[name].quantizer, target[name].baked = site.quantizer, site.baked
            if site.kind == WEIGHT:
                site_parameter(model, name, target[name]).data = site_parameter(part, name, site).data
    return model


def balance(model: Any, images: Dataset) -> None:
    sites, centred = [name for name, _ in named_sites(model)], state_factors.centred
    whole = quantized(cell("kscaled-table1", "Both"))
    for name in ("None", "Mean / Std", "Median / Std", "Max / Std", "Max / Range"):
        tops = []
        for function in (lambda factors: factors, centred):
            state_factors.centred = function
            part = quantized(state_only(cell("kscaled-table2", name), sites))
            tops.append(evaluate(graft(part, whole), images).top1)
        print(f"{name}: as in the paper {tops[0]:.1f}, centred {tops[1]:.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("changes", "balance"))
    arguments = parser.parse_args()
    network = load_model(MODEL)
    training = open_dataset(DATA, network.card.preprocess, split="calib")
    held_out = training.select(range(1000, 2000))
    if arguments.what == "changes":
        changes(network, training, held_out)
    else:
        balance(network, held_out)
