"""What the decay ladder costs: the engine's top-1 with and without it, calibrated on the same images.

    python benchmarks/ladder.py --model vim_nano_fmnist --data fashion-mnist [--samples 128] [--limit 4000]
    python benchmarks/ladder.py --model vim_micro_imagenette --data val.tar --calib train-0.tar

Says how far each scan's A_log is from a ladder (the standard deviation of the residual), and how many scans kept codes
of their own. The p-value is McNemar's, image by image. Writes benchmarks/results/ladder_MODEL.json unless --out says
otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visq
from common import commit, machine, write_json
from visq.analysis import EngineModel
from visq.analysis.evaluate import limited
from visq.analysis.significance import mcnemar
from visq.data import Dataset, open_dataset
from visq.models import load_model
from visq.quant.ladder import LadderQuantizer, fit
from visq.quant.site import named_sites, site_parameter


def residuals(model: Any) -> dict[str, float]:
    """The deviation of every scan's A_log from the nearest ladder, by site."""
    sites = {name: site for name, site in named_sites(model) if site.parameter.startswith("A_")}
    return {name: fit(site_parameter(model, name, site).detach())[1] for name, site in sites.items()}


def answers(network: Any, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Decisions and labels of all images."""
    found, truth = [], []
    for images, labels in dataset.batches(16):
        with torch.no_grad():
            found.append(network(images).argmax(1).numpy())
        truth.append(labels.numpy())
    return np.concatenate(found), np.concatenate(truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="the test images")
    parser.add_argument("--calib", help="the calibration images, where --data has none")
    parser.add_argument("--recipes", default="visq-w8a8-fused,visq-ladder-w8a8", help="without and with the ladder")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, help="test images, spread over all")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = args.model
    away = residuals(load_model(name))
    rows: list[dict[str, Any]] = []
    right: list[np.ndarray] = []
    for recipe in args.recipes.split(","):
        model = load_model(name)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "a"
            visq.quantize(model, recipe, args.calib or args.data, samples=args.samples, out=out)
            engine = EngineModel(out)
            card = visq.load(out).card
            ladders = sum(isinstance(site.quantizer, LadderQuantizer) for _, site in named_sites(visq.load(out)))
        dataset = open_dataset(args.data, card.preprocess, split="test", classes=card.classes)
        found, labels = answers(engine, limited(dataset, args.limit))
        right.append(found == labels)
        rows.append({"recipe": recipe, "ladders": ladders, "top1": 100 * float(right[-1].mean()), "n": len(labels)})
        print(f"{name} {recipe}: {rows[-1]['top1']:.2f} of {len(labels)}, ladders in {ladders} scans", flush=True)
    paired = mcnemar(right[0], right[1])
    values = sorted(away.values())
    print(
        f"{name}: lost {paired.lost}, gained {paired.gained}, p {paired.p_value:.3f}; A_log is {values[0]:.3f} to "
        f"{values[-1]:.3f} from a ladder, median {float(np.median(values)):.3f}"
    )
    result = {"model": name, "rows": rows, "residuals": away, "lost": paired.lost, "gained": paired.gained}
    result |= {"p_value": paired.p_value, "samples": args.samples, "commit": commit(), "machine": machine()}
    write_json(args.out or Path(__file__).parent / "results" / f"ladder_{name}.json", result)


if __name__ == "__main__":
    main()
