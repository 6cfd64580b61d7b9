"""What 4 bits cost in each kind of tensor, alone: the divergence of the logits, on training images.

    python benchmarks/kinds_alone.py --model vim_tiny_imagenette --calib train-0.tar --data train-1.tar
        [--recipe visq-rotated-w4a4] [--samples 16] [--probe 8] [--folder FOLDER]

Every site is calibrated once, in the FP32 stream. Then all sites of one kind are quantized and everything else is
FP32; the last rows quantize all sites of a third of the stages. Learners of the recipe are left out. Results go to
benchmarks/results/kinds_alone_MODEL.json; a calibration that was interrupted goes on from --folder.
"""

from __future__ import annotations

import argparse
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

BITS = 4


def parts(model: Any, names: list[str]) -> dict[str, list[str]]:
    """Returns the sites of every kind, and of every third of the stages."""
    kind_of = family_of(model.config).kind_of
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    blocks = [name for name in names if name.startswith("layers.")]
    depth = 1 + max((int(name.split(".")[1]) for name in blocks), default=0)
    for third in range(3):
        inside = [name for name in blocks if int(name.split(".")[1]) * 3 // depth == third]
        found[f"all of blocks {-(-third * depth // 3)} to {-(-(third + 1) * depth // 3) - 1}"] = inside
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
    args = parser.parse_args()
    model = load_model(args.model).eval()
    card = model.card
    recipe = get_recipe(args.recipe)
    seen = open_dataset(args.calib, card.preprocess, split="calib").subset(args.samples, 0)
    held = open_dataset(args.data, card.preprocess, split="train", classes=card.classes).subset(args.probe, 1)
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
    out = Path(__file__).parent / "results" / f"kinds_alone_{args.model}.json"
    write_json(out, {**of, "rows": rows, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    main()
