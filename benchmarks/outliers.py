"""The outliers of trained networks: what makes their activations and hidden states hard to quantize.

    python benchmarks/outliers.py --model vim_micro_imagenette --data train-0.tar [--images 64] [--plots docs/images]

For every activation site, over images of the training set: largest magnitude / 99.9th percentile, and how much the
tokens and the channels differ: largest / median of the mean magnitude of a token, of a channel. For every scan the same
of |h| over channels, steps and states, and the exponents of the reparameterization (arXiv 2501.16738, eqs. 29-31).
Results: benchmarks/results/outliers.json (a model's entry is replaced) and a table by kind of site on the terminal.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, write_json
from visq import ops
from visq.data import open_dataset
from visq.models import FAMILIES, load_model
from visq.models.layers import SelectiveScan
from visq.quant.histogram import float_counts, weighted_quantile, weighted_values
from visq.quant.site import ACTIVATION, named_sites
from visq.transforms.reparameterize import DISPERSIONS, REPRESENTATIVES


class Seen:
    """Magnitudes of what passes a site, [B, L, C] or [B, C], streamed; of images [B, C, H, W] the values only."""

    def __init__(self) -> None:
        self.counts: Tensor | int = 0
        self.tokens: Tensor | float = 0.0
        self.channels: Tensor | float = 0.0

    def observe(self, x: Tensor) -> None:
        magnitude = x.detach().float().abs()
        self.counts = self.counts + float_counts(magnitude)
        if magnitude.ndim < 4:
            self.channels = self.channels + magnitude.flatten(0, -2).mean(0)
        if magnitude.ndim == 3:
            self.tokens = self.tokens + magnitude.mean(dim=(0, 2))

    def row(self) -> dict[str, float | None]:
        assert isinstance(self.counts, Tensor)
        values, counts = weighted_values(self.counts)
        return {
            "max_over_p999": ratio(float(values[-1]), weighted_quantile(values, counts, 0.999)),
            "tokens": spread(self.tokens) if isinstance(self.tokens, Tensor) else None,
            "channels": spread(self.channels) if isinstance(self.channels, Tensor) else None,
        }


def ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def spread(means: Tensor) -> float | None:
    """Largest over median."""
    return ratio(float(means.max()), float(means.median()))


def states(magnitude: Tensor) -> dict[str, Any]:
    """Of the mean |h| over images [L, C, N]: how its axes differ, and the exponents p_C, p_L, p_D of mean and std."""
    result: dict[str, Any] = {"max_over_median": ratio(float(magnitude.max()), float(magnitude.median()))}
    dispersion = {}
    for axis, name in enumerate(("steps", "channels", "states")):
        means = REPRESENTATIVES["mean"](magnitude.movedim(axis, 0).flatten(1))
        result[name] = spread(means)
        dispersion[name] = float(DISPERSIONS["std"](means))
    total = sum(dispersion.values())
    return result | {"exponents": {name: value / total for name, value in dispersion.items()}}


@torch.no_grad()
def observe(model: nn.Module, batches: Any) -> tuple[dict[str, Seen], dict[str, Tensor]]:
    seen: dict[str, Seen] = {}
    totals: dict[str, Tensor] = {}

    def site_hook(name: str) -> Callable[..., None]:
        return lambda module, args, result: seen.setdefault(name, Seen()).observe(args[0])

    def scan_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            u, delta, A, B, _ = args
            for i in range(len(u)):
                h = ops.scan_states(u[i : i + 1], delta[i : i + 1], A, B[i : i + 1]).abs_()[0]
                totals[name] = totals[name] + h if name in totals else h

        return hook

    for name, site in named_sites(model):
        if site.kind == ACTIVATION:
            site.register_forward_hook(site_hook(name))
    for name, module in model.named_modules():
        if isinstance(module, SelectiveScan):
            module.register_forward_pre_hook(scan_hook(name))
    for images in batches:
        model(images)
    return seen, totals


def table(sites: dict[str, Any]) -> str:
    """Medians and maxima over the sites of a kind, most unequal kinds first."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, row in sites.items():
        kinds.setdefault(FAMILIES["vim"].kind_of(name), []).append(row)

    def cell(rows: list[dict[str, Any]], key: str) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        return f"{statistics.median(values):.1f} / {max(values):.1f}" if values else "-"

    keys = ("max_over_p999", "tokens", "channels")
    lines = [
        "| site | sites | max / p99.9 | tokens: largest / median | channels: largest / median |",
        "|---|---|---|---|---|",
    ]
    order = sorted(kinds, key=lambda kind: -max(row["max_over_p999"] or 0 for row in kinds[kind]))
    lines += [
        f"| `{kind}` | {len(kinds[kind])} | {' | '.join(cell(kinds[kind], key) for key in keys)} |" for kind in order
    ]
    return "\n".join(lines)


def plot(name: str, scans: dict[str, Any], folder: Path) -> Path:
    """Spread of |h| over channels, steps and states, scan by scan."""
    from visq.analysis.plots import pyplot, saved

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3))
    for key in ("channels", "steps", "states"):
        axes.plot([row[key] for row in scans.values()], marker="o", markersize=3, label=key)
    axes.set(xlabel="scan, in order of the network", ylabel="largest / median of mean |h|", yscale="log", title=name)
    axes.legend()
    return saved(figure, folder / f"states_{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    card = model.card
    dataset = open_dataset(options.data, card.preprocess, split="calib", classes=card.classes).subset(options.images, 0)
    seen, totals = observe(model, (images for images, _ in dataset.batches(4)))
    entry = {
        "images": len(dataset),
        "sites": {name: value.row() for name, value in seen.items()},
        "scans": {name: states(total / len(dataset)) for name, total in totals.items()},
    }
    path = Path(__file__).parent / "results" / "outliers.json"
    known = json.loads(path.read_text())["models"] if path.exists() else {}
    write_json(path, {"models": {**known, options.model: entry}, "machine": machine()})
    print(table(entry["sites"]))
    medians = {
        key: statistics.median(row["exponents"][key] for row in entry["scans"].values())
        for key in ("channels", "steps", "states")
    }
    print("\nmedian exponents: " + ", ".join(f"{key} {value:.2f}" for key, value in medians.items()))
    if options.plots:
        print(plot(options.model, entry["scans"], options.plots))


if __name__ == "__main__":
    main()
