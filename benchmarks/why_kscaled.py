"""Two explanations of docs/results.md, tested on 1,000 training images.

python benchmarks/why_kscaled.py changes     # kscaled-w4a4, scope full, with one thing changed
python benchmarks/why_kscaled.py balance     # Table II's cells at w4a4 with r_D scaled to a geometric mean of 1
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import ablation
from visq.analysis import evaluate
from visq.data import Dataset, open_dataset
from visq.models import load_model
from visq.pipeline import quantize
from visq.quant.site import named_sites
from visq.recipes import Recipe, get_recipe
from visq.recipes.schema import Rule
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


def balance(model: Any, images: Dataset) -> None:
    args = argparse.Namespace(model=MODEL, data=DATA, samples=256)
    sites = [name for name, _ in named_sites(model)]
    cells, centred = ablation.cells([4]), state_factors.centred

    whole = ablation.quantized(args, cells["I/w4a4/both"], 0)[0]
    for name in ("none", "mean-std", "median-std", "max-std", "max-range"):
        tops = []
        for function in (lambda factors: factors, centred):
            state_factors.centred = function
            part = ablation.quantized(args, ablation.state_only(cells[f"II/w4a4/step/{name}"], sites), 0)[0]
            tops.append(evaluate(ablation.graft(part, whole), images).top1)
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
