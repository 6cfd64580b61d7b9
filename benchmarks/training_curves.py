"""How the models that come with visq were trained: loss and top-1 by epoch, and wall time, from the logs beside them.

    python benchmarks/training_curves.py [--plots docs/images]

Prints a table with one row for each stage of each model; the plot has one panel a model.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from visq.models.registry import weights_folders


def logs() -> dict[str, list[dict[str, Any]]]:
    """Model -> its epochs over all stages."""
    found = {}
    for path in sorted(path for folder in weights_folders() for path in folder.glob("*.log.jsonl")):
        found[path.name.removesuffix(".log.jsonl")] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def table(models: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| model | stage | epochs | images/s | minutes | top-1 raw | top-1 EMA |", "|---|---|---|---|---|---|---|"]
    for name, epochs in models.items():
        for stage, rows in groupby(epochs, key=lambda row: row["stage"]):
            own = list(rows)
            seconds, last = sum(row["seconds"] for row in own), own[-1]
            speed = sum(row["images_per_second"] * row["seconds"] for row in own) / seconds
            scores = f"{last['top1_raw']:.2f} | {last['top1_ema']:.2f}"
            lines.append(f"| {name} | {stage} | {len(own)} | {speed:.0f} | {seconds / 60:.0f} | {scores} |")
    return "\n".join(lines)


def plot(models: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    from visq.analysis.plots import pyplot, saved

    plt = pyplot()
    figure, panels = plt.subplots(1, len(models), figsize=(4 * len(models), 3), squeeze=False)
    for axes, (name, epochs) in zip(panels[0], models.items(), strict=True):
        axes.plot([row["train_loss"] for row in epochs], color="grey", label="training loss")
        axes.set(title=name, xlabel="epoch", ylabel="loss")
        scores = [(i, row["top1_raw"], row["top1_ema"]) for i, row in enumerate(epochs) if "top1_raw" in row]
        right = axes.twinx()
        right.plot([i for i, _, _ in scores], [raw for _, raw, _ in scores], marker=".", label="top-1 raw")
        right.plot([i for i, _, _ in scores], [ema for _, _, ema in scores], marker=".", label="top-1 EMA")
        right.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    saved(figure, folder / "training_curves.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path)
    arguments = parser.parse_args()
    print(table(logs()))
    if arguments.plots is not None:
        plot(logs(), arguments.plots)
