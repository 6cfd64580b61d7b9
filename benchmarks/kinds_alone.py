"""What 4 bits cost in each kind of tensor, alone: the divergence of the logits, on training images.

    python benchmarks/kinds_alone.py --model vim_tiny_imagenette --calib train-0.tar --data train-1.tar
        [--recipe visq-rotated-w4a4] [--samples 16] [--probe 8] [--folder FOLDER] [--without-positions] [--out FILE]

Every site is calibrated once, in the FP32 stream. Then all sites of one kind, or of one group of kinds, are quantized
and everything else is FP32; the last rows quantize all sites of a third of the stages. Learners of the recipe are left
out. Of a network that gives pixels a class, the divergence is the squared error of the logits over their square.
Results go to benchmarks/results/kinds_alone_MODEL.json; a calibration that was interrupted goes on from --folder.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from common import commit, machine, write_json
from visq.data import open_dataset
from visq.models import load_model
from visq.models.family import family_of
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.search.quantizers import calibrate_widths
from visq.search.sensitivity import Probe, divergence
from visq.stages.stage_run import belongs

BITS = 4
#: Groups of kinds by patterns over their names; the first match counts.
GROUPS: dict[str, tuple[str, ...]] = {
    "attention: q, k, v": ("attn.q", "attn.k", "attn.v"),
    "attention: scores": ("attn.scores",),
    "attention: probabilities": ("attn.probs",),
    "attention: qkv and proj": ("qkv.*", "proj.*"),
    "gates of channels": ("se.*", "attn.*"),
    "head": ("head.*", "decode_head.*"),
    "convolutions of the scan": ("conv1d*", "conv2d*"),
    "SiLU and gate": ("silu*", "gate.*"),
    "linears of the scan": ("in_proj*", "x_proj*", "dt_proj*", "out_proj*"),
    "MLP": ("mlp.*",),
    "A": ("a_*log",),
    **{f"scan: {name}": (f"scan*.{name}",) for name in ("delta", "c", "abar", "bbar", "h", "y")},
    "convolutions": ("*conv*", "*reduction*", "patch_embed.*"),
}


def group_of(kind: str) -> str:
    """Returns the group of a kind, or the kind's own name where it is in none."""
    return next((name for name, own in GROUPS.items() if any(fnmatchcase(kind, p) for p in own)), kind)


def parts(model: Any, names: list[str]) -> dict[str, list[str]]:
    """Returns the sites of every kind, of every group, of all scans, and of every third of the stages."""
    kind_of = family_of(model.config).kind_of
    kinds: dict[str, list[str]] = {}
    groups: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name), []).append(name)
        groups.setdefault(f"group {group_of(kind_of(name))}", []).append(name)
    groups["group scan"] = [name for group, own in groups.items() if group.startswith("group scan: ") for name in own]
    found = {**kinds, **dict(sorted(groups.items()))}
    stages = model.stages()[1:-1]
    for third in range(3):
        inside = [stage for i, stage in enumerate(stages) if i * 3 // len(stages) == third]
        title = f"all from {inside[0].name} to {inside[-1].name}"
        found[title] = [name for name in names if any(belongs(name, stage) for stage in inside)]
    found["everything"] = names
    return found


def measure(probe: Probe, names: list[str]) -> dict[str, float]:
    """Returns divergence and share of other decisions with the sites `names` quantized."""
    quantizers = probe.library.quantizers[BITS]
    for name in names:
        probe.sites[name].quantizer = quantizers[name]
    with torch.no_grad():
        found = []
        for state in probe.inputs[0]:
            for stage in probe.stages:
                state = stage.forward(*state)
            found.append(state[0])
    for name in names:
        probe.sites[name].quantizer = None
    logits, exact = torch.cat(found), torch.cat(probe.exact)
    other = float((logits.argmax(1) != exact.argmax(1)).double().mean())
    return {"kl": divergence(logits, exact), "decided_otherwise": 100 * other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True, help="training images that are not calibrated with")
    parser.add_argument("--recipe", default="visq-rotated-w4a4")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--probe", type=int, default=8)
    parser.add_argument("--folder", type=Path, required=True, help="keeps finished stages of the calibration")
    parser.add_argument("--without-positions", action="store_true", help="leave out scales per position")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = load_model(args.model).eval()
    card = model.card
    recipe = get_recipe(args.recipe)
    recipe = recipe.without_positions() if args.without_positions else recipe
    seen = open_dataset(args.calib, card.preprocess, split="calib").subset(args.samples, 0)
    held = open_dataset(args.data, card.preprocess, split="calib").subset(args.probe, 1)
    args.folder.mkdir(parents=True, exist_ok=True)
    library = calibrate_widths(
        model, recipe, seen, [BITS], folder=args.folder, batch_size=8, seed=0, report=lambda *told: print(*told)
    )
    probe = Probe(library, (), held, 8)
    names = [name for name, _ in named_sites(model) if name in library.quantizers[BITS]]
    rows: list[dict[str, Any]] = []
    for part, sites in parts(model, names).items():
        rows.append({"part": part, "sites": len(sites), **measure(probe, sites)})
        print(rows[-1], flush=True)
    of = {"model": args.model, "recipe": recipe.name, "samples": args.samples, "images": args.probe}
    out = args.out or Path(__file__).parent / "results" / f"kinds_alone_{args.model}.json"
    write_json(out, {**of, "rows": rows, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    main()
